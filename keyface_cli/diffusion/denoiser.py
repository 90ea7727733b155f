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
"""F(c_in x (B, T, C, h, w), c_noise (B,)) -> (B, T, C, h, w), or 2 C channels: any float type."""


class Preconditioning(NamedTuple):
    """The four factors of one noise level, each of sigma's shape; D = c_skip x + c_out F."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """Return the factors that surround the network at a noise level.

    They are those of v-prediction for a data variance of 1.

    Args:
        sigma: noise levels > 0 of any shape; the factors keep its type (float64 stays float64).
    """
    c_in = 1 / (sigma**2 + 1).sqrt()
    return Preconditioning(c_in**2, -sigma * c_in, c_in, sigma.log() / 4)


def denoise(network: Network, x: Tensor, sigma: Tensor, *, anchor: Tensor | None = None) -> Tensor:
    """Estimate the clean latents of x with one call of the network.

    As published, D = c_skip x + c_out F(c_in x, c_noise). An anchored network has twice the
    channels, (F, G), and adds to an anchor a, a guess of the clean latents,

        D = a + sigmoid(G) c_skip (x - a) + F.

    Where nothing moves away from a, the gate keeps the noise out; where something does, it lets
    what is clean already pass, and the network need not copy it through its own channels.

    All but the network is computed in float32, whatever type it returns. Gradients flow, so that
    training uses this function too.

    Args:
        network: with its conditioning already bound.
        x: noisy latents (B, T, C, h, w).
        sigma: one noise level per clip (B,), or 0-d, best on the CPU, for all clips.
        anchor: a, in x's shape or broadcastable to it, for a network that was trained with one.

    Returns:
        D, float32 (B, T, C, h, w).
    """
    x = x.float()
    # Factors are computed at sigma's own precision and rounded once, to x's. One level for all
    # clips stays a number: copying it to a GPU would wait until all that was asked of it is done.
    c = Preconditioning(*(value.to(x.dtype) for value in precondition(sigma)))
    if sigma.dim() == 0:
        c_skip, c_out, c_in = c[:3]
        c_noise = x.new_full((len(x),), c.c_noise.item())
    else:
        c_skip, c_out, c_in = (value.to(x.device).view(-1, 1, 1, 1, 1) for value in c[:3])
        c_noise = c.c_noise.to(x.device)
    answer = network(c_in * x, c_noise).float()
    if anchor is None:
        return c_skip * x + c_out * answer
    anchor = anchor.float()
    difference, gate = answer.chunk(2, dim=2)
    return anchor + gate.sigmoid() * c_skip * (x - anchor) + difference
