"""From a raw network F to a denoiser D: preconditioning after EDM (Karras et al. 2022, section 5).

A noisy latent is x = z + sigma n with n of unit variance. Latents, noise and denoised latents live
in the scaled latent domain (VAE latent times `latent_scale`), where z has about unit variance.
Tensors are (B, T, C, h, w): B clips of T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""F(c_in x (B, T, C, h, w), c_noise (B,)) -> (B, T, C, h, w), of any floating type."""


class Anchor(NamedTuple):
    """A guess of the clean latents; an anchored network denoises the difference to it."""

    latents: Tensor  # (B, T, C, h, w), or broadcastable to it, in the scaled domain
    spread: float  # the standard deviation that the difference is taken to have


class Preconditioning(NamedTuple):
    """The four factors of one noise level, each of sigma's shape; D = c_skip x + c_out F."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor, spread: float = 1.0) -> Preconditioning:
    """Return the factors that surround the network at a noise level (SPEC 8).

    Args:
        sigma: noise levels > 0 of any shape; the factors keep its type (float64 stays float64).
        spread: standard deviation of what is denoised: 1 of latents, as published, less of their
            difference to an anchor. The network's input has unit variance and so has its target.
    """
    share = spread / (sigma**2 + spread**2).sqrt()
    c_in = 1 / (sigma**2 + 1).sqrt()  # the network sees whole latents in either case
    return Preconditioning(share**2, -sigma * share, c_in, sigma.log() / 4)


def denoise(network: Network, x: Tensor, sigma: Tensor, *, anchor: Anchor | None = None) -> Tensor:
    """Estimate the clean latents of x with one call of the network.

    D = c_skip x + c_out F(c_in x, c_noise), the published v-prediction; with an anchor a the same
    of the difference to it, D = a + c_skip (x - a) + c_out F(c_in x, c_noise). All but the network
    is computed in float32, whatever type F returns. Gradients flow, so that training uses this
    function too.

    Args:
        network: F, with its conditioning already bound.
        x: noisy latents (B, T, C, h, w).
        sigma: one noise level per clip (B,), or 0-d for all clips.
        anchor: for a network that was trained with one.

    Returns:
        D, float32 (B, T, C, h, w).
    """
    x = x.float()
    spread = 1.0 if anchor is None else anchor.spread
    # Factors are computed at sigma's own precision and rounded once, to x's.
    factors = precondition(sigma.expand(x.shape[0]), spread)
    c = Preconditioning(*(value.to(x) for value in factors))
    c_skip, c_out, c_in = (value.view(-1, 1, 1, 1, 1) for value in c[:3])
    predicted = c_out * network(c_in * x, c.c_noise).float()
    if anchor is None:
        return c_skip * x + predicted
    guess = anchor.latents.float()
    return guess + c_skip * (x - guess) + predicted
