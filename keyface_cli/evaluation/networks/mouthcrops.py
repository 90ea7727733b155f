"""From landmarks to the mouth crops that the lip reader takes, see `evaluation/README.md`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from keyface_cli.evaluation.networks.faces import fill_gaps, smooth

Points = NDArray[np.float64]  # (T, P, 2) x, y in pixels
CANVAS, CROP, SIDE = 256, 96, 88  # pixels: the upright face, the mouth in it, the network's input
MEAN, DEVIATION = 0.421, 0.165
GREY = np.array([0.2989, 0.587, 0.114])
FURTHEST = 53.0  # pixels of the mouth from the canvas's centre
# zero-based indices of the 68 points that hardly move, and where they lie in the mean face
STABLE = (28, 33, 36, 39, 42, 45, 48, 54)
MEAN_FACE = np.array(
    [
        (128.48854473271905, 106.92459505614299),
        (128.87017960974802, 137.30253355584708),
        (92.52245552947952, 94.36876013925871),
        (112.7724172413806, 94.94360869870115),
        (145.52511509158018, 94.5349986248377),
        (166.67710071343456, 93.56562295717796),
        (107.16760614090083, 157.19606764242243),
        (152.19284005377082, 156.98711116207943),
    ]
)
MOUTH = slice(48, 68)
# eye centres, nose tip and mouth centre of the same face: the four-point variant
FOUR_POINTS = np.array(
    [(102.0739, 94.2723), (156.3613, 93.5782), (129.0037, 135.9034), (129.3134, 157.8230)]
)


@dataclass(frozen=True)
class Alignment:
    """How each frame of a clip is turned upright and where its mouth is then.

    Args:
        affine: (T, 2, 3) source pixel to canvas.
        centre: (T, 2) x, y of the mouth in the canvas.
    """

    affine: NDArray[np.float64]
    centre: NDArray[np.float64]


def smooth_landmarks(points: NDArray[np.floating]) -> Points:
    """Smooth the shape over time, not the position: (T, P, 2) -> (T, P, 2)."""
    shape = smooth(points)
    return np.asarray(shape + (points.mean(axis=1) - shape.mean(axis=1))[:, None])


def four_points(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (T, 4, 2) of a detector's five (T, 5, 2): the mouth's corners become its centre."""
    mouth = points[:, 3:5].mean(axis=1, keepdims=True)
    return np.concatenate([points[:, :3], mouth], axis=1)


def align(landmarks: NDArray[np.floating]) -> Alignment:
    """Find the transform and the mouth of every frame.

    Args:
        landmarks: (T, 68, 2), or (T, 4, 2) from `four_points`; NaN where no face was found.

    Raises:
        ValueError: no frame has a face, a frame's points are degenerate, or a mouth lies too far
            from the face's middle; the message says which.
    """
    points = smooth_landmarks(fill_gaps(landmarks))
    if points.shape[1] == 68:
        sources, target = points[:, STABLE], MEAN_FACE
        mouths = points[:, MOUTH]
    elif points.shape[1] == 4:
        sources, target = points, FOUR_POINTS
        mouths = points[:, 3:4]
    else:
        raise ValueError(f"68 or 4 points are known, not {points.shape[1]}")
    affine, centre = [], []
    for t, (source, mouth) in enumerate(zip(sources, mouths, strict=True)):
        matrix, _ = cv2.estimateAffinePartial2D(
            source.astype(np.float32), target.astype(np.float32), method=cv2.LMEDS
        )
        if matrix is None:
            raise ValueError(f"the points of frame {t} determine no transform")
        affine.append(np.asarray(matrix, np.float64))
        centre.append((mouth @ matrix[:, :2].T + matrix[:, 2]).mean(axis=0))
        if np.abs(centre[-1] - CANVAS / 2).max() > FURTHEST:
            raise ValueError(f"the mouth of frame {t} is not in the middle of the face")
    return Alignment(np.stack(affine), np.stack(centre))


def crop_mouth(
    frame: NDArray[np.uint8], affine: NDArray[np.float64], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cut the upright mouth out of a frame: (H, W, 3) -> (96, 96, 3), 0 to 255, not rounded.

    Bilinear, without the rounding of places that OpenCV 4 does; outside is black.
    """
    first = np.rint(centre - CROP / 2).astype(int)
    x, y = np.meshgrid(np.arange(CROP) + first[0], np.arange(CROP) + first[1])
    inverse = np.linalg.inv(affine[:, :2])
    offset = np.stack([x, y], axis=-1) - affine[:, 2]
    place = offset @ inverse.T
    h, w = frame.shape[:2]
    grid = torch.from_numpy(2 * place / (w - 1, h - 1) - 1)  # -1 and 1: centres of outer pixels
    pixels = torch.tensor(frame, dtype=torch.float64).permute(2, 0, 1)
    crop = F.grid_sample(pixels[None], grid[None], align_corners=True)[0]
    return crop.permute(1, 2, 0).numpy()


def normalise(crop: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn a crop (96, 96, 3) into the network's input (88, 88)."""
    edge = (CROP - SIDE) // 2
    inner = crop[edge : edge + SIDE, edge : edge + SIDE] / 255
    return np.asarray((inner @ GREY - MEAN) / DEVIATION, np.float32)
