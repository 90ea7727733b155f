"""Heads to draw, of either kind: drawn ones, and photographs that move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.avatars import appearance, rig
from keyface_cli.avatars.photographs.casting import Cast, draw_puppet
from keyface_cli.avatars.photographs.puppet import render
from keyface_cli.avatars.pictures import render_uint8
from keyface_cli.config import MOTION

DrawFrames = Callable[[Tensor], NDArray[np.uint8]]
"""Draws poses (B, R) in rig order of one head: (B, H, W, 3) RGB."""


def draw_head(
    generator: torch.Generator, size: int, cast: Cast | None = None, *, plain: bool = False
) -> DrawFrames:
    """Draw a new head.

    Args:
        generator: the source of chance.
        size: of its pictures in pixels.
        cast: whose photographs move; None draws a head instead.
        plain: a photograph as it is, see `photographs.casting.draw_puppet`.
    """
    if cast is None:
        people = appearance.sample_appearances(1, generator)
        return lambda poses: render_uint8(appearance.select(people, [0] * len(poses)), poses, size)
    seed = int(torch.randint(2**62, (), generator=generator))
    puppet = draw_puppet(cast, np.random.default_rng(seed), plain=plain)
    return lambda poses: render(puppet, poses.numpy(), size)


def still(poses: Tensor) -> Tensor:
    """Return poses (..., R) with head, eyes and lids as at rest; what a face says stays.

    This is what latents show: a portrait decoder moves the rest.
    """
    places = [rig.INDEX[name] for name in MOTION]
    stilled = poses.clone()
    stilled[..., places] = torch.tensor(rig.REST)[places]
    return stilled


def motion_of(poses: Tensor) -> Tensor:
    """Return the movements in poses (..., R) that `still` takes away: (..., len(MOTION))."""
    return poses[..., [rig.INDEX[name] for name in MOTION]]
