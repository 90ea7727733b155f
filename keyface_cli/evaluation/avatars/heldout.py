"""Heads that no training has seen, of either kind: drawn ones, and photographs that move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from keyface_cli.avatars import appearance, rig
from keyface_cli.avatars.heads import DrawFrames, draw_head
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.pictures import render_uint8


@dataclass(frozen=True)
class HeldOut:
    """Heads that are numbered.

    Args:
        count: how many.
        seed: of the drawn ones.
        size: of their pictures in pixels.
        cast: the held-out people whose photographs move, each in turn and as photographed; None
            draws heads instead.
    """

    count: int
    seed: int
    size: int
    cast: Cast | None = None

    def head(self, index: int) -> DrawFrames:
        """Return what draws poses of one head."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.cast is not None:
            people = self.cast.people
            alone = replace(self.cast, people=[people[index % len(people)]])
            return draw_head(generator, self.size, alone, plain=True)
        who = appearance.select(appearance.sample_appearances(self.count, generator), [index])
        return lambda poses: render_uint8(
            appearance.select(who, [0] * len(poses)), poses, self.size
        )


def portrait_of(draw: DrawFrames) -> NDArray[np.uint8]:
    """Draw a head at rest: (size, size, 3)."""
    picture: NDArray[np.uint8] = draw(torch.tensor([rig.REST]))[0]
    return picture
