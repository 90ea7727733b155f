"""The renderer of the talking head: soft-edged shapes, composited back to front in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from keyface_cli.avatars.appearance import Appearance
from keyface_cli.avatars.canvas import Canvas

TOOTH = (0.97, 0.96, 0.92)
TONGUE = (0.74, 0.36, 0.37)
MOUTH_DARK = (0.23, 0.06, 0.07)
EYE_WHITE = (0.97, 0.96, 0.95)

# what only some heads have, by the parameter that is above 0 then
EXTRAS = ("age", "glasses", "hat_cap", "hat_beanie", "hat_scarf", "painted", "pattern", "beard")


def render(appearance: Appearance, poses: Tensor, size: int = 256) -> Tensor:
    """Draw one picture per pose.

    Args:
        appearance: the parameters of `appearance.sample_appearances`, (B,) and (B, 3).
        poses: (B, R) in the order of `rig.CONTROLS`.
        size: height and width in pixels.

    Returns:
        (B, 3, size, size) RGB in 0..1, on the device of `poses`.
    """
    extras = frozenset(name for name in EXTRAS if bool((appearance[name] > 0).any()))
    return _Painter(appearance, poses, size, extras).paint()


def _bump(distance_squared: Tensor) -> Tensor:
    return torch.exp(-distance_squared)


class _Painter(Canvas):
    """The layers of a head, each a method, and the order they are painted in."""

    def paint(self) -> Tensor:
        self._backdrop()
        self._back_hair()
        self._body()
        self._ears()
        self._face()
        if "age" in self.extras:
            self._years()
        for side in (-1, 1):
            self._eye(side)
        self._nose()
        self._mouth()
        self._front_hair()
        if "glasses" in self.extras:
            self._glasses()
        if "hat_cap" in self.extras or "hat_beanie" in self.extras:
            self._hat()
        if "hat_scarf" in self.extras:
            self._scarf()
        return self._print()

    def _backdrop(self) -> None:
        p, x, y = self.p, self.x, self.y
        glow = _bump(((x - 0.35 * p["light"]) ** 2 + (y + 0.2) ** 2) / 0.3)
        tone = 1 + (p["backdrop_fall"] - 1) * (y + 0.7) / 1.4 + 0.10 * glow
        across = x * torch.cos(p["background_turn"]) + y * torch.sin(p["background_turn"])
        far = torch.sigmoid(across * 5) * p["background_mix"]
        if "pattern" in self.extras:
            size, turn = p["pattern_size"], p["phase"]
            blots = torch.sin(x * size + turn) * torch.sin(y * size * 1.1 - turn + torch.sin(3 * x))
            far = far + p["pattern"] * torch.sigmoid((blots - 0.25) * 12) * (0.6 - far)
        colour = p["background"] + (p["background_far"] - p["background"]) * far.unsqueeze(1)
        self.image.copy_(colour * tone.unsqueeze(1))

    def _hair_outline(self, x: Tensor, y: Tensor) -> Tensor:
        """Signed distance to the outer edge of the hair on the skull."""
        p = self.p
        wide = p["face_width"] + p["hair_volume"] * 0.75
        high = p["brow_height"] + p["hair_volume"]
        radius = torch.sqrt((x / wide) ** 2 + (y / high) ** 2 + 1e-6)
        curl = p["hair_curl"] * torch.sin(torch.atan2(y, x) * 22 + p["hair_phase"])
        return (radius - 1) * wide - curl

    def _hair_colour(self, x: Tensor, y: Tensor, brightness: float) -> Tensor:
        p = self.p
        strands = torch.sin(x * 34 + p["hair_phase"] + 2 * torch.sin(y * 5 + p["hair_phase"]))
        shine = _bump(((x - 0.18 * p["light"]) / 0.22) ** 2 + ((y + 0.40) / 0.08) ** 2)
        tone = brightness + 0.5 * p["hair_tone"] * strands + 0.30 * shine
        return (p["hair"] * tone.unsqueeze(1) + 0.01).clamp(0.0, 1.0)

    def _back_hair(self) -> None:
        p, box = self.p, self.full
        x, y = self.head(box)
        wide = p["face_width"] + p["hair_volume"] + 0.01
        sides = x.abs() - wide * (1 + 0.16 * y.clamp(0, 1))
        curl = p["hair_curl"] * torch.sin(y * 22 + p["hair_phase"])
        fall = torch.maximum(sides - curl, torch.maximum(y - p["hair_long"], -y))
        distance = torch.minimum(torch.where(y < 0, self._hair_outline(x, y), fall), fall)
        alpha = self.cover(distance, 2.0) * (p["hair_long"] > 0).float()
        self.lay(box, alpha, self._hair_colour(x, y, 0.66))
        bun_y = -p["brow_height"] - p["hair_volume"] - 0.03
        bun = torch.sqrt(x**2 + (y - bun_y) ** 2 + 1e-6) - 0.15
        self.lay(box, self.cover(bun, 1.5) * p["hair_bun"], self._hair_colour(x, y, 0.80))

    def _body(self) -> None:
        p, r = self.p, self.r
        box = self.box(-1.0, 1.0, 0.25, 1.0)
        head_x, _ = self.head(box)
        x = self.x[:, :, box[1]] - 0.4 * r["shift_x"]
        y = self.y[:, box[0]] - 0.4 * r["shift_y"]
        neck_x = (x + head_x) / 2
        neck = neck_x.abs() - (p["neck"] + 0.10 * (y - 0.55).clamp(min=0))
        under_chin = 0.60 + 0.30 * torch.sigmoid((y - 0.64) * 16)
        self.lay(box, self.cover(neck, 1.5), p["skin"] * under_chin.unsqueeze(1))
        shoulders = y - (0.635 + 0.42 * x.abs() ** 2.2)
        opening = torch.sqrt((x / 1.05) ** 2 + ((y - 0.55) / (0.62 + 0.4 * p["collar"])) ** 2)
        cloth = torch.maximum(0.215 - opening, -shoulders)
        light = 0.84 + 0.26 * _bump(((x - 0.4 * p["light"]) ** 2 + (y - 0.9) ** 2) / 0.15)
        self.lay(box, self.cover(cloth, 1.5), p["cloth"] * light.unsqueeze(1))
        hem = torch.maximum((0.228 - opening).abs() - 0.011, -shoulders)
        self.lay(box, self.cover(hem), p["cloth"] * 0.72)

    def _ears(self) -> None:
        p = self.p
        for side in (-1, 1):
            box = self.box(*((-0.65, -0.22) if side < 0 else (0.22, 0.65)), -0.25, 0.30)
            x, y = self.head(box)
            centre = side * (p["face_width"] + 0.004) - 0.02 * self.r["yaw"]
            d = torch.sqrt(((x - centre) / p["ear"]) ** 2 + ((y - 0.02) / 0.105) ** 2) - 1
            shade = 0.88 - 0.14 * _bump((d + 0.6) ** 2 / 0.05)
            self.lay(box, self.cover(d * 0.06), p["skin"] * shade.unsqueeze(1))

    def _face(self) -> None:
        p, r = self.p, self.r
        box = self.box(-0.56, 0.56, -0.62, 0.74)
        x, y = self.head(box)
        low = p["jaw_height"] + 0.055 * r["jaw"]
        below = y > 0
        height = torch.where(below, low, p["brow_height"])
        power = torch.where(below, p["jaw_square"], torch.full_like(y, 2.15))
        taper = 1 - 0.24 * p["chin_taper"] * (y / low).clamp(0, 1) ** 2
        xn = x / (p["face_width"] * taper)
        radius = ((xn.abs() + 1e-4) ** power + ((y / height).abs() + 1e-4) ** power) ** (1 / power)
        distance = (radius - 1) * 0.42
        facing = (1 - radius.clamp(0, 1) ** 2).sqrt()
        lit = (facing * 0.75 + 0.32 * p["light"] * xn - 0.20 * y / height).clamp(-0.5, 1.2)
        tone = 1.0 - p["shade"] + (p["shade"] + 0.06) * lit

        fx = x - self.face_x  # features slide with the turn of the face
        nose_y = 0.02 + p["nose_length"]
        smile = r["smile"].clamp(min=0)
        high = ((y - (0.16 - 0.02 * smile)) / 0.075) ** 2
        cheeks = [
            _bump(((x - side * 0.25 - 0.6 * self.face_x) / 0.10) ** 2 + high) for side in (-1, 1)
        ]
        for side, cheek in zip((-1, 1), cheeks, strict=True):
            socket = ((fx - side * p["eye_x"]) / 0.11) ** 2 + ((y - p["eye_y"] + 0.02) / 0.07) ** 2
            tone = tone - 0.07 * _bump(socket)
            crease_x = side * (0.105 + 0.33 * (y - nose_y) + 0.02 * smile)
            crease = torch.sigmoid((y - nose_y + 0.01) * 60) * torch.sigmoid(
                (p["mouth_y"] + 0.02 - y) * 40
            )
            tone = tone - (0.02 + 0.07 * smile) * _bump(((fx - crease_x) / 0.014) ** 2) * crease
            tone = tone + 0.05 * smile * cheek
        brow_mark = _bump((fx / 0.035) ** 2 + ((y - p["eye_y"] + 0.10) / 0.05) ** 2)
        tone = tone - 0.10 * r["furrow"].clamp(min=0) * brow_mark
        chin = (fx / 0.10) ** 2 + ((y - p["mouth_y"] - 0.105 - 0.10 * r["jaw"]) / 0.02) ** 2
        tone = tone - 0.08 * _bump(chin)
        colour = p["skin"] * tone.unsqueeze(1)
        red = self.colour((0.0, 0.07, 0.06))
        for cheek in cheeks:
            colour = colour - red * (p["blush"] * cheek).unsqueeze(1)
        # the shaded side turns warmer, as skin does
        warm = self.colour((0.05, -0.02, -0.05))
        colour = colour * (1 + warm * (1 - lit).unsqueeze(1) + self.colour((1, 0.4, -0.6))
                           * p["light_warm"].unsqueeze(1))  # fmt: skip
        colour = self._beard(colour, x, y, fx)
        self.lay(box, self.cover(distance - 0.010) * p["outline"], p["skin"] * 0.32)
        self.lay(box, self.cover(distance, 1.3), colour.clamp(0.0, 1.0))

    def _years(self) -> None:
        """Lines on the brow, beside the eyes and the nose, and bags under the eyes."""
        p, r = self.p, self.r
        box = self.box(-0.46, 0.46, -0.50, 0.50)
        x, y = self.head(box)
        fx = x - self.face_x
        raised = 0.6 + 0.8 * r["brow"].clamp(min=0)
        lines = torch.zeros_like(x)
        for height in (-0.27, -0.32, -0.37):
            bend = height - 0.03 * r["brow"] + 0.10 * fx**2
            lines = lines + raised * _bump(((y - bend) / 0.006) ** 2 + (fx / 0.17) ** 4)
        for side in (-1, 1):
            ex = (fx - side * p["eye_x"]) * side
            bag = p["eye_y"] + 0.085 - 0.9 * ex**2 / 0.1
            lines = lines + 0.8 * _bump(((y - bag) / 0.008) ** 2 + (ex / 0.075) ** 4)
            for slope in (-0.35, 0.0, 0.35):
                crow = (y - p["eye_y"] - slope * (ex - 0.07)) / 0.005
                near = _bump(((ex - 0.135) / 0.028) ** 2)
                lines = lines + (0.4 + 0.6 * r["smile"].clamp(min=0)) * _bump(crow**2) * near
            fold = (fx - side * (0.10 + 0.30 * (y - 0.15))) / 0.010
            lines = lines + 0.9 * _bump(fold**2 + ((y - 0.24) / 0.08) ** 4)
        self.lay(box, (0.34 * p["age"] * lines).clamp(0, 0.5), p["skin"] * 0.52)

    def _beard(self, colour: Tensor, x: Tensor, y: Tensor, fx: Tensor) -> Tensor:
        p, r = self.p, self.r
        if "beard" not in self.extras:
            return colour
        grown = torch.sigmoid((y - 0.12 - 0.45 * (0.30 - fx.abs()).clamp(min=0)) * 30)
        around = ((fx / 0.185) ** 4
                  + ((y - p["mouth_y"] - 0.02 - 0.05 * r["jaw"]) / 0.088) ** 4)  # fmt: skip
        lip_y = p["mouth_y"] - 0.058 - 0.014 * r["smile"]
        moustache = _bump((fx / 0.145) ** 4 + ((y - lip_y - 0.8 * fx**2) / 0.022) ** 2)
        cover = torch.maximum(p["beard"] * grown * (1 - _bump(around)), p["moustache"] * moustache)
        hair = p["hair"] * (0.88 + 0.05 * torch.sin(x * 50 + 2 * torch.sin(y * 21))).unsqueeze(1)
        return torch.lerp(colour, hair, cover.clamp(0, 1).unsqueeze(1).expand_as(colour))

    def _eye(self, side: int) -> None:
        p, r = self.p, self.r
        box = self.box(*((-0.46, 0.08) if side < 0 else (-0.08, 0.46)), -0.36, 0.16)
        x, y = self.head(box)
        ex = x - side * p["eye_x"] - self.face_x
        ey = y - p["eye_y"] - side * p["eye_slant"] * ex / p["eye_width"]
        t = ex / p["eye_width"]
        arch = 1 - t**2
        smile = r["smile"].clamp(min=0)
        lid = torch.lerp(r["lid"], torch.ones_like(r["lid"]), r["blink"])
        high = p["eye_height"]
        open_top = -high * arch.clamp(min=-1)
        top = -high * (1 - (1.30 + 0.30 * r["blink"]) * lid) * arch.clamp(min=-1)
        low = high * 0.62 * (1 - 0.30 * smile) * arch.clamp(min=-1)
        ends = (t.abs() - 1) * p["eye_width"]

        white = self.colour(EYE_WHITE) * (1 - 0.24 * _bump(((ey - top) / 0.018) ** 2)).unsqueeze(1)
        ix = ex - 0.030 * r["gaze_x"]
        iy = ey - 0.020 * r["gaze_y"] + 0.003
        radius = torch.sqrt(ix**2 + iy**2 + 1e-8)
        ring = p["iris_radius"]
        iris_tone = (0.72 + 0.5 * radius / ring) * (
            1 - 0.45 * _bump(((radius - ring) / 0.009) ** 2)
        )
        iris = p["iris"] * iris_tone.unsqueeze(1) + 0.10 * (iy / ring).clamp(0, 1).unsqueeze(1)
        eye = white.lerp(iris, self.spread(radius - ring))
        eye = eye.lerp(torch.full_like(eye, 0.03), self.spread(radius - 0.46 * ring))
        glint = torch.sqrt((ix + 0.014) ** 2 + (iy + 0.016) ** 2 + 1e-8) - 0.011
        eye = eye.lerp(torch.ones_like(eye), self.spread(glint))

        skin_lid = torch.maximum(torch.maximum(open_top - 0.006 - ey, ey - top), ends)
        self.lay(box, self.cover(skin_lid) * lid.clamp(0, 1), p["skin"] * 0.86)
        opening = torch.maximum(torch.maximum(top - ey, ey - low), ends)
        self.lay(box, self.cover(opening), eye)
        line = torch.minimum(top, low + 0.004)
        lash = (ey - line).abs() - (0.007 + 0.005 * p["lash"] + 0.003 * t * side)
        lash = torch.maximum(lash, (t.abs() - 1.06) * p["eye_width"])
        self.lay(box, self.cover(lash), p["hair"] * 0.25 + 0.02)
        fold = torch.maximum((ey - open_top + 0.021).abs() - 0.003, ends)
        self.lay(box, self.cover(fold, 1.5) * 0.35, p["skin"] * 0.55)
        rim = torch.maximum((ey - low - 0.002).abs() - 0.003, ends)
        self.lay(box, self.cover(rim, 1.5) * 0.40, p["skin"] * 0.50)

        along = (x - side * p["eye_x"] * 1.02 - self.face_x) * side / p["brow_width"]
        brow_y = (
            p["eye_y"] - p["brow_gap"] - 0.055 * r["brow"]
            - p["brow_arch"] * (1 - (along - 0.2) ** 2)
            - 0.032 * r["furrow"] * along.clamp(-1, 1)
        )  # fmt: skip
        thick = p["brow_thick"] * (1 - 0.55 * ((along + 1) / 2).clamp(0, 1))
        brow = torch.maximum((y - brow_y).abs() - thick, (along.abs() - 1) * p["brow_width"])
        self.lay(box, self.cover(brow, 1.8) * 0.92, p["hair"] * 0.72 + 0.02)

    def _nose(self) -> None:
        p = self.p
        box = self.box(-0.24, 0.24, -0.16, 0.36)
        x, y = self.head(box)
        fx = x - 1.6 * self.face_x
        wide, tip_y = p["nose_width"], 0.02 + p["nose_length"]
        side = p["light"].sign()
        ridge = _bump(((fx + wide * 0.75 * side) / 0.030) ** 2)
        ridge = ridge * torch.sigmoid((y - p["eye_y"]) * 25) * torch.sigmoid((tip_y - y) * 40)
        under = _bump((fx / (wide * 1.15)) ** 2 + ((y - tip_y - 0.018) / 0.017) ** 2)
        self.lay(box, 0.16 * ridge + 0.30 * under, p["skin"] * 0.45)
        tip = _bump(((fx - 0.010 * side) / 0.030) ** 2 + ((y - tip_y + 0.026) / 0.036) ** 2)
        self.lay(box, 0.22 * tip, torch.ones_like(p["skin"]))
        for s in (-1, 1):
            d = torch.sqrt(((fx - s * wide * 0.54) / 0.017) ** 2 + ((y - tip_y) / 0.010) ** 2) - 1
            self.lay(box, self.cover(d * 0.010) * 0.70, p["skin"] * 0.30)
            wing = ((fx - s * wide * 0.85) / 0.020) ** 2 + ((y - tip_y + 0.012) / 0.026) ** 2
            edge = ((wing + 1e-6).sqrt() - 1).abs() * 0.022 - 0.003
            outer = torch.sigmoid((fx * s - wide * 0.88) * 200)
            self.lay(box, self.cover(edge, 1.5) * 0.32 * outer, p["skin"] * 0.48)

    def _mouth(self) -> None:
        p, r = self.p, self.r
        box = self.box(-0.42, 0.42, 0.08, 0.70)
        x, y = self.head(box)
        mx = x - 1.2 * self.face_x
        jaw, rounding, smile = r["jaw"], r["round"], r["smile"]
        half = p["mouth_width"] * (1 + 0.22 * r["width"] - 0.42 * rounding + 0.12 * smile)
        gap = jaw * 0.165 * (1 - 0.10 * rounding)
        centre = p["mouth_y"] + 0.018 * jaw
        t = mx / half
        bow = (1 - t**2).clamp(min=0)
        profile = 0.6 * bow + 0.4 * bow.sqrt()
        base = centre - 0.052 * smile * (t**2 - 0.35)
        inner_top = base - 0.22 * gap * profile
        inner_low = base + 0.78 * gap * profile
        full = (1 - 0.55 * r["press"]) * (1 + 0.22 * rounding)
        cupid = p["cupid"] * _bump((t / 0.16) ** 2)
        outer_top = inner_top - p["upper_lip"] * full * bow**0.75 + cupid * (bow > 0)
        outer_low = inner_low + p["lower_lip"] * full * bow**0.75
        ends = (t.abs() - 1) * half

        shadow = _bump(((y - outer_low - 0.022) / 0.014) ** 2) * bow
        self.lay(box, 0.20 * shadow, p["skin"] * 0.55)
        lips = torch.maximum(torch.maximum(outer_top - y, y - outer_low), ends)
        shine = _bump(((y - (inner_low + outer_low) / 2) / 0.011) ** 2 + (t / 0.45) ** 2)
        tone = 1 - 0.20 * torch.sigmoid((base - y) * 120) + 0.18 * shine
        self.lay(box, self.cover(lips), (p["lip"] * tone.unsqueeze(1)).clamp(0.0, 1.0))

        inside = torch.maximum(torch.maximum(inner_top - y, y - inner_low), (t.abs() - 0.94) * half)
        colour = self._mouth_inside(mx, y, half, gap, centre)
        opened = (gap / 0.006 - 0.3).clamp(0, 1)
        self.lay(box, self.cover(inside) * opened, colour)
        line = torch.maximum((y - base).abs() - 0.005, ends)
        closed = (1 - gap / 0.016).clamp(0, 1)
        self.lay(box, self.cover(line) * closed, p["lip"] * 0.38)
        for side in (-1, 1):
            corner_y = centre - 0.034 * smile
            corner = ((mx - side * half) / 0.013) ** 2 + ((y - corner_y) / 0.013) ** 2
            self.lay(box, 0.35 * _bump(corner), p["skin"] * 0.45)

    def _mouth_inside(
        self, mx: Tensor, y: Tensor, half: Tensor, gap: Tensor, centre: Tensor
    ) -> Tensor:
        """What shows between the lips: darkness, the tongue and both rows of teeth."""
        r = self.r
        floor = centre + 0.78 * gap
        colour = self.colour(MOUTH_DARK).expand(self.count, 3, *mx.shape[1:])
        tongue_y = floor + 0.012 - 0.55 * gap * r["tongue"]
        tongue = torch.sqrt((mx / (half * 0.62)) ** 2 + ((y - tongue_y - 0.02) / 0.05) ** 2) - 1
        colour = colour.lerp(self.colour(TONGUE), self.spread(tongue * 0.04))
        shade = self.colour(TOOTH) * (1 - 0.28 * (mx / half) ** 2).unsqueeze(1)
        upper = torch.maximum(y - (centre - 0.22 * gap + 0.040 * r["teeth"]), mx.abs() - half * 0.8)
        shown = (r["teeth"] / 0.05).clamp(0, 1).unsqueeze(1)
        colour = colour.lerp(shade, self.spread(upper) * shown)
        lower = torch.maximum(floor - 0.020 * r["teeth"] - y, mx.abs() - half * 0.62)
        low_shown = ((r["teeth"] - 0.45) * 2).clamp(0, 1).unsqueeze(1)
        return colour.lerp(shade * 0.90, self.spread(lower) * low_shown)

    def _front_hair(self) -> None:
        p = self.p
        box = self.box(-0.66, 0.66, -0.74, 0.42)
        x, y = self.head(box)
        outer = self._hair_outline(x, y)
        # the face looks out of an opening in the hair
        power = p["hair_open_square"]
        top, wide = p["hair_open_top"], p["face_width"] * 0.90
        ox = (x - p["hair_open_x"] * (0.15 - y).clamp(0, 0.6) / 0.5) / wide
        oy = ((y - 0.06) / (top + 0.06)).clamp(max=0)
        radius = (ox.abs() + 1e-4) ** power + (oy.abs() + 1e-4) ** power
        opening = (radius ** (1 / power) - 1) * wide * 0.9
        slant = 0.9 * (x.abs() - p["face_width"])
        hair = torch.maximum(torch.maximum(outer, -opening), (y - p["hair_side"] - slant) * 0.7)
        grown = 1 - p["bald"]
        self.lay(box, self.cover(hair - 0.008) * p["outline"] * grown, p["hair"] * 0.25)
        shadow = _bump(((opening + 0.012) / 0.022) ** 2) * (y < p["hair_side"]).float()
        self.lay(box, 0.16 * shadow * grown * self.cover(outer), p["skin"] * 0.4)
        self.lay(box, self.cover(hair, 1.8) * grown, self._hair_colour(x, y, 0.98))

    def _glasses(self) -> None:
        p = self.p
        box = self.box(-0.62, 0.62, -0.28, 0.24)
        x, y = self.head(box)
        gx, gy = x - 1.1 * self.face_x, y - p["eye_y"] - 0.008
        radius, centre = p["glasses_radius"], p["eye_x"] * 1.05
        frame = p["cloth"] * 0.28
        power = p["glasses_square"]
        for side in (-1, 1):
            near = ((gx - side * centre).abs() / radius + 1e-4) ** power
            near = near + (gy.abs() / (radius * 0.88) + 1e-4) ** power
            d = (near ** (1 / power) - 1) * radius
            self.lay(box, self.cover(d) * 0.08 * p["glasses"], torch.ones_like(frame))
            self.lay(box, self.cover(d.abs() - 0.009) * p["glasses"], frame)
        bridge = torch.maximum((gy + 0.018).abs() - 0.008, gx.abs() - (centre - radius))
        arm = torch.maximum(centre + radius - gx.abs(), gx.abs() - p["face_width"] - 0.02)
        arm = torch.maximum((gy + 0.028).abs() - 0.008, arm)
        self.lay(box, self.cover(torch.minimum(bridge, arm)) * p["glasses"], frame)

    def _hat(self) -> None:
        """A cap with a brim, or a beanie with a band."""
        p = self.p
        box = self.box(-0.75, 0.75, -0.95, 0.0)
        x, y = self.head(box)
        wide = p["face_width"] + p["hair_volume"] * 0.75 + 0.02
        high = p["brow_height"] + p["hair_volume"] + 0.03
        dome = (torch.sqrt((x / wide) ** 2 + (y / high) ** 2 + 1e-6) - 1) * wide
        edge = p["hat_y"] - 0.10 * (x / wide) ** 2
        shape = torch.maximum(dome, y - edge)
        shade = 1 - 0.25 * (x / wide - 0.3 * p["light"]).abs() ** 2
        rib = 1 + 0.10 * torch.sin(x * 70) * p["hat_beanie"]
        worn = torch.maximum(p["hat_cap"], p["hat_beanie"])
        colour = (p["hat"] * (shade * rib).unsqueeze(1)).clamp(0, 1)
        self.lay(box, self.cover(shape, 1.5) * worn, colour)
        band = torch.maximum((y - edge + 0.035).abs() - 0.05, dome - 0.012)
        self.lay(box, self.cover(band, 1.5) * p["hat_beanie"], colour * 0.82)
        brim = torch.sqrt((x / (wide * 0.95)) ** 2 + ((y - p["hat_y"] + 0.015) / 0.055) ** 2) - 1
        self.lay(box, self.cover(brim * 0.05, 1.5) * p["hat_cap"], p["hat"] * 0.72)

    def _scarf(self) -> None:
        """A scarf around the face, over hair and neck."""
        p, box = self.p, self.full
        x, y = self.head(box)
        wide, high = p["face_width"] + 0.075, p["brow_height"] + 0.08
        crown = (torch.sqrt((x / wide) ** 2 + (y / high) ** 2 + 1e-6) - 1) * wide
        fall = x.abs() - wide * (1 + 0.35 * y.clamp(0, 1) ** 2)
        outer = torch.where(y < 0, crown, fall)
        low = p["jaw_height"] + 0.055 * self.r["jaw"]
        half = torch.where(y > 0.02, low * 0.985, -p["hat_y"] + 0.10)
        opening = torch.sqrt((x / (p["face_width"] * 0.93)) ** 2 + ((y - 0.02) / half) ** 2 + 1e-6)
        cloth = torch.maximum(outer, (1 - opening) * 0.4)
        folds = (
            1
            + 0.08 * torch.sin(14 * (x.abs() + 0.6 * y))
            - 0.15 * _bump(((opening - 1) / 0.06) ** 2)
        )
        colour = (p["hat"] * folds.unsqueeze(1)).clamp(0, 1)
        self.lay(box, self.cover(cloth, 1.5) * p["hat_scarf"], colour)

    def _print(self) -> Tensor:
        """What becomes of all colours: brushwork, contrast, saturation and warmth."""
        p, image = self.p, self.image
        if "painted" in self.extras:
            x, y = self.head(self.full)
            strokes = torch.sin(x * 31 + 9 * torch.sin(y * 7 + p["phase"]) + 14 * y)
            strokes = strokes + torch.sin(y * 47 + 8 * torch.sin(x * 5 - p["phase"]) - 20 * x)
            image = image * (1 + 0.03 * p["painted"] * strokes).unsqueeze(1)
        grey = image.mean(1, keepdim=True)
        image = grey + (image - grey) * p["saturation"].unsqueeze(1)
        image = 0.5 + (image - 0.5) * p["contrast"].unsqueeze(1)
        tint = self.colour((1.0, 0.2, -1.0)) * (p["warmth"] * p["saturation"]).unsqueeze(1)
        return (image + tint).clamp(0.0, 1.0)
