"""The face mesh: MediaPipe's 478 landmarks, the points around them, and their triangles.

Points are in pixels of a photograph, x to the right, y down, z away from the camera, (n, 3). The
mouth and both eyes are holes of the mesh: what is seen through them is drawn behind it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

LANDMARKS = 478
Points = NDArray[Any]

# landmarks from the picture's left to its right; the first and the last of a lip are its corners
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
# between them, corners included
UPPER_LIP = (
    76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306,
    62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292,
)  # fmt: skip
LOWER_LIP = (
    77, 90, 180, 85, 16, 315, 404, 320, 307,
    96, 89, 179, 86, 15, 316, 403, 319, 325,
)  # fmt: skip
CORNERS = (78, 62, 76, 61, 308, 292, 306, 291)
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
CHIN, NOSE_TIP, NOSE_BASE = 152, 1, 2
STEADY = (6, 168, 197, 195, 8, 33, 133, 362, 263, 10, 127, 356)  # moved by no expression


class Eye(NamedTuple):
    """Landmarks of one eye, in the order of the picture from left to right."""

    upper: tuple[int, ...]  # the lid's edge, with both corners
    lower: tuple[int, ...]
    above: tuple[int, ...]  # the fold above each inner point of `upper`
    iris: int  # its middle; the next four lie on its edge


EYES = (
    Eye(
        (33, 246, 161, 160, 159, 158, 157, 173, 133),
        (33, 7, 163, 144, 145, 153, 154, 155, 133),
        (247, 30, 29, 27, 28, 56, 190),
        468,
    ),
    Eye(
        (362, 398, 384, 385, 386, 387, 388, 466, 263),
        (362, 382, 381, 380, 374, 373, 390, 249, 263),
        (414, 286, 258, 257, 259, 260, 467),
        473,
    ),
)
BROWS = (
    (70, 63, 105, 66, 107, 46, 53, 52, 65, 55),
    (300, 293, 334, 296, 336, 276, 283, 282, 295, 285),
)

_IRISES = range(468, 478)
_GRID = 13  # points on a side of the grid around the face
_REACH = (-0.35, 1.35)  # where the grid ends, in sides of the photograph


def eye_distance(points: Points) -> float:
    """Pixels from one iris to the other: the unit of all movements."""
    return float(np.linalg.norm(points[EYES[0].iris, :2] - points[EYES[1].iris, :2]))


def mouth_centre(points: Points) -> Points:
    """(2,): the middle between the inner lips."""
    middle: Points = (points[13, :2] + points[14, :2]) / 2
    return middle


def flattened(points: Points) -> Points:
    """Bring the sides of a face nearer to its front, so that a turn does not fold the mesh.

    Args:
        points: (n, 3), landmarks first.
    """
    S = eye_distance(points)
    start, room = 0.10 * S, 0.22 * S
    beyond = np.clip(points[:, 2] - start, 0, None)
    z = np.where(points[:, 2] > start, start + room * (1 - np.exp(-beyond / room)), points[:, 2])
    result: Points = np.concatenate([points[:, :2], z[:, None]], 1).astype(np.float32)
    return result


def outer_points(points: Points, size: int) -> Points:
    """Return the points around a face that carry hair, neck and background, (m, 3).

    They lie on a grid that leaves out the face. Hair and ears lie behind the face's edge.

    Args:
        points: the landmarks, (478, 3).
        size: of the photograph in pixels.
    """
    line = np.linspace(*_REACH, _GRID) * size
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    middle = points[list(OVAL), :2].mean(0)
    hull = (middle + (points[list(OVAL), :2] - middle) * 1.12).astype(np.float32)
    outside = np.array([cv2.pointPolygonTest(hull, tuple(map(float, p)), False) < 0 for p in grid])
    ring = middle + (points[list(OVAL[::2]), :2] - middle) * 1.22
    flat = np.concatenate([ring, grid[outside]]).astype(np.float32)
    edge = points[list(OVAL)]
    # as deep as the edge of the face in the same direction
    direction = np.arctan2(*(edge[:, :2] - middle).T[::-1])
    order = np.argsort(direction)
    depth = np.interp(
        np.arctan2(*(flat - middle).T[::-1]),
        direction[order],
        edge[order, 2],
        period=2 * np.pi,
    )
    return np.concatenate([flat, depth[:, None]], 1).astype(np.float32)


@cache
def _face_triangles(key: bytes) -> NDArray[Any]:
    points = np.frombuffer(key, np.float32).reshape(-1, 2).copy()
    S = float(np.linalg.norm(points[468] - points[473]))
    # opened, so that no triangle joins both lips
    lower = [*LOWER_INNER[1:-1], *LOWER_OUTER[1:-1], *LOWER_LIP]
    middle = (points[13] + points[14]) / 2
    below = points[:, 1] > middle[1] + 0.02 * S
    below[list(UPPER_INNER + UPPER_LIP + UPPER_OUTER)] = False
    below[lower] = True
    width = np.abs(points[list(CORNERS), 0] - middle[0]).max()
    profile = np.clip(1 - (np.abs(points[:, 0] - middle[0]) / width) ** 2, 0, None) ** 0.5
    points[:, 1] += below * (0.12 + 0.4 * profile) * S
    keep = [i for i in range(len(points)) if i not in _IRISES]
    index = _delaunay(points[keep])
    triangles = np.array(keep, np.int32)[index]
    holes = [np.array(UPPER_INNER + LOWER_INNER[-2:0:-1])]
    holes += [np.array(eye.upper + eye.lower[-2:0:-1]) for eye in EYES]
    for hole in holes:
        outline = points[hole].astype(np.float32)
        centres = points[triangles].mean(1)
        inside = [cv2.pointPolygonTest(outline, tuple(map(float, c)), False) > 0 for c in centres]
        triangles = triangles[~np.array(inside)]
    result: NDArray[Any] = triangles
    return result


def triangulate(points: Points) -> NDArray[Any]:
    """Join a mean face and the points around it to triangles, (t, 3), without mouth and eyes.

    Args:
        points: (n, 3), the 478 landmarks first.
    """
    return _face_triangles(np.ascontiguousarray(points[:, :2], np.float32).tobytes())


def _delaunay(points: Points) -> NDArray[Any]:
    """Delaunay triangles of points (n, 2) as positions (t, 3)."""
    low, high = points.min(0) - 10, points.max(0) + 10
    size = high - low
    division = cv2.Subdiv2D((float(low[0]), float(low[1]), float(size[0]), float(size[1])))
    places = {}
    for i, (x, y) in enumerate(points):
        places[division.insert((float(x), float(y)))] = i
    found = []
    for corners in np.asarray(division.getTriangleList()).reshape(-1, 3, 2):
        if (corners >= low).all() and (corners <= high).all():
            found.append([int(np.argmin(((points - c) ** 2).sum(1))) for c in corners])
    return np.array(found, np.int32)
