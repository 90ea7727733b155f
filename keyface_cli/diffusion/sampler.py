"""Noise schedules and the deterministic Euler sampler.

A schedule is a falling list of noise levels that ends in 0; each pair of neighbours is one update,
so n levels before the 0 cost n evaluations of the denoiser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x (B, T, C, h, w), sigma 0-d) -> estimate of the clean latents (B, T, C, h, w)."""

# Align Your Steps (Sabour et al. 2024), the ten-step schedule of Stable Video Diffusion
AYS_SIGMAS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def ays_sigmas(steps: int, sigma_min: float = AYS_SIGMAS[-1]) -> Tensor:
    """Return the Align-Your-Steps schedule for a number of steps.

    The table has eleven levels. Ten steps and eleven both mean the table itself, hence eleven
    updates, as in the published sampler. Any other number means that many levels, read off the
    table by linear interpolation of ln sigma at equal distances from its beginning to `sigma_min`
    (one step: the first level alone).

    Args:
        steps: 1 or more.
        sigma_min: the last level before the 0, one between the table's ends.

    Returns:
        float64, (levels + 1,): falling, the last 0.

    Raises:
        ValueError: fewer than 1 step.
    """
    _check_steps(steps)
    if steps in (10, 11) and sigma_min == AYS_SIGMAS[-1]:  # the table, with no rounding by exp(ln)
        return torch.tensor([*AYS_SIGMAS, 0.0], dtype=torch.float64)
    places, heights = np.arange(len(AYS_SIGMAS)), np.log(AYS_SIGMAS)
    last = np.interp(-math.log(sigma_min), -heights, places)
    levels = np.exp(np.interp(np.linspace(0, last, steps), places, heights))
    return torch.from_numpy(np.append(levels, 0.0))


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0
) -> Tensor:
    """Return the schedule of Karras et al. 2022 (equation 5): even steps in sigma^(1/rho).

    Args:
        steps: 1 or more, the number of levels (one step: `sigma_max` alone).
        sigma_min: last level before the 0, > 0.
        sigma_max: first level.
        rho: how much the steps shorten towards `sigma_min`; 1 is linear in sigma.

    Returns:
        float64, (steps + 1,): falling, the last 0.

    Raises:
        ValueError: fewer than 1 step.
    """
    _check_steps(steps)
    levels = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
    return torch.from_numpy(np.append(levels, 0.0))


def sigmas_for(schedule: str, steps: int, sigma_min: float = 0.002) -> Tensor:
    """Return the schedule named "ays" or "karras", see `ays_sigmas` and `karras_sigmas`.

    Raises:
        ValueError: the name is neither, or fewer than 1 step.
    """
    if schedule == "ays":
        return ays_sigmas(steps, sigma_min)
    if schedule == "karras":
        return karras_sigmas(steps, sigma_min)
    raise ValueError(f"unknown schedule: {schedule}")


def sample_euler(
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate the probability-flow ODE from noise to clean latents with Euler's method.

    dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 3 and algorithm 1 without
    its second-order correction); no noise is added on the way.

    Args:
        denoise: D, guidance included.
        noise: unit Gaussian noise (B, T, C, h, w).
        sigmas: falling noise levels that end in 0, on the CPU.
        callback: called after each update with the number of updates done, from 1, and the
            latents.

    Returns:
        Latents of noise's shape, float32.
    """
    levels: list[float] = sigmas.tolist()
    x = noise.float() * math.sqrt(1 + levels[0] ** 2)
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        slope = (x - denoise(x, sigmas[step])) / sigma
        x = x + (following - sigma) * slope
        if callback is not None:
            callback(step + 1, x)
    return x


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, found {steps}")
