"""Who the avatar is: sizes, shapes, colours and style of a head, drawn at random.

Lengths are in half-pictures of an upright head of unit scale, before the camera's zoom: x to the
right, y down, the origin between and a little below the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Appearance = dict[str, Tensor]  # name -> (B,) or, for colours, (B, 3) in 0..1

SKINS = (
    (0.99, 0.86, 0.77), (0.96, 0.80, 0.69), (0.91, 0.72, 0.58), (0.82, 0.61, 0.46),
    (0.69, 0.48, 0.35), (0.54, 0.36, 0.26), (0.42, 0.28, 0.20), (0.97, 0.82, 0.73),
)  # fmt: skip
HAIRS = (
    (0.11, 0.08, 0.08), (0.23, 0.15, 0.11), (0.40, 0.25, 0.15), (0.58, 0.39, 0.21),
    (0.85, 0.68, 0.39), (0.66, 0.26, 0.13), (0.68, 0.68, 0.70), (0.86, 0.84, 0.82),
    (0.34, 0.22, 0.40), (0.14, 0.20, 0.34),
)  # fmt: skip
IRISES = (
    (0.32, 0.20, 0.11), (0.24, 0.42, 0.62), (0.28, 0.46, 0.28), (0.46, 0.33, 0.14),
    (0.40, 0.50, 0.55),
)  # fmt: skip
CLOTHES = (
    (0.22, 0.30, 0.50), (0.60, 0.20, 0.22), (0.20, 0.42, 0.36), (0.88, 0.86, 0.81),
    (0.18, 0.18, 0.21), (0.80, 0.58, 0.22), (0.48, 0.34, 0.60), (0.85, 0.45, 0.40),
)  # fmt: skip
BACKGROUNDS = (
    (0.62, 0.76, 0.86), (0.89, 0.82, 0.70), (0.42, 0.52, 0.62), (0.76, 0.64, 0.76),
    (0.62, 0.77, 0.64), (0.92, 0.92, 0.90), (0.26, 0.31, 0.41), (0.92, 0.68, 0.58),
)  # fmt: skip
ZOOMS, CAMERA_X, CAMERA_Y = (0.93, 1.08), 0.04, 0.035  # how the camera may differ
LIP_RED = (0.76, 0.30, 0.31)


@dataclass(frozen=True)
class _Draws:
    """Random numbers for B heads; the order of the calls decides which head gets which."""

    count: int
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, generator=self.generator) * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        return (torch.rand(self.count, generator=self.generator) < probability).float()

    def colour(self, palette: tuple[tuple[float, float, float], ...], spread: float) -> Tensor:
        index = torch.randint(0, len(palette), (self.count,), generator=self.generator)
        offset = (torch.rand(self.count, 3, generator=self.generator) - 0.5) * spread
        return (torch.tensor(palette)[index] + offset).clamp(0.03, 1.0)


def sample_appearances(count: int, generator: torch.Generator) -> Appearance:
    """Draw appearances at random.

    Args:
        count: how many, B.
        generator: the source of chance; the same state gives the same heads.

    Returns:
        The parameters by name: (B,) numbers and (B, 3) colours in 0..1.
    """
    draws = _Draws(count, generator)
    p = _colours_and_light(draws) | _face(draws) | _hair_and_years(draws)
    p |= _hat_and_surroundings(draws)
    _fit_together(p, draws)
    return p


def _colours_and_light(draws: _Draws) -> Appearance:
    uniform, colour = draws.uniform, draws.colour
    return {
        "skin": colour(SKINS, 0.05),
        "hair": colour(HAIRS, 0.06),
        "iris": colour(IRISES, 0.08),
        "cloth": colour(CLOTHES, 0.14),
        "background": colour(BACKGROUNDS, 0.12),
        "backdrop_fall": uniform(0.72, 1.0),
        "light": uniform(-1.0, 1.0),  # where it comes from: -1 left, 1 right
        "light_warm": uniform(-0.03, 0.04),
        "shade": uniform(0.16, 0.34),
    }


def _face(draws: _Draws) -> Appearance:
    uniform = draws.uniform
    return {
        # the skull
        "face_width": uniform(0.385, 0.445),
        "brow_height": uniform(0.45, 0.50),
        "jaw_height": uniform(0.50, 0.57),
        "jaw_square": uniform(2.0, 2.7),
        "chin_taper": uniform(0.0, 0.26),
        "ear": uniform(0.050, 0.068),
        "neck": uniform(0.165, 0.215),
        # eyes and brows
        "eye_x": uniform(0.158, 0.190),
        "eye_y": uniform(-0.075, -0.030),
        "eye_width": uniform(0.080, 0.102),
        "eye_height": uniform(0.046, 0.064),
        "eye_slant": uniform(-0.014, 0.012),
        "iris_radius": uniform(0.039, 0.047),
        "lash": uniform(0.0, 1.0),
        "brow_gap": uniform(0.095, 0.125),
        "brow_thick": uniform(0.011, 0.022),
        "brow_arch": uniform(0.012, 0.040),
        "brow_width": uniform(0.088, 0.112),
        # nose and mouth
        "nose_length": uniform(0.135, 0.180),
        "nose_width": uniform(0.046, 0.068),
        "mouth_y": uniform(0.280, 0.315),
        "mouth_width": uniform(0.138, 0.178),
        "upper_lip": uniform(0.022, 0.033),
        "lower_lip": uniform(0.030, 0.045),
        "cupid": uniform(0.0, 0.010),
        "blush": uniform(0.0, 0.6),
    }


def _hair_and_years(draws: _Draws) -> Appearance:
    uniform, chance = draws.uniform, draws.chance
    return {
        "hair_volume": uniform(0.035, 0.095),
        "hair_open_x": uniform(-0.07, 0.07),
        "hair_open_top": uniform(0.24, 0.42),
        "hair_open_square": uniform(2.0, 3.0),
        "hair_side": uniform(-0.10, 0.12),
        "hair_long": chance(0.42) * uniform(0.45, 0.95),
        "hair_curl": chance(0.3) * uniform(0.012, 0.028),
        "hair_bun": chance(0.12),
        "hair_tone": uniform(0.06, 0.16),
        "hair_phase": uniform(0.0, 6.28),
        "bald": chance(0.06),
        "glasses": chance(0.2),
        "glasses_radius": uniform(0.108, 0.126),
        "glasses_square": torch.where(chance(0.5) > 0, 2.0, 3.6),
        "outline": chance(0.3) * uniform(0.3, 0.7),
        "collar": uniform(0.0, 1.0),
        # years: lines and bags where the face moves, and hair that greys
        "age": chance(0.45) * uniform(0.2, 1.0),
    }


def _hat_and_surroundings(draws: _Draws) -> Appearance:
    uniform, chance, colour = draws.uniform, draws.chance, draws.colour
    return {
        "hat_cap": chance(0.07),
        "hat_beanie": chance(0.06),
        "hat_scarf": chance(0.06),
        "hat_y": uniform(-0.31, -0.27),
        "hat": colour(CLOTHES, 0.20),
        # behind it
        "background_far": colour(BACKGROUNDS, 0.20),
        "background_turn": uniform(0.0, 6.28),
        "background_mix": chance(0.5) * uniform(0.3, 1.0),
        "pattern": chance(0.35) * uniform(0.2, 1.0),
        "pattern_size": uniform(4.0, 14.0),
        # the camera: how near it is, and where the head is in the picture
        "zoom": uniform(*ZOOMS),
        "camera_x": uniform(-CAMERA_X, CAMERA_X),
        "camera_y": uniform(-CAMERA_Y, CAMERA_Y),
        # the hand that drew it, and the print
        "painted": chance(0.25) * uniform(0.3, 1.0),
        "contrast": uniform(0.85, 1.12),
        "saturation": torch.where(chance(0.05) > 0, 0.0, uniform(0.7, 1.2)),
        "warmth": uniform(-0.05, 0.05),
        "flat": chance(0.2),
        "phase": uniform(0.0, 6.28),
    }


def _fit_together(p: Appearance, draws: _Draws) -> None:
    """Draw what follows from the rest, and leave out what does not go together."""
    uniform, chance = draws.uniform, draws.chance
    red = torch.tensor(LIP_RED) * p["skin"].mean(1, keepdim=True).clamp(0.5, 1.0)
    amount = uniform(0.35, 0.65)[:, None]
    p["lip"] = (p["skin"] * (0.92 - amount) + red * amount).clamp(0.0, 1.0)
    grey = (p["hair"].mean(1, keepdim=True) * 0.3 + 0.55).expand(-1, 3)
    p["hair"] = torch.lerp(p["hair"], grey, (p["age"] * uniform(0.0, 1.0))[:, None])
    p["shade"] = p["shade"] * (1 - 0.85 * p["flat"])
    # one thing on the head at most
    p["hat_beanie"] = p["hat_beanie"] * (1 - p["hat_cap"])
    p["hat_scarf"] = p["hat_scarf"] * (1 - p["hat_cap"]) * (1 - p["hat_beanie"])
    p["hair_bun"] = p["hair_bun"] * (1 - p["hat_cap"]) * (1 - p["hat_beanie"])
    short = (p["hair_long"] == 0).float() * (1 - p["hat_scarf"])
    p["hair_bun"] = p["hair_bun"] * (1 - p["bald"]) * (1 - p["hat_scarf"])
    p["hair_long"] = p["hair_long"] * (1 - p["bald"])
    p["beard"] = chance(0.4) * short * uniform(0.35, 0.9)
    p["moustache"] = p["beard"] * chance(0.7)


def select(appearance: Appearance, index: Tensor | slice | list[int]) -> Appearance:
    """Return the appearances at `index`, which may repeat: (B', ...) of every parameter."""
    return {name: value[index] for name, value in appearance.items()}
