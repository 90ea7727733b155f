"""Pairs of pictures for the portrait decoder: a head as a portrait, and the same head moved.

A shard is a folder of arrays, for each of n heads: `portraits.npy` (n, H, W, 3), `stills.npy`
(n, K, H, W, 3) with other faces and the portrait's place of head and eyes, `targets.npy`
(n, K, H, W, 3), the same faces with the head and eyes moved and the lids closed, uint8, and
`motions.npy` float32 (n, K, len(MOTION)), by how much.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import draw_head, motion_of
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.pictures import random_poses
from keyface_cli.config import MOTION
from keyface_cli.files import making_folder, save_array

logger = logging.getLogger(__name__)

FACES = 3  # K
# greatest difference between a picture and its portrait in each control of `MOTION`
REACH = (1.0, 0.8, 0.6, 0.8, 0.6, 0.09, 0.05, 0.04)


def write_pairs(folder: Path, count: int, seed: int, size: int, cast: Cast | None = None) -> None:
    """Draw pairs of `count` heads into a folder; it is whole or not there.

    Args:
        folder: of the shard.
        count: heads, n.
        seed: of all chance.
        size: of a picture in pixels.
        cast: whose photographs move; None draws heads instead.

    Raises:
        KeyFaceError: it cannot be written.
    """
    with making_folder(folder) as part:
        _draw_pairs(part, count, torch.Generator().manual_seed(seed), size, cast)


def _draw_pairs(
    folder: Path, count: int, generator: torch.Generator, size: int, cast: Cast | None
) -> None:
    def array(name: str, *shape: int) -> Any:
        path = folder / f"{name}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    portraits = array("portraits", count, size, size, 3)
    stills = array("stills", count, FACES, size, size, 3)
    targets = array("targets", count, FACES, size, size, 3)
    motions = np.empty((count, FACES, len(MOTION)), np.float32)
    for i in range(count):
        draw = draw_head(generator, size, cast)
        portrait, faces, moved = _poses(generator)
        frames = draw(torch.cat([portrait, faces, moved]))
        portraits[i], stills[i], targets[i] = frames[0], frames[1 : FACES + 1], frames[FACES + 1 :]
        motions[i] = motion_of(moved - faces).numpy()
        if i % 50 == 49:
            logger.info("drew pairs of %d of %d heads", i + 1, count)
    for pictures in (portraits, stills, targets):
        pictures.flush()
    save_array(folder / "motions.npy", motions)


def _poses(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a portrait's pose (1, R), faces (K, R) in its place, and the same moved (K, R)."""

    def chance(probability: float, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) < probability).float()

    places = [rig.INDEX[name] for name in MOTION]
    low = torch.tensor([control.low for control in rig.CONTROLS])[places]
    high = torch.tensor([control.high for control in rig.CONTROLS])[places]
    reach = torch.tensor(REACH)
    rest = torch.tensor(rig.REST)
    drawn = random_poses(1 + FACES, generator)
    portrait = rest[None].clone()
    if chance(0.4) > 0:  # few people are photographed without any expression
        portrait = torch.lerp(portrait, drawn[:1], 0.6 * float(torch.rand((), generator=generator)))
    held = 0.6 * (2 * torch.rand(len(places), generator=generator) - 1) * reach * chance(0.45)
    held[0] = 0.0  # nobody blinks in a portrait
    held = held.clamp(low, high)
    portrait[:, places] = held
    faces = drawn[1:]
    # some faces are the portrait's own, so that what does not move stays
    faces = torch.where(chance(0.12, FACES, 1) > 0, portrait, faces)
    faces[:, places] = held
    moved = faces.clone()
    by = (2 * torch.rand(FACES, len(places), generator=generator) - 1) * reach
    by = by * torch.rand(FACES, 1, generator=generator) ** 0.5 * chance(0.75, FACES, 1)
    closed = torch.rand(FACES, generator=generator) * chance(0.4, FACES)
    by[:, 0] = torch.where(chance(0.15, FACES) > 0, 1.0, closed)
    moved[:, places] = (held + by).clamp(low, high)
    return portrait, faces, moved
