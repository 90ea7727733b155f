"""Tracks: values every 10 ms, from which the poses of frames are taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keyface_cli.config import FPS

TICKS = 100  # a second


def smooth(track: Tensor, deviation_s: float) -> Tensor:
    """Average a track (ticks, C) with a Gaussian window; both ends go on as they are."""
    if not len(track):
        return track
    reach = math.ceil(3 * deviation_s * TICKS)
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / (deviation_s * TICKS)) ** 2)
    window = (window / window.sum())[None, None]
    rows = torch.nn.functional.pad(track.T[:, None], (reach, reach), mode="replicate")
    return torch.nn.functional.conv1d(rows, window)[:, 0].T


def at_frames(track: Tensor, num_frames: int, start_s: float = 0.0) -> Tensor:
    """Sample a track (ticks, C) at the middle of every frame: (N, C).

    Args:
        track: with at least one tick; its ends go on as they are.
        num_frames: N.
        start_s: when the track begins, seconds into the frames.
    """
    # tick k stands for the time (k + 0.5) / TICKS
    moments = (torch.arange(num_frames) + 0.5) / FPS - start_s
    place = (moments * TICKS - 0.5).clamp(0, len(track) - 1)
    lower = place.long().clamp(max=max(len(track) - 2, 0))
    part = (place - lower)[:, None]
    return torch.lerp(track[lower], track[(lower + 1).clamp(max=len(track) - 1)], part)
