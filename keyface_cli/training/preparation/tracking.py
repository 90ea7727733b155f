"""Follow the one face of a video: stretches in which it is seen, and a calm crop around it.

Faces are looked for in every few frames. A stretch ends at a cut, where the face is lost or
leaves its place, and where a second face comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.config import FPS
from keyface_cli.media.crop import Crop
from keyface_cli.media.faces import Face, find_faces
from keyface_cli.media.framing import FaceFrame

EVERY = 5  # frames from one look for faces to the next
SECOND_FACE = 0.3  # share of the largest face's area from which another one counts
JUMP = 0.5  # of the face's size: farther than this between two looks it is another face
CUT = 30.0  # of 255: mean change of a thumbnail between two frames at a cut
CALM_S = 1.0  # standard deviation of the smoothing: the crop is to follow the body, not each nod
SMALLEST_FACE = 0.6  # of the size in which the model sees a face
_THUMBNAIL = 32


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of a video, all alike.

    Args:
        first: number of the first frame.
        last: number of the last one.
        looks: for each look in the stretch, its frame and the middle and size of the face: (n, 4)
            of frame, x, y and size in pixels; empty where `reason` is given.
        size: width and height of the video.
        reason: why there is no usable face: "no face", "several faces"; None where there is one.
    """

    first: int
    last: int
    looks: NDArray[np.float64]
    size: tuple[int, int]
    reason: str | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.last - self.first + 1


def stretches(frames: Iterator[NDArray[np.uint8]]) -> Iterator[Stretch]:
    """Divide a video into stretches, in the order of time.

    Args:
        frames: all of it, RGB (H, W, 3).
    """
    begun: _Open | None = None
    before: NDArray[np.float32] | None = None
    for number, frame in enumerate(frames):
        small = _thumbnail(frame)
        cut = before is not None and float(np.abs(small - before).mean()) > CUT
        before = small
        if number % EVERY and not cut and begun is not None:
            begun.last = number
            continue
        found = _look(frame)
        if begun is not None and (cut or not begun.goes_on(found)):
            yield begun.close()
            begun = None
        if begun is None:
            begun = _Open(number, (frame.shape[1], frame.shape[0]), found)
        begun.add(number, found)
    if begun is not None:
        yield begun.close()


Look = tuple[float, float, float] | str  # middle and size of the one face, or why there is none


class _Open:
    """A stretch that may go on."""

    def __init__(self, first: int, size: tuple[int, int], found: Look) -> None:
        self.first, self.last, self.size = first, first, size
        self.found = found
        self.looks: list[tuple[float, float, float, float]] = []

    def goes_on(self, found: Look) -> bool:
        if isinstance(found, str) or isinstance(self.found, str):
            return found == self.found
        (x0, y0, size0), (x1, y1, size1) = self.found, found
        return math.dist((x0, y0), (x1, y1)) < JUMP * size0 * 2 and 0.6 < size1 / size0 < 1.7

    def add(self, number: int, found: Look) -> None:
        self.last, self.found = number, found
        if not isinstance(found, str):
            self.looks.append((number, *found))

    def close(self) -> Stretch:
        reason = self.found if isinstance(self.found, str) else None
        looks = np.array(self.looks, dtype=np.float64).reshape(-1, 4)
        return Stretch(self.first, self.last, looks, self.size, reason)


def _look(frame: NDArray[np.uint8]) -> Look:
    faces = find_faces(Image.fromarray(frame))
    if not faces:
        return "no face"
    faces.sort(key=lambda face: -_area(face))
    if len(faces) > 1 and _area(faces[1]) > SECOND_FACE * _area(faces[0]):
        return "several faces"
    return measure(faces[0])


def _area(face: Face) -> int:
    return face.box[2] * face.box[3]


def measure(face: Face) -> tuple[float, float, float]:
    """Return a face's middle x and y and its size, as `framing.FaceFrame` measures them."""
    (x0, y0), (x1, y1) = face.eyes
    eyes = ((x0 + x1) / 2, (y0 + y1) / 2)
    size = max(math.dist(*face.eyes), math.dist(eyes, face.mouth), 1.0)
    return (eyes[0] + face.mouth[0]) / 2, (eyes[1] + face.mouth[1]) / 2, size


def crops(stretch: Stretch, frame: FaceFrame) -> list[Crop]:
    """Return the square of each frame of a stretch, upright and all of one size.

    The squares' middles follow the face smoothed over seconds, so that nods and glances stay in
    the picture; the face is as large as `frame` says, in the median.
    """
    at, x, y, size = stretch.looks.T
    times = np.arange(stretch.first, stretch.last + 1)
    side = min(float(np.median(size)) / frame.face, *map(float, stretch.size))
    middles = []
    for track, shift, length in (
        (x, 0.0, stretch.size[0]),
        (y, (0.5 - frame.centre_y) * side, stretch.size[1]),
    ):
        calm = _smooth(np.interp(times, at, track)) + shift
        middles.append(np.clip(calm, side / 2, length - side / 2))
    return [Crop(float(a), float(b), side) for a, b in zip(*middles, strict=True)]


def _smooth(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convolve with a Gaussian of `CALM_S`; ends are continued by point reflection."""
    deviation = CALM_S * FPS
    reach = min(round(3 * deviation), len(track) - 1)
    if reach < 1:
        return track
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    before = 2 * track[0] - track[reach:0:-1]
    after = 2 * track[-1] - track[-2 : -reach - 2 : -1]
    extended = np.concatenate([before, track, after])
    return np.convolve(extended, kernel / kernel.sum(), "valid")


def _thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = np.linspace(0, frame.shape[0] - 1, _THUMBNAIL).astype(int)
    columns = np.linspace(0, frame.shape[1] - 1, _THUMBNAIL).astype(int)
    small: NDArray[np.float32] = frame[np.ix_(rows, columns)].astype(np.float32)
    return small
