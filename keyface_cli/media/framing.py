"""Which square of a portrait is animated: found around a face, or named; cut out upright."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.config import ModelConfig
from keyface_cli.errors import PortraitError, VideoError
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.faces import Face
from keyface_cli.media.search import choose_face, look_for_faces

logger = logging.getLogger(__name__)

UPRIGHT_DEG = 6.0  # a face that leans less is left as it is
MOST_SHOWN = 1024  # pixels across of a square whose pixels are moved; more are scaled from it
WHOLE = 0.9  # of a square picture: a crop that is so large takes all of it
LARGER = 1.12  # times its usual size: up to there networks know a face
ASIDE = 0.08  # of the square's side: so far from its usual place
LARGEST_SIDE = 3840  # of a result, pixels
SMALLEST_SIDE = 16  # that every encoder takes
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")
_NUMBERS = re.compile(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*([1-9]\d{0,5})\s*,\s*([1-9]\d{0,5})\s*")


@dataclass(frozen=True)
class FaceFrame:
    """Where a face is in the square pictures that a model was trained on.

    Args:
        face: the larger of the distances between the eyes and from the eyes to the mouth, as a
            fraction of the square's side.
        centre_y: the middle between eyes and mouth, as a fraction from the top.
    """

    face: float
    centre_y: float


# preset of a model -> its frame. The bundled model: the means of its avatars' geometry
# (avatars/). The published one: its authors' own crops of 17 photographs, where the face's size is
# 0.198 of the side (0.158 to 0.242) and its middle at 0.562 (0.485 to 0.623), medians.
FRAMES = {"mini": FaceFrame(0.262, 0.558)}
PUBLISHED = FaceFrame(0.20, 0.56)


def choose_crop(
    path: Path,
    picture: Image.Image,
    crop: str = "auto",
    face: str = "largest",
    frame: FaceFrame = PUBLISHED,
    require_face: bool = False,
) -> Crop:
    """Choose the square to animate, as `--crop` and `--face` say.

    Args:
        path: of the picture, for messages.
        picture: the whole picture.
        crop: "auto" (around a face; where none is upright, around one that lies on its side or
            upside down), "center", "none" (the whole picture) or "X,Y,W,H" in pixels; what is no
            square is completed to one.
        face: which of several: "largest", "left", "right" or a number, counted from the left.
        frame: how large and where the face is to be.
        require_face: refuse a picture without a face.

    Raises:
        PortraitError: no such crop or face; or none is found and one is required.
    """
    width, height = picture.size
    if crop == "auto" or require_face:
        faces = look_for_faces(path, picture, require_face)
        if crop == "auto" and faces:
            chosen = choose_face(path, faces, face)
            return _around(chosen, picture.size, frame)
    if crop in ("auto", "center"):
        return Crop(width / 2, height / 2, min(width, height))
    if crop == "none":
        return Crop(width / 2, height / 2, max(width, height))
    return _named(path, crop, picture.size)


class View(NamedTuple):
    """What of a square is shown, with more pixels than networks see or less around it.

    Args:
        picture: (3, S, S) in [-1, 1].
        place: left, top and side in the networks' square, as fractions of its side.
    """

    picture: NDArray[np.float32]
    place: tuple[float, float, float]


class CutOut(NamedTuple):
    """A square of a portrait, ready for a model of resolution R.

    Args:
        crop: where it is in the picture.
        portrait: what the networks see, (3, R, R) in [-1, 1].
        view: what the result shows; None is the same.
    """

    crop: Crop
    portrait: NDArray[np.float32]
    view: View | None


def cut_out(
    picture: Image.Image,
    config: ModelConfig,
    crop: str = "auto",
    face: str = "largest",
    require_face: bool = False,
    path: Path | None = None,
    scale: Callable[[Crop], float] = lambda crop: 0.0,
) -> CutOut:
    """Choose the square to animate and cut it out for a model.

    A model with a portrait decoder moves the portrait's own pixels: as many as the result shows,
    and in a square around the shown one where the face is larger than its networks know.

    Args:
        picture: RGB.
        config: the model.
        crop: as for `choose_crop`.
        face: as for `choose_crop`.
        require_face: refuse a picture without a face.
        path: of the picture, for messages.
        scale: how many pixels of the result a square of the picture fills, along a side.

    Raises:
        PortraitError: as for `choose_crop`.
    """
    place, R = path or Path("the portrait"), config.resolution
    frame = FRAMES.get(config.preset, PUBLISHED)
    chosen = choose_crop(place, picture, crop, face, frame, require_face)
    warn_of_few_pixels(place, chosen, R)
    if not config.portrait_decoder:
        return CutOut(chosen, to_network(cut(picture, chosen, R)), None)
    seen = chosen.around or chosen
    portrait = to_network(cut(picture, seen, R))
    S = max(R, min(round(min(scale(chosen), chosen.side)), MOST_SHOWN))
    if S == R and seen is chosen:
        return CutOut(chosen, portrait, None)
    shown = to_network(cut(picture, chosen, S))
    return CutOut(chosen, portrait, View(shown, chosen.within(seen)))


def parse_size(text: str) -> tuple[int, int]:
    """Return the box of pixels that `--size` means: N (a square) or WxH.

    Raises:
        VideoError: it is neither, or larger than 4K.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise VideoError(f"no such size: {text}", "a number of pixels, or WIDTHxHEIGHT")
    width = int(found[1])
    height = int(found[2] or width)
    if max(width, height) > LARGEST_SIDE or min(width, height) < SMALLEST_SIDE:
        raise VideoError(
            f"the size {text} is not between {SMALLEST_SIDE} and {LARGEST_SIDE} pixels"
        )
    return width, height


def to_network(square: Image.Image) -> NDArray[np.float32]:
    """Return an RGB square as (3, size, size) in [-1, 1]."""
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1.0)


def warn_of_few_pixels(path: Path, crop: Crop, size: int) -> None:
    """Say so where the square holds much less than the model draws."""
    if crop.side < size / 2:
        logger.warning(
            "%s: only %d pixels across, the model draws %d: the result will look soft",
            path,
            round(crop.side),
            size,
        )


def _around(face: Face, size: tuple[int, int], frame: FaceFrame) -> Crop:
    """The square in which a face is placed as in `frame`, moved and shrunk into the picture."""
    (x0, y0), (x1, y1) = face.eyes
    angle = face.lean_deg
    quarter = 90.0 * round(angle / 90)
    if abs(angle - quarter) < UPRIGHT_DEG:
        angle = quarter
    eyes = ((x0 + x1) / 2, (y0 + y1) / 2)
    length = max(math.dist(*face.eyes), math.dist(eyes, face.mouth), 1.0)
    side = length / frame.face
    # from the middle of the face along its own axis to the middle of the square
    down = (0.5 - frame.centre_y) * side
    turn = math.radians(angle)
    x = (eyes[0] + face.mouth[0]) / 2 - down * math.sin(turn)
    y = (eyes[1] + face.mouth[1]) / 2 + down * math.cos(turn)
    usual, short = Crop(x, y, side, angle, continued=True), min(size)
    if angle % 90:
        shown = replace(usual, side=min(side, short))
    elif side >= WHOLE * short and short == max(size):
        shown = Crop(short / 2, short / 2, short, angle)
    else:
        half = min(side, short) / 2
        x, y = min(max(x, half), size[0] - half), min(max(y, half), size[1] - half)
        shown = Crop(x, y, 2 * half, angle)
    moved = math.hypot(shown.x - usual.x, shown.y - usual.y)
    if side <= LARGER * shown.side and moved <= ASIDE * side:
        return shown
    return replace(shown, around=usual)


def _named(path: Path, text: str, size: tuple[int, int]) -> Crop:
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise PortraitError(f"no such crop: {text}", "auto, center, none, or X,Y,W,H in pixels")
    x, y, width, height = map(int, found.groups())
    if x + width > size[0] or y + height > size[1]:
        raise PortraitError(
            f"{path}: the crop {text} reaches past the picture, which is {size[0]} x {size[1]}"
        )
    side = max(width, height)
    middle = [x + width / 2, y + height / 2]
    for axis in (0, 1):  # the square around it stays in the picture where it can
        if side <= size[axis]:
            middle[axis] = min(max(middle[axis], side / 2), size[axis] - side / 2)
    return Crop(middle[0], middle[1], side)
