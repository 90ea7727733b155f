"""What is measured of a face besides what the reader sees: blinks, the head's way, sharpness."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.scene import Scene
from keyface_cli.config import FPS

Frames = NDArray[np.uint8]  # (N, H, W, 3)

# top, bottom, left and right of what is looked at, shares of the picture
MOUTH_BOX = (0.58, 0.84, 0.33, 0.67)
FACE_BOX = (0.30, 0.62, 0.28, 0.72)  # eyes and nose, which speech moves least
AROUND = 25  # frames whose median says where lids are when they do not blink
SHUT, OPEN = 0.5, 0.3  # of the way to closed lids: where a blink begins and where it has ended
FULL = 0.9  # of the rig's blink
REACH = 2  # frames by which a blink may be early or late


def closing(lids: Tensor) -> Tensor:
    """Return how far lids have come down, of their way from where they are around to closed.

    Args:
        lids: (N,) as read from frames; 1 is closed.

    Returns:
        (N,); 0 is no blink, 1 a full one.
    """
    reach = AROUND // 2
    padded = torch.nn.functional.pad(lids[None, None], (reach, reach), mode="replicate")[0, 0]
    around = padded.unfold(0, AROUND, 1).median(1).values
    return (lids - around) / (1 - around).clamp(min=0.2)


def blinks_a_minute(lids: Tensor) -> float:
    """Count how often lids (N,) come at least half way down, a minute."""
    count, shut = 0, False
    for share in closing(lids).tolist():
        count += not shut and share > SHUT
        shut = share > (OPEN if shut else SHUT)
    return count * 60 * FPS / len(lids)


def lid_closure(scene: Scene, lids: Tensor) -> float:
    """Return how far lids (N,) close at the blinks of a scene, 0 to 1; NaN without any blink."""
    blink, share = scene.rig[:, rig.INDEX["blink"]], closing(lids)
    at = [i for i, value in enumerate(blink.tolist()) if value > FULL]
    reached = [float(share[max(0, i - REACH) : i + REACH + 1].max()) for i in at]
    return float(np.mean(reached)) if reached else float("nan")


def head_motion(frames: Frames, portrait: Frames) -> float:
    """Return how far the middle of a face moves: the deviation of its place over the frames.

    The place is that of the box around eyes and nose against the portrait, by phase correlation.

    Args:
        frames: (N, H, W, 3).
        portrait: (H, W, 3).

    Returns:
        Percent of the picture's side.
    """
    rest = _grey(portrait, FACE_BOX)
    window = cv2.createHanningWindow(rest.shape[::-1], cv2.CV_32F)
    path = [cv2.phaseCorrelate(rest, _grey(frame, FACE_BOX), window)[0] for frame in frames]
    return float(100 * np.sqrt(np.var(np.array(path), axis=0).sum()) / frames.shape[2])


def mouth_sharpness(frames: Frames, truth: Frames) -> float:
    """Return the gradient energy in the mouth's box over that of the truth, both (N, H, W, 3)."""
    return float(_energy(frames) / max(_energy(truth), 1e-9))


def _energy(frames: Frames) -> float:
    """Mean of the squared gradients of grey."""
    total = 0.0
    for frame in frames:
        grey = _grey(frame, MOUTH_BOX)
        total += float(np.square(np.diff(grey, axis=0)).mean())
        total += float(np.square(np.diff(grey, axis=1)).mean())
    return total / len(frames)


def _grey(picture: Frames, box: tuple[float, float, float, float]) -> NDArray[np.float32]:
    h, w = picture.shape[:2]
    top, bottom, left, right = box
    part = picture[int(top * h) : int(bottom * h), int(left * w) : int(right * w)]
    grey: NDArray[np.float32] = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey
