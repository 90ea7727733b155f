"""What is painted: teeth are white, brows leave no white edge, and what a face allows stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keyface_cli.models.tones import (
    BELOW_EYES,
    LUMA,
    TEETH,
    bound_tones,
    brightness_ceiling,
    tone_bounds,
)

SKIN, GOBLIN = (0.75, 0.55, 0.45), (0.35, 0.60, 0.30)
TURQUOISE, DARK_GREEN = (0.55, 0.75, 0.72), (0.05, 0.11, 0.08)
ALLOWED = ((0.80, 0.78, 0.70), (0.60, 0.20, 0.25), (0.0, 0.0, 0.0))  # teeth, tongue, darkness
R = 64


def flat(*colours: tuple[float, float, float]) -> Tensor:
    """One picture a colour, (B, 3, R, R) in [-1, 1]."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, R, R) * 2 - 1


def luma(pictures: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", (pictures + 1) / 2, torch.tensor(LUMA))


@pytest.mark.parametrize("colour", [TURQUOISE, DARK_GREEN])
def test_turquoise_teeth_become_white_and_stay_as_bright(
    colour: tuple[float, float, float],
) -> None:
    painted = flat(colour)
    bounded = bound_tones(painted, tone_bounds(flat(SKIN)))
    below = int(BELOW_EYES[1] * R) + 1
    red, green, blue = ((bounded[0, :, below:] + 1) / 2).unbind(0)
    assert (green <= TEETH[1] / TEETH[0] * (red + 0.01) + 1e-5).all()
    assert (blue <= TEETH[2] / TEETH[0] * (red + 0.01) + 1e-5).all()
    assert torch.allclose(luma(bounded), luma(painted), atol=2e-3)


def test_what_is_painted_above_stays() -> None:
    painted = flat((0.3, 0.5, 0.9))  # a blue iris
    bounded = bound_tones(painted, tone_bounds(flat(SKIN)))
    above = int(BELOW_EYES[0] * R)
    assert torch.equal(bounded[..., :above, :], painted[..., :above, :])
    assert not torch.allclose(bounded, painted, atol=0.1)


def test_colours_within_the_bounds_stay() -> None:
    painted = flat(*ALLOWED)
    assert torch.allclose(bound_tones(painted, tone_bounds(flat(SKIN))), painted, atol=1e-6)


def test_a_green_face_may_have_a_green_mouth() -> None:
    painted = flat(GOBLIN)
    assert torch.allclose(bound_tones(painted, tone_bounds(flat(GOBLIN))), painted, atol=1e-6)
    assert not torch.allclose(bound_tones(painted, tone_bounds(flat(SKIN))), painted, atol=0.1)


def test_each_portrait_has_bounds_of_its_own() -> None:
    painted, portraits = flat(GOBLIN, GOBLIN), flat(GOBLIN, SKIN)
    both = bound_tones(painted, tone_bounds(portraits))
    for i in range(2):
        alone = bound_tones(painted[i : i + 1], tone_bounds(portraits[i : i + 1]))
        assert torch.equal(both[i : i + 1], alone)


def test_above_the_mouth_nothing_is_brighter_than_the_portrait_nearby() -> None:
    portrait = flat(SKIN).clone()
    portrait[..., 20:22, 10:30] = -1.0  # a brow
    portrait[..., 30:34, 16:20] = 1.0  # an eye
    above = int(BELOW_EYES[0] * R)
    ceiling = brightness_ceiling(portrait)[0, :, :above]
    skin = flat(SKIN)[0, :, :1, :1]
    assert torch.allclose(ceiling[:, :26], (skin + 0.02).expand(3, 26, R), atol=1e-5)
    assert (ceiling[:, 30:34, 16:20] >= 1).all()
    assert (ceiling <= 1.03).all()


def test_a_mouth_may_be_brighter_than_the_portrait() -> None:
    below = int(BELOW_EYES[1] * R) + 1
    assert (brightness_ceiling(flat((0.0, 0.0, 0.0)))[..., below:, :] > 1).all()


def test_each_colour_has_a_ceiling_of_its_own() -> None:
    ceilings = brightness_ceiling(flat(SKIN, GOBLIN))
    expected = torch.tensor([SKIN, GOBLIN]) * 2 - 1 + 0.02
    assert torch.allclose(ceilings[..., 0, 0], expected, atol=1e-5)
