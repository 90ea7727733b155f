"""A square of a picture, and how it is cut out upright."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = (255, 255, 255)  # behind a transparent picture whose edge is all transparent
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Crop:
    """A square of a picture, in its pixels; it may reach past the edges.

    Args:
        x: of its middle, to the right.
        y: of its middle, down.
        side: its length.
        angle_deg: how far it leans to the right (clockwise).
        continued: outside the picture its edge goes on; else that has the edge's colour.
        around: a square of the same lean in which the face is as large and where networks know it;
            None is this one.
    """

    x: float
    y: float
    side: float
    angle_deg: float = 0.0
    continued: bool = False
    around: Crop | None = None

    def __str__(self) -> str:
        """Return it as `--crop` takes one."""
        half = self.side / 2
        left, top = round(self.x - half), round(self.y - half)
        return f"{left},{top},{round(self.side)},{round(self.side)}"

    def within(self, larger: Crop) -> tuple[float, float, float]:
        """Return left, top and side in a square of the same lean, as fractions of its side."""
        inverse = np.linalg.inv(larger.matrix(1)[:, :2])
        corner = self.matrix(1)[:, 2] - larger.matrix(1)[:, 2]
        left, top = inverse @ corner
        return float(left), float(top), self.side / larger.side

    def matrix(self, size: int) -> NDArray[np.float64]:
        """Return (2, 3): a point of the cut-out square of `size` pixels -> a point of the picture.

        Points are in pixels, (0.5, 0.5) the middle of the first.
        """
        scale, angle = self.side / size, math.radians(self.angle_deg)
        turn = scale * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        shift = np.array([self.x, self.y]) - turn @ np.full(2, size / 2)
        return np.concatenate([turn, shift[:, None]], axis=1)


def cut(picture: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Cut a square out of a picture, upright and antialiased.

    Args:
        picture: RGB.
        crop: the square.
        size: pixels of each side of the result.
    """
    if crop.angle_deg and crop.angle_deg % 90 == 0:
        upright = cut(picture, replace(crop, angle_deg=0.0), size)
        return upright.rotate(crop.angle_deg)  # exact: a square and a quarter turn
    if crop.angle_deg:
        # a larger square at twice the resolution, turned, and its upright middle
        around = replace(crop, side=crop.side * math.sqrt(2), angle_deg=0.0)
        margin = math.ceil(size * (math.sqrt(2) - 1))
        large = cut(picture, around, 2 * (size + margin))
        exact = crop.side / around.side * large.width
        turned = large.rotate(crop.angle_deg, Image.Resampling.BICUBIC)
        edge = (large.width - exact) / 2
        box = (edge, edge, large.width - edge, large.width - edge)
        return turned.resize((size, size), Image.Resampling.LANCZOS, box=box)
    left, top = crop.x - crop.side / 2, crop.y - crop.side / 2
    scale = size / crop.side
    inside = (
        max(0.0, left),
        max(0.0, top),
        min(float(picture.width), left + crop.side),
        min(float(picture.height), top + crop.side),
    )
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return Image.new("RGB", (size, size), edge_colour(picture))
    target = [round((inside[i] - (left, top)[i % 2]) * scale) for i in range(4)]
    for low, high in ((0, 2), (1, 3)):  # a thin strip keeps one pixel
        target[low] = min(target[low], size - 1)
        target[high] = min(size, max(target[high], target[low] + 1))
    extent = (target[2] - target[0], target[3] - target[1])
    part = picture.resize(extent, Image.Resampling.LANCZOS, box=inside, reducing_gap=3.0)
    if extent == (size, size):
        return part
    if crop.continued:
        margins = ((target[1], size - target[3]), (target[0], size - target[2]), (0, 0))
        return Image.fromarray(np.pad(np.asarray(part), margins, mode="edge"))
    square = Image.new("RGB", (size, size), edge_colour(picture))
    square.paste(part, (target[0], target[1]))
    return square


def edge_colour(picture: Image.Image, alpha: Image.Image | None = None) -> Colour:
    """Return the median colour, RGB in 0..255, of the opaque pixels on a picture's border.

    Args:
        picture: RGB.
        alpha: of its size, 255 where it is opaque; None is everywhere.
    """
    width, height = picture.size
    sides = [(0, 0, width, 1), (0, height - 1, width, height)]
    sides += [(0, 0, 1, height), (width - 1, 0, width, height)]
    border = np.concatenate([np.asarray(picture.crop(side)).reshape(-1, 3) for side in sides])
    if alpha is not None:
        opacity = np.concatenate([np.asarray(alpha.crop(side)).ravel() for side in sides])
        border = border[opacity == 255]
        if not len(border):
            return WHITE
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    return red, green, blue
