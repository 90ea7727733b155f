"""A photograph that moves: its mesh is bent by a pose, and what lies behind its holes is painted.

Back to front: the background, the eyeballs, the photograph on its mesh, and the mouth's inside
where the lips part. Pictures are drawn larger than they are wanted and shrunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars import rig
from keyface_cli.avatars.photographs import mesh, shapes
from keyface_cli.avatars.photographs.mesh import Points

Image = NDArray[Any]  # (H, W, 3) RGB, 0 to 255
SCALE = 1.5  # how much larger than wanted pictures are drawn
TONGUE, CAVITY = (168.0, 88.0, 86.0), (62.0, 24.0, 24.0)
_SUBPIXEL = 4  # bits of a polygon's coordinates after the point


@dataclass(frozen=True)
class Teeth:
    """The upper teeth of a smile, as they lie in a head of unit eye distance.

    `picture` (h, w, 4) RGB and opacity, float32 0 to 255 and 0 to 1; `box` is where it lies:
    left, top, right and bottom from the middle of the closed mouth, in eye distances.
    """

    picture: NDArray[Any]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Glasses:
    """Rims around both eyes: half width and height, roundness of the corners, colour, thickness."""

    half: tuple[float, float]  # in eye distances
    power: float  # of the superellipse
    colour: tuple[float, float, float]
    thickness: float  # in eye distances
    tint: float  # how much darker what is behind the glass becomes


@dataclass(frozen=True)
class Puppet:
    """Everything that `render` needs to know of a person.

    Args:
        picture: the photograph, (P, P, 3) uint8.
        cover: where the person is, 1, and where the background, 0: (P, P) float32.
        points: the mesh, landmarks first, (n, 3) in pixels of the photograph.
        triangles: (t, 3).
        fields: see `shapes.fields`.
        background: what is behind the person, (P, P, 3) uint8.
        eyeballs: the photograph without lids, (P, P, 3) uint8.
        teeth: the upper row, of a smile; None paints one.
        crop: left, top and side of the square that pictures show, in pixels of the photograph.
        glasses: None for none.
        colours: what light and camera made of colours, (3, 4): of red, green, blue and 1.
        tooth: colour of the painted teeth.
        arch: widths of the painted rows of teeth in eye distances, upper and lower.
    """

    picture: NDArray[Any]
    cover: NDArray[Any]
    points: Points
    triangles: NDArray[Any]
    fields: NDArray[Any]
    background: NDArray[Any]
    eyeballs: NDArray[Any]
    teeth: Teeth | None
    crop: tuple[float, float, float]
    glasses: Glasses | None = None
    colours: NDArray[Any] = field(default_factory=lambda: np.eye(3, 4, dtype=np.float32))
    tooth: tuple[float, float, float] = (226.0, 216.0, 200.0)
    arch: tuple[float, float] = (0.36, 0.30)


def render(puppet: Puppet, poses: NDArray[Any], size: int) -> NDArray[Any]:
    """Draw one picture per pose.

    Args:
        puppet: whose.
        poses: (B, R) in the order of `rig.CONTROLS`.
        size: height and width in pixels.

    Returns:
        (B, size, size, 3) RGB uint8.
    """
    stage = _Stage(puppet, round(size * SCALE))
    frames = np.empty((len(poses), size, size, 3), np.uint8)
    for i, picture in enumerate(stage.pictures(poses)):
        cv2.resize(picture, (size, size), dst=frames[i], interpolation=cv2.INTER_AREA)
    return frames


class _Pose(NamedTuple):
    """A pose that is being drawn: its controls, and how the head goes with them."""

    controls: NDArray[Any]  # (R,) in the order of `rig.CONTROLS`
    turn: NDArray[Any]  # (3, 3)
    shift: NDArray[Any]  # (2,) pixels of the photograph


class _Stage:
    """A puppet in the pixels of the picture that is drawn."""

    def __init__(self, puppet: Puppet, size: int) -> None:
        self.puppet, self.size = puppet, size
        left, top, side = puppet.crop
        self.zoom = size / side
        self.offset = np.array([left, top, 0], np.float32)
        S = mesh.eye_distance(puppet.points)
        self.S = S * self.zoom
        chin = puppet.points[mesh.CHIN, 1]
        down = np.clip((puppet.points[:, 1] - chin + 0.1 * S) / (1.3 * S), 0, 1)
        self.held = (1 - down * down * (3 - 2 * down)).astype(np.float32)[:, None]
        oval = puppet.points[list(mesh.OVAL)]
        # the head turns about the top of the spine
        self.pivot = oval.mean(0) + np.array([0, 0.55 * S, 0.5 * S], np.float32)
        self.rest = puppet.points
        self.texture = np.dstack([puppet.picture, (puppet.cover * 255).astype(np.uint8)])
        matrix = np.array([[self.zoom, 0, -left * self.zoom], [0, self.zoom, -top * self.zoom]])
        self.background = cv2.warpAffine(
            puppet.background, matrix, (size, size),
            flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        self.source = puppet.points[puppet.triangles, :2]

    def pictures(self, poses: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield (size, size, 3) uint8 for each pose."""
        puppet = self.puppet
        weight = shapes.weights(poses)
        moved = self.rest + np.einsum("bk,knc->bnc", weight, puppet.fields)
        turns = shapes.head_turns(poses)
        half = puppet.crop[2] / 2
        shift = poses[:, [rig.INDEX["shift_x"], rig.INDEX["shift_y"]]] * half
        for points, *pose in zip(moved, poses, turns, shift, strict=True):
            yield self._picture(_Pose(*pose), points)

    def _turn(self, points: Points, pose: _Pose, held: Points | float = 1.0) -> Points:
        """Move points with the head: photograph pixels -> picture pixels.

        `held` is how much of the head's motion each point takes part in, (n, 1) in 0..1.
        """
        whole = (points - self.pivot) @ pose.turn.T + self.pivot
        whole[:, :2] += pose.shift
        result: Points = (points + held * (whole - points) - self.offset) * self.zoom
        return result

    def _picture(self, pose: _Pose, moved: Points) -> NDArray[Any]:
        points = self._turn(moved, pose, self.held)
        skin = self._skin(points)
        image = skin[..., :3]
        cover = skin[..., 3:].astype(np.float32) / 255
        if cover.min() < 1:
            blend = self.background + cover * (image.astype(np.float32) - self.background)
            image = blend.astype(np.uint8)
        image = np.ascontiguousarray(image)
        for eye in mesh.EYES:
            self._eyeball(image, points, eye, pose)
        self._mouth(image, points, pose)
        if self.puppet.glasses is not None:
            self._glasses(image, self.puppet.glasses, pose)
        return image

    def _skin(self, points: Points) -> NDArray[Any]:
        """The photograph, with its cover, on the moved mesh."""
        triangles = self.puppet.triangles
        order = np.argsort(-points[triangles, 2].mean(1))
        return _draw_mesh(self.texture, self.source, points[triangles, :2], order, self.size)

    def _box(self, points: Points, margin: float) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom around points, inside the picture."""
        low = np.floor(points[:, :2].min(0) - margin * self.S).astype(int)
        high = np.ceil(points[:, :2].max(0) + margin * self.S).astype(int)
        x0, y0 = np.clip(low, 0, self.size).tolist()
        x1, y1 = np.clip(high, 0, self.size).tolist()
        return (x0, y0, x1, y1) if x1 - x0 > 2 and y1 - y0 > 2 else None

    def _hole(self, outline: Points, box: tuple[int, int, int, int], blur: float) -> NDArray[Any]:
        """How much of each pixel of a box lies within an outline, (h, w, 1) in 0..1."""
        x0, y0, x1, y1 = box
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        corners = (outline[:, :2] - (x0, y0)) * (1 << _SUBPIXEL)
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA, shift=_SUBPIXEL)
        soft = cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255
        result: NDArray[Any] = soft[..., None]
        return result

    def _eyeball(self, image: NDArray[Any], points: Points, eye: mesh.Eye, pose: _Pose) -> None:
        """Lay an eyeball under the lids; its iris follows the gaze."""
        upper, lower = points[list(eye.upper)], points[list(eye.lower)]
        upper = upper.copy()
        upper[:, 1] = np.minimum(upper[:, 1], lower[:, 1])
        box = self._box(np.concatenate([upper, lower]), 0.05)
        if box is None or (lower[:, 1] - upper[:, 1]).max() < 0.012 * self.S:
            return
        x0, y0, x1, y1 = box
        corners = [*eye.upper, *eye.lower[1:-1]]
        rest = self.rest[corners]
        here = self._turn(rest, pose)
        back = _fit(here[:, :2], rest[:, :2])  # picture -> photograph
        x, y = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
        sx = back[0, 0] * x + back[0, 1] * y + back[0, 2]
        sy = back[1, 0] * x + back[1, 1] * y + back[1, 2]
        iris = self.rest[eye.iris]
        S = self.S / self.zoom
        gx = pose.controls[rig.INDEX["gaze_x"]] * shapes.IRIS_REACH[0] * S
        gy = pose.controls[rig.INDEX["gaze_y"]] * shapes.IRIS_REACH[1] * S
        distance = np.hypot(sx - iris[0] - gx, sy - iris[1] - gy)
        share = np.clip((0.26 * S - distance) / (0.14 * S), 0, 1)
        share = share * share * (3 - 2 * share)
        ball = cv2.remap(
            self.puppet.eyeballs, sx - gx * share, sy - gy * share, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)  # fmt: skip
        outline = np.concatenate([upper, lower[-2:0:-1]])
        mask = self._hole(outline, box, 0.55)
        # the upper lid throws a shadow
        lid = np.interp(x[0], upper[:, 0], upper[:, 1])
        lid_rest = np.interp(x[0], *here[: len(upper), :2].T).astype(np.float32)
        fallen = np.clip((lid - lid_rest) / (0.05 * self.S), 0, 1)
        shade = 1 - 0.35 * fallen * np.exp(-np.clip(y - lid, 0, None) / (0.028 * self.S))
        view = image[y0:y1, x0:x1].astype(np.float32)
        image[y0:y1, x0:x1] = (view + mask * (ball * shade[..., None] - view)).astype(np.uint8)
        self._lashes(image, upper, lower, eye)

    def _lashes(self, image: NDArray[Any], upper: Points, lower: Points, eye: mesh.Eye) -> None:
        """A dark line along a lid that has come down, for its lashes."""
        rest = self.rest[list(eye.upper)]
        height = float((self.rest[list(eye.lower)] - rest)[:, 1].max()) * self.zoom
        now = float((lower - upper)[:, 1].max())
        closed = np.clip(1 - now / max(height, 1e-3), 0, 1)
        if closed < 0.15:
            return
        box = self._box(upper, 0.06)
        if box is None:
            return
        x0, y0, x1, y1 = box
        line = np.zeros((y1 - y0, x1 - x0), np.uint8)
        corners = np.round((upper[:, :2] - (x0, y0)) * (1 << _SUBPIXEL)).astype(np.int32)
        width = max(1, round(0.028 * self.S))
        cv2.polylines(line, [corners], False, 255, width, cv2.LINE_AA, shift=_SUBPIXEL)
        soft = cv2.GaussianBlur(line, (0, 0), 0.8).astype(np.float32)[..., None] / 255
        view = image[y0:y1, x0:x1].astype(np.float32)
        dark = view * 0.35
        image[y0:y1, x0:x1] = (view + 0.75 * closed * soft * (dark - view)).astype(np.uint8)

    def _mouth(self, image: NDArray[Any], points: Points, pose: _Pose) -> None:
        """Paint what shows between the lips."""
        outline = points[[*mesh.UPPER_INNER, *mesh.LOWER_INNER[-2:0:-1]]]
        gap = float((points[14] - points[13])[1])
        box = self._box(outline, 0.06)
        opened = np.clip((gap - 0.012 * self.S) / (0.02 * self.S), 0, 1)
        if box is None or opened <= 0:
            return
        x0, y0, x1, y1 = box
        mask = self._hole(outline, box, 0.7) * opened
        inside = self._inside(box, points, pose)
        view = image[y0:y1, x0:x1].astype(np.float32)
        image[y0:y1, x0:x1] = np.clip(view + mask * (inside - view), 0, 255).astype(np.uint8)

    def _inside(self, box: tuple[int, int, int, int], points: Points, pose: _Pose) -> Image:
        """The mouth's inside over a box of the picture, (h, w, 3)."""
        x0, y0, x1, y1 = box
        S, r = self.S, dict(zip(rig.NAMES, pose.controls.tolist(), strict=True))
        middle = np.append(mesh.mouth_centre(self.rest), self.rest[13, 2] + 0.10 * S / self.zoom)
        skull = self._turn(middle[None], pose)[0]
        x, y = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
        c, s = np.cos(r["tilt"]), np.sin(r["tilt"])
        dx, dy = (x - skull[0]) / S, (y - skull[1]) / S
        u, v = c * dx + s * dy, c * dy - s * dx  # in the head, eye distances
        top, bottom = points[13, 1], points[14, 1]
        depth = np.clip((y - top) / max(bottom - top, 1), 0, 1)[..., None]
        colour = np.array(CAVITY, np.float32) * (0.45 + 0.75 * depth)
        fall = shapes.JAW_DROP * r["jaw"] * 0.9
        # the tongue rests on the lower teeth, or lifts its tip to the upper ones
        tongue_y = fall + 0.01 - r["tongue"] * (fall * 0.75 + 0.02)
        broad = 0.235 * (1 - 0.25 * r["round"])
        body = 1 - ((u / broad) ** 2 + (np.clip(tongue_y - v, 0, None) / 0.10) ** 2)
        tongue = np.clip(body * 4, 0, 1) * (v > tongue_y - 0.12)
        groove = 1 - 0.18 * np.exp(-((u / 0.02) ** 2))
        ridge = (0.72 + 0.34 * np.exp(-(((v - tongue_y + 0.03) / 0.07) ** 2))) * groove
        colour = colour + tongue[..., None] * (np.array(TONGUE) * ridge[..., None] - colour)
        colour = self._lower_teeth(colour, u, v - fall, r)
        colour = self._upper_teeth(colour, u, v)
        shadow = np.exp(-np.clip(y - top, 0, None) / (0.045 * S))[..., None] * 0.42
        edge = np.clip(np.abs(u) / 0.33, 0, 1)[..., None] ** 3
        lit = colour * (1 - shadow) * (1 - 0.55 * edge)
        matrix = self.puppet.colours
        result: Image = np.clip(lit @ matrix[:, :3].T + matrix[:, 3], 0, 255).astype(np.float32)
        return result

    def _row(self, u: Image, count: float) -> Image:
        """Brightness along a row of teeth, with the lines between them, darker to the sides."""
        width = self.puppet.arch[0] / count
        # teeth become narrower to the sides, as the arch turns away
        bent = np.arcsin(np.clip(u / (self.puppet.arch[0] * 1.02), -1, 1)) / 1.2
        between = np.abs((bent / width + 0.5) % 1 - 0.5) * 2  # 0 in a tooth's middle
        line: Image = 1 - 0.22 * np.clip((between - 0.82) / 0.18, 0, 1) ** 2
        return line * (1 - 0.55 * np.clip(np.abs(u) / self.puppet.arch[0], 0, 1) ** 2)

    def _upper_teeth(self, colour: Image, u: Image, v: Image) -> Image:
        half, teeth = self.puppet.arch[0], self.puppet.teeth
        if teeth is None:
            low = 0.062 - 0.055 * (u / half) ** 2
            shape = np.clip((low - v) / 0.012, 0, 1) * np.clip((half - np.abs(u)) / 0.03, 0, 1)
            tone = self._row(u, 3.6)[..., None] * np.array(self.puppet.tooth)
            painted: Image = colour + shape[..., None] * (tone - colour)
            return painted
        left, top, right, bottom = teeth.box
        h, w = teeth.picture.shape[:2]
        px = ((u - left) / (right - left) * w - 0.5).astype(np.float32)
        py = ((v - top) / (bottom - top) * h - 0.5).astype(np.float32)
        seen = cv2.remap(teeth.picture, px, py, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        laid: Image = colour + seen[..., 3:] * (seen[..., :3] - colour)
        return laid

    def _lower_teeth(self, colour: Image, u: Image, v: Image, r: dict[str, float]) -> Image:
        """`v` is measured from where the lower lip's edge has gone."""
        half = self.puppet.arch[1]
        high = -0.012 - 0.030 * r["teeth"] + 0.030 * (u / half) ** 2
        shape = np.clip((v - high) / 0.012, 0, 1) * np.clip((half - np.abs(u)) / 0.03, 0, 1)
        tone = self._row(u * 1.25, 4.6)[..., None] * np.array(self.puppet.tooth) * 0.84
        shape = shape * np.clip(0.25 + 1.6 * r["teeth"], 0, 1)
        painted: Image = colour + shape[..., None] * (tone - colour)
        return painted

    def _glasses(self, image: NDArray[Any], glasses: Glasses, pose: _Pose) -> None:
        S = self.S / self.zoom
        around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        c, s = np.cos(around), np.sin(around)
        px = np.sign(c) * np.abs(c) ** (2 / glasses.power) * glasses.half[0] * S
        py = np.sign(s) * np.abs(s) ** (2 / glasses.power) * glasses.half[1] * S
        bridge_z = float(self.rest[168, 2]) - 0.10 * S
        lines = []
        for eye, side in zip(mesh.EYES, (-1, 1), strict=True):
            middle = self.rest[[eye.upper[0], eye.upper[-1]]].mean(0)
            rim = np.stack([middle[0] + side * 0.03 * S + px, middle[1] + 0.05 * S + py,
                            np.full_like(px, bridge_z)], 1)  # fmt: skip
            lines.append((rim, True))
            outer = rim[np.argmin(rim[:, 0] * -side)]
            temple = self.rest[127 if side < 0 else 356]
            lines.append((np.stack([outer, temple - np.array([0, 0.04 * S, 0])]), False))
        inner = [
            lines[0][0][np.argmax(lines[0][0][:, 0])],
            lines[2][0][np.argmin(lines[2][0][:, 0])],
        ]
        lines.append((np.stack(inner) - np.array([0, 0.05 * S, 0]), False))
        rims = np.zeros(image.shape[:2], np.uint8)
        glass = np.zeros(image.shape[:2], np.uint8)
        for line, closed in lines:
            here = self._turn(line.astype(np.float32), pose)[:, :2]
            corners = np.round(here * (1 << _SUBPIXEL)).astype(np.int32)
            width = max(1, round(glasses.thickness * self.S * (1 if closed else 0.8)))
            cv2.polylines(rims, [corners], closed, 255, width, cv2.LINE_AA, shift=_SUBPIXEL)
            if closed:
                cv2.fillPoly(glass, [corners], 255, cv2.LINE_AA, shift=_SUBPIXEL)
        if glasses.tint:
            tint = 1 - glasses.tint * glass.astype(np.float32)[..., None] / 255
            image[:] = (image * tint).astype(np.uint8)
        alpha = rims.astype(np.float32)[..., None] / 255
        image[:] = (image + alpha * (np.array(glasses.colour, np.float32) - image)).astype(np.uint8)


def warp(
    picture: NDArray[Any], points: Points, target: Points, triangles: NDArray[Any]
) -> NDArray[Any]:
    """Bring a picture from where its points are to where they shall be.

    Args:
        picture: (P, P) or (P, P, channels).
        points: (n, 2 or more), pixels.
        target: of the same points.
        triangles: (t, 3).
    """
    order = np.arange(len(triangles))
    source, aim = points[triangles, :2], target[triangles, :2].astype(np.float32)
    return _draw_mesh(picture, source, aim, order, picture.shape[0])


def _draw_mesh(
    texture: NDArray[Any],
    source: NDArray[Any],
    target: NDArray[Any],
    order: NDArray[Any],
    size: int,
) -> NDArray[Any]:
    """Draw triangles of a texture where they shall be, (t, 3, 2) each, in the given order."""
    flat = np.round(target * (1 << _SUBPIXEL)).astype(np.int32)
    which = np.zeros((size, size), np.int32)
    for i in order.tolist():
        cv2.fillConvexPoly(which, flat[i], i, shift=_SUBPIXEL)
    rows = _affine(target, source)[which]  # (size, size, 2, 3)
    line = np.arange(size, dtype=np.float32)
    lookup = rows[..., 0] * line[:, None] + rows[..., 1] * line[:, None, None] + rows[..., 2]
    picture: NDArray[Any] = cv2.remap(
        texture, lookup[..., 0], lookup[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return picture


def _affine(target: NDArray[Any], source: NDArray[Any]) -> NDArray[Any]:
    """Maps (t, 2, 3) that bring each target triangle (t, 3, 2) back to its source."""
    a, b, c = target[:, 0], target[:, 1], target[:, 2]
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) < 1e-3, 1e-3, area)
    sab, sac = source[:, 1] - source[:, 0], source[:, 2] - source[:, 0]
    dx = (sab * ac[:, 1:] - sac * ab[:, 1:]) / area[:, None]  # d source / d x
    dy = (sac * ab[:, :1] - sab * ac[:, :1]) / area[:, None]
    start = source[:, 0] - dx * a[:, :1] - dy * a[:, 1:]
    result: NDArray[Any] = np.stack([dx, dy, start], 1).transpose(0, 2, 1)
    return np.ascontiguousarray(result.astype(np.float32))


def _fit(source: Points, target: Points) -> NDArray[Any]:
    """The affine map (2, 3) that brings points (n, 2) nearest to others."""
    rows = np.concatenate([source, np.ones((len(source), 1), np.float32)], 1)
    found: NDArray[Any] = np.linalg.lstsq(rows, target, rcond=None)[0]
    return found.T
