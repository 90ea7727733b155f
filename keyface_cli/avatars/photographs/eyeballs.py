"""Eyes without lids: what lies beneath the lids of a photograph, painted on from what shows."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars.photographs import mesh
from keyface_cli.avatars.photographs.mesh import Points


def uncover(picture: NDArray[Any], points: Points) -> NDArray[Any]:
    """Return the photograph with whole eyeballs in place of lids, (P, P, 3).

    White and iris go on beyond the lids' edges, the iris as its visible part goes around.
    """
    image = picture.astype(np.float32)
    for eye in mesh.EYES:
        _uncover(image, picture, points, eye)
    return np.clip(image, 0, 255).astype(np.uint8)


def _uncover(image: NDArray[Any], picture: NDArray[Any], points: Points, eye: mesh.Eye) -> None:
    S = mesh.eye_distance(points)
    upper, lower = points[list(eye.upper), :2], points[list(eye.lower), :2]
    outline = np.concatenate([upper, lower[-2:0:-1]])
    x0, y0 = np.floor(outline.min(0) - 0.2 * S).astype(int)
    x1, y1 = np.ceil(outline.max(0) + 0.2 * S).astype(int)
    x0, y0 = max(x0, 0), max(y0, 0)
    x1, y1 = min(x1, picture.shape[1]), min(y1, picture.shape[0])
    patch = picture[y0:y1, x0:x1].astype(np.float32)
    opened = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(opened, [np.round(outline - (x0, y0)).astype(np.int32)], 1)
    # lashes and the lids' shadow lie along the edge
    steps = max(1, round(0.022 * S))
    clear = cv2.erode(opened, np.ones((3, 3), np.uint8), iterations=steps).astype(bool)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    iris = points[eye.iris, :2]
    edge = points[[eye.iris + 1, eye.iris + 3], :2]
    radius = float(np.linalg.norm(edge[0] - edge[1]) / 2)
    distance = np.hypot(x - iris[0], y - iris[1]) / radius
    white = clear & (distance > 1.15)
    if white.sum() >= 8:
        tone = np.percentile(patch[white], 60, axis=0)
    else:
        tone = np.array([190.0, 182.0, 178.0])
    corner = np.clip(np.abs(x - iris[0]) / (0.30 * S), 0, 1)[..., None]
    ball = tone * (1 - 0.25 * corner**2)
    # the iris by its distance from the pupil, of what shows below the lid's shadow
    rings = np.linspace(0, 1.25, 26)
    known = clear & (distance < 1.3)
    if known.sum() >= 20:
        place = np.digitize(distance[known], rings) - 1
        profile = np.array(
            [
                patch[known][place == k].mean(0) if (place == k).any() else np.full(3, np.nan)
                for k in range(len(rings))
            ]
        )
        for channel in range(3):
            column = profile[:, channel]
            fine = ~np.isnan(column)
            profile[:, channel] = np.interp(rings, rings[fine], column[fine])
        painted = np.stack([np.interp(distance, rings, profile[:, c]) for c in range(3)], -1)
        within = np.clip((1.12 - distance) / 0.16, 0, 1)[..., None]
        ball = ball + within * (painted - ball)
    keep = cv2.GaussianBlur(clear.astype(np.float32), (0, 0), max(0.8, 0.008 * S))[..., None]
    keep = np.clip(keep * 1.4 - 0.2, 0, 1)
    near = cv2.dilate(opened, np.ones((3, 3), np.uint8), iterations=max(2, round(0.10 * S)))
    mixed = ball + keep * (patch - ball)
    share = cv2.GaussianBlur(near.astype(np.float32), (0, 0), 1.0)[..., None]
    image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - share) + mixed * share
