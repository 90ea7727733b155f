"""Pictures for the VAE: random avatars in random poses, rendered once into one large array."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keyface_cli.avatars import appearance, renderer, rig
from keyface_cli.avatars.photographs.casting import Cast, draw_puppet
from keyface_cli.avatars.photographs.puppet import render

logger = logging.getLogger(__name__)
RENDER_BATCH = 4  # on a CPU larger batches fall out of the cache and are slower


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """Draw poses that cover the whole rig, mouth shapes above all: (count, R) in rig order."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def sometimes(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).float()

    jaw = uniform(0, 1) ** 1.5 * sometimes(0.75)
    values = {
        "jaw": jaw,
        "width": uniform(-0.6, 1.0),
        "round": uniform(0, 1) * sometimes(0.35),
        "press": uniform(0, 1) * (jaw < 0.05).float(),
        "teeth": uniform(0, 1) * sometimes(0.7),
        "tongue": uniform(0, 1) * sometimes(0.3),
        "smile": uniform(-0.8, 1.0),
        "brow": uniform(-0.7, 1.0),
        "furrow": uniform(-1.0, 1.0) * sometimes(0.5),
        "lid": uniform(-0.25, 0.45),
        "gaze_x": uniform(-0.8, 0.8),
        "gaze_y": uniform(-0.6, 0.6),
        "tilt": uniform(-0.10, 0.10),
        "shift_x": uniform(-0.05, 0.05),
        "shift_y": uniform(-0.05, 0.05),
        "yaw": uniform(-0.8, 0.8),
        "pitch": uniform(-0.8, 0.8),
        "blink": uniform(0.2, 1.0) * sometimes(0.15),
    }
    return torch.stack([values[name] for name in rig.NAMES], 1)


@torch.inference_mode()
def render_uint8(people: appearance.Appearance, poses: Tensor, size: int) -> np.ndarray:
    """Render poses (B, R) of B appearances in small batches: uint8 (B, size, size, 3)."""
    parts = []
    for start in range(0, len(poses), RENDER_BATCH):
        window = slice(start, start + RENDER_BATCH)
        image = renderer.render(appearance.select(people, window), poses[window], size)
        parts.append((image * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def render_pool(
    path: Path,
    count: int,
    size: int,
    seed: int,
    cast: Cast | None = None,
    photo_share: float = 0.0,
) -> None:
    """Render `count` random pictures to a `.npy` file: uint8 (count, size, size, 3).

    Args:
        path: of the file.
        count: pictures.
        size: of a picture in pixels.
        seed: of all chance.
        cast: whose photographs move in some of them; None draws all heads.
        photo_share: share of the pictures that are photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    for start in range(0, count, 64):
        n = min(64, count - start)
        poses = random_poses(n, generator)
        people = appearance.sample_appearances(n, generator)
        pool[start : start + n] = render_uint8(people, poses, size)
        if cast is not None:
            for i in np.flatnonzero(torch.rand(n, generator=generator).numpy() < photo_share):
                puppet = draw_puppet(cast, np.random.default_rng(seed * 100_003 + start + int(i)))
                pool[start + i] = render(puppet, poses[i : i + 1].numpy(), size)[0]
        logger.info("rendered %d of %d pictures", start + n, count)
    pool.flush()
