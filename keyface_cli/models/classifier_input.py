"""How video classifiers are fed: which frames, how large, and with which normalisation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keyface_cli.errors import WeightsError

SETTINGS = "preprocessor_config.json"


def pick_frames(frames: int, count: int) -> list[int]:
    """Return `count` indices, evenly over a clip of `frames`, from the first to the last."""
    return [int(i) for i in np.linspace(0, max(frames - 1, 0), count).round()]


def prepare(frames: Tensor, side: int, mean: list[float], deviation: list[float]) -> Tensor:
    """Resize the shorter side, cut the middle out and normalise, as video classifiers are fed.

    Args:
        frames: uint8 (T, 3, H, W) RGB.
        side: of the network's picture.
        mean: of each channel.
        deviation: of each channel.

    Returns:
        float32 (1, T, 3, side, side).
    """
    h, w = frames.shape[2:]
    size = (
        (side, max(round(side * w / h), side)) if h <= w else (max(round(side * h / w), side), side)
    )
    x = F.interpolate(frames.float() / 255, size, mode="bilinear", antialias=True)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    shift, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, deviation))
    return ((x - shift) / scale)[None]


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def read_normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the three channels; ImageNet's where no file names them.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return IMAGENET
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        mean = [float(x) for x in settings.get("image_mean", IMAGENET[0])]
        deviation = [float(x) for x in settings.get("image_std", IMAGENET[1])]
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if len(mean) != 3 or len(deviation) != 3:
        raise WeightsError(f"{path}: image_mean and image_std need three values")
    return mean, deviation
