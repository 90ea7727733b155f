"""What both stages start from: noise that only the seed decides, and the anchor of small models."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def noise_for(kind: str, index: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw the unit Gaussian noise of one clip or segment.

    Every clip and segment has a generator of its own, on the CPU, seeded by a hash of all three
    names: what is sampled together, in which order and on which device changes nothing.

    Args:
        kind: "keyframes" or "interpolation".
        index: number of the clip or segment in the video.
        shape: (T, C, h, w).
        seed: the user's.

    Returns:
        float32 of `shape`, on the CPU.
    """
    digest = hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    return torch.randn(shape, generator=generator)


def anchor_for(parameterization: str, latents: Tensor, frames: int) -> Tensor | None:
    """Guess a clip from its clean latents: what an "anchored" network starts from.

    One latent, the identity's, is constant. Two, the keyframes at both ends, blend linearly.

    Args:
        parameterization: of the model, "anchored", or "v" for one without.
        latents: (B, 1, C, h, w) or (B, 2, C, h, w), scaled; zeros where they are dropped.
        frames: T, 2 or more.

    Returns:
        (B, T, C, h, w); None for "v".

    Raises:
        ValueError: another parameterization.
    """
    if parameterization == "v":
        return None
    if parameterization != "anchored":
        raise ValueError(f"unknown parameterization: {parameterization}")
    first, last = latents[:, :1], latents[:, -1:]
    along = torch.linspace(0, 1, frames, dtype=latents.dtype, device=latents.device)
    return torch.lerp(first, last, along.view(1, -1, 1, 1, 1))
