"""The losses of the UNets by the published recipe (stages/README.md).

Noise levels are log-normal, ln sigma ~ N(1.0, 1.2^2). The squared error of the denoised latents is
weighted by (sigma^2 + 1) / sigma^2, and the lower half of the picture, where the mouth is, counts
more. One frame of each clip is decoded through the frozen VAE and compared as a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.training.options import DiffusionOptions

WIDE_RANGE = (0.01, 700.0)
HIGH_RANGE = (50.0, 700.0)  # where sampling begins, and ends where steps are few
PictureDistance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures (B, 3, H, W) in [-1, 1] -> a distance for each pair, (B,)."""


class Region(NamedTuple):
    """A rectangle of a picture, in shares of its height and width."""

    top: float
    bottom: float
    left: float
    right: float

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Return its rows and columns in a picture, or in latents, of a size."""
        rows = slice(round(self.top * height), round(self.bottom * height))
        return rows, slice(round(self.left * width), round(self.right * width))


MOUTH = Region(0.56, 0.88, 0.28, 0.72)
EYES = Region(0.26, 0.50, 0.25, 0.75)  # and brows


def sample_sigmas(count: int, options: DiffusionOptions, generator: torch.Generator) -> Tensor:
    """Draw one noise level per clip, on the generator's device: (count,)."""
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device)
    sigmas = (options.log_sigma_mean + options.log_sigma_std * normal).exp()
    share, picked = torch.rand(2, count, generator=generator, device=device)
    sigmas = torch.where(picked < options.wide_sigmas, _log_uniform(WIDE_RANGE, share), sigmas)
    return torch.where(picked >= 1 - options.high_sigmas, _log_uniform(HIGH_RANGE, share), sigmas)


def _log_uniform(bounds: tuple[float, float], share: Tensor) -> Tensor:
    """Return the level at a share of the way between two, on the scale of ln sigma."""
    low, high = (math.log(bound) for bound in bounds)
    return (low + (high - low) * share).exp()


def noise_weight(sigma: Tensor, limit: float = math.inf) -> Tensor:
    """Return (sigma^2 + 1) / sigma^2 of each noise level (B,), at most `limit`."""
    return ((sigma**2 + 1) / sigma**2).clamp(max=limit)


def latent_loss(
    denoised: Tensor,
    target: Tensor,
    sigma: Tensor,
    *,
    lower_half: float = 1.0,
    mouth: float = 1.0,
    eyes: float = 1.0,
    weight_limit: float = math.inf,
) -> Tensor:
    """Return the weighted squared error of each frame.

    Args:
        denoised: D, (B, T, C, h, w).
        target: clean latents of the same shape.
        sigma: (B,).
        lower_half: factor of the rows from h / 2 on.
        mouth: further factor of the cells around the mouth.
        eyes: factor of the cells around eyes and brows, in the upper half.
        weight_limit: upper bound of the noise weight.

    Returns:
        (B, T): the mean over channels and positions.
    """
    weight = noise_weight(sigma, weight_limit)
    error = weight.view(-1, 1, 1, 1, 1) * (denoised - target) ** 2
    h, w = target.shape[-2:]
    cells = torch.ones(h, w, device=target.device)
    cells[h // 2 :] = lower_half
    cells[MOUTH.within(h, w)] *= mouth
    cells[EYES.within(h, w)] *= eyes
    return (error * cells).mean((2, 3, 4))


def picture_losses(
    decoded: Tensor,
    target: Tensor,
    sigma: Tensor,
    distance: PictureDistance | None = None,
    weight_limit: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Compare one decoded frame of each clip with its picture.

    Every clip is weighted by its own noise level. (The published code weights the perceptual
    distance of every clip by every clip's level, which differs for batches above 1.)

    Args:
        decoded: the denoised latents' pictures, (B, 3, H, W), clipped to [-1, 1] here.
        target: the pictures of those frames, (B, 3, H, W) in [-1, 1].
        sigma: (B,).
        distance: the perceptual one; None leaves it out.
        weight_limit: upper bound of the noise weight.

    Returns:
        The squared error and the perceptual distance, both 0-d means over the batch.
    """
    weight = noise_weight(sigma, weight_limit)
    decoded = decoded.clamp(-1, 1)
    squared = (weight * (decoded - target).square().mean((1, 2, 3))).mean()
    if distance is None:
        return squared, torch.zeros_like(squared)
    return squared, (weight * distance(decoded, target)).mean()


def explained(error: Tensor, motion: Tensor) -> Tensor:
    """Return the share of motion that is right, both mean squares; 0 where nothing moves."""
    return torch.where(motion > 0, 1 - error / motion, 0.0)
