"""What the renderer paints on: head coordinates of every pixel, and soft-edged coverage.

Every shape is a signed distance (negative inside) turned into coverage over about one pixel, so
that edges are anti-aliased and everything moves smoothly with the rig. A layer only touches the
box of the picture that it can reach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.appearance import CAMERA_X, CAMERA_Y, ZOOMS, Appearance

ZOOM = 1.50  # the head fills the picture as a portrait crop does
CENTRE_Y = 0.045  # what lies in the middle of the picture, half-pictures below the origin
NOD = 0.055  # how far features slide at pitch 1
PIVOT_Y = 0.50  # the head leans around its neck

Box = tuple[slice, slice]  # rows and columns


class Canvas:
    """A batch of pictures in the making: where the head's coordinates lie, and how colour is laid.

    Args:
        appearance: the parameters of `appearance.sample_appearances`, (B,) and (B, 3).
        poses: (B, R) in the order of `rig.CONTROLS`.
        size: height and width in pixels.
        extras: those of `renderer.EXTRAS` to spend time on.
    """

    def __init__(
        self, appearance: Appearance, poses: Tensor, size: int, extras: frozenset[str]
    ) -> None:
        device = poses.device
        self.extras = extras
        self.size = size
        self.full: Box = slice(0, size), slice(0, size)  # the whole picture
        self.count = poses.shape[0]
        self.p = {
            name: (v[:, None, None] if v.dim() == 1 else v[:, :, None, None]).to(device)
            for name, v in appearance.items()
        }
        self.r = {name: poses[:, i, None, None] for i, name in enumerate(rig.NAMES)}
        line = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1)[None] / ZOOM
        zoom = self.p["zoom"]
        self.x = line[:, None, :] / zoom - self.p["camera_x"]  # (B, 1, size)
        self.y = line[:, :, None] / zoom - self.p["camera_y"] + CENTRE_Y  # (B, size, 1)
        self.pixel = 2.0 / size / ZOOM / zoom
        self.image = torch.empty(self.count, 3, size, size, device=device)
        self.face_x = 0.05 * self.r["yaw"]  # how far features slide when the face turns

    def box(self, x0: float, x1: float, y0: float, y1: float) -> Box:
        """The pixels whose head coordinates can lie in the given rectangle."""

        def pixels(low: float, high: float, camera: float) -> slice:
            """Wherever the camera stands, so that the box is the same for all heads."""
            a = min((low - camera) * zoom for zoom in ZOOMS)
            b = max((high + camera) * zoom for zoom in ZOOMS)
            first, last = (int((edge * ZOOM + 1) / 2 * self.size) for edge in (a, b))
            return slice(max(0, first), min(self.size, last + 1))

        return pixels(y0 - CENTRE_Y, y1 - CENTRE_Y, CAMERA_Y), pixels(x0, x1, CAMERA_X)

    def head(self, box: Box) -> tuple[Tensor, Tensor]:
        """Head coordinates (B, h, w) of the pixels of a box: the pose's lean and shift undone."""
        x = self.x[:, :, box[1]] - self.r["shift_x"]
        y = self.y[:, box[0]] - self.r["shift_y"] - PIVOT_Y
        cos, sin = torch.cos(self.r["tilt"]), torch.sin(self.r["tilt"])
        x, y = cos * x + sin * y, cos * y - sin * x + PIVOT_Y
        # a nod slides what lies in front, and leaves the outline
        front = torch.exp(-((x / 0.34) ** 2) - ((y - 0.08) / 0.36) ** 2)
        y = y - NOD * self.r["pitch"] * front
        if "painted" not in self.extras:
            return x, y
        # a brush does not draw straight lines
        p = self.p
        wave = torch.sin(x * 19 + p["phase"] + 2 * torch.sin(y * 13 + 2 * p["phase"]))
        other = torch.sin(y * 23 - p["phase"] + 2 * torch.sin(x * 11 - p["phase"]))
        return x + 0.006 * p["painted"] * other, y + 0.006 * p["painted"] * wave

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Coverage 0..1 of a signed distance, with an edge `softness` pixels wide."""
        return (0.5 - distance / (self.pixel * (1.0 + softness))).clamp(0.0, 1.0)

    def lay(self, box: Box, alpha: Tensor, colour: Tensor) -> None:
        """Composite a colour, (B, 3, 1, 1) or (B, 3, h, w), over a box with coverage (B, h, w)."""
        view = self.image[:, :, box[0], box[1]]
        view.lerp_(colour.expand_as(view), alpha.unsqueeze(1).expand_as(view))

    def colour(self, rgb: tuple[float, float, float]) -> Tensor:
        """An RGB colour in 0..1, (1, 3, 1, 1)."""
        return torch.tensor(rgb, device=self.image.device)[None, :, None, None]

    def spread(self, distance: Tensor) -> Tensor:
        """Coverage of a signed distance for each of three colours, (B, 3, h, w)."""
        return self.cover(distance).unsqueeze(1).expand(-1, 3, -1, -1)
