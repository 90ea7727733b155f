"""From a raw network F to a denoiser D: preconditioning after EDM (Karras et al. 2022, section 5).

A noisy latent is x = z + sigma n with n of unit variance. Latents, noise and denoised latents live
in the scaled latent domain (VAE latent times `latent_scale`), where z has about unit variance.
Tensors are (B, T, C, h, w): B clips of T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""F(c_in x (B, T, C, h, w), c_noise (B,)) -> (B, T, C, h, w), of any floating type."""


class Preconditioning(NamedTuple):
    """The four factors of one noise level, each of sigma's shape; D = c_skip x + c_out F."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor, parameterization: str = "v") -> Preconditioning:
    """Return the factors that surround the network at a noise level (SPEC 8).

    Args:
        sigma: noise levels > 0 of any shape; the factors keep its type (float64 stays float64).
        parameterization: "v", the published v-prediction for a data variance of 1; "anchored",
            where the network predicts the difference to a given latent: c_skip = 0, c_out = 1.

    Raises:
        ValueError: the parameterization is neither.
    """
    c_in = 1 / (sigma**2 + 1).sqrt()
    c_noise = sigma.log() / 4
    if parameterization == "v":
        return Preconditioning(c_in**2, -sigma * c_in, c_in, c_noise)
    if parameterization == "anchored":
        return Preconditioning(torch.zeros_like(sigma), torch.ones_like(sigma), c_in, c_noise)
    raise ValueError(f"unknown parameterization: {parameterization}")


def denoise(
    network: Network,
    x: Tensor,
    sigma: Tensor,
    *,
    parameterization: str = "v",
    anchor: Tensor | None = None,
) -> Tensor:
    """Estimate the clean latents of x with one call of the network.

    D = c_skip x + c_out F(c_in x, c_noise), plus the anchor where the parameterization has one.
    All but the network is computed in float32, whatever type F returns. Gradients flow, so that
    training uses this function too.

    Args:
        network: F, with its conditioning already bound.
        x: noisy latents (B, T, C, h, w).
        sigma: one noise level per clip (B,), or 0-d for all clips.
        parameterization: "v" or "anchored", see `precondition`.
        anchor: clean latents (B, T, C, h, w), or broadcastable to it, that an anchored network
            predicts the difference to, in the scaled domain; None otherwise.

    Returns:
        D, float32 (B, T, C, h, w).

    Raises:
        ValueError: the parameterization is unknown, or does not go with the anchor.
    """
    if (anchor is None) == (parameterization == "anchored"):
        raise ValueError("an anchor goes with the anchored parameterization, and only with it")
    x = x.float()
    per_clip = sigma.expand(x.shape[0])
    # Factors are computed at sigma's own precision and rounded once, to x's.
    c = Preconditioning(*(value.to(x) for value in precondition(per_clip, parameterization)))
    c_skip, c_out, c_in = (value.view(-1, 1, 1, 1, 1) for value in c[:3])
    denoised = c_out * network(c_in * x, c.c_noise).float()
    return denoised + (c_skip * x if anchor is None else anchor.float())
