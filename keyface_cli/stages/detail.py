"""The portrait's fine detail, which its latent lost, put back where the face has not moved.

A small VAE keeps the shape of a face and not its grain: the colour of an iris, single hairs, the
pattern of a cloth. All of that is in the portrait. With D the decoder, E the encoder, p the
portrait and y = D(z) a decoded frame,

    out = y + strength * gate * (p - D(E(p)))
    gate = exp(-(blur(|y - D(E(p))|) / TOLERANCE)^2)

so a pixel gets its detail back as far as what is around it looks as it does in the portrait, and
lips, lids and brows that have moved stay as they were sampled. This is not of the paper: the
published model's strength is 0, which changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.12  # mean difference of the colours, in [-1, 1], that counts as movement
BLUR = 9 / 256  # width of the window that is looked at, of the picture's


class PortraitDetail:
    """What a portrait has and its decoded latent has not.

    Args:
        portrait: (3, R, R) in [-1, 1].
        decoded: the same after the VAE's encoder and decoder, (3, R, R), about [-1, 1].
        strength: how much of it is put back, 0 to 1.
    """

    def __init__(self, portrait: Tensor, decoded: Tensor, strength: float) -> None:
        self.decoded = decoded
        self.lost = strength * (portrait - decoded)

    def restore(self, frames: Tensor) -> Tensor:
        """Put the detail back into decoded frames (T, 3, R, R), about [-1, 1]; the same shape.

        Each frame for itself, so what is restored together changes nothing.
        """
        moved = (frames - self.decoded).abs().mean(1, keepdim=True)
        gate = torch.exp(-((_blur(_blur(moved)) / TOLERANCE) ** 2))
        return frames + gate * self.lost


def _blur(x: Tensor) -> Tensor:
    """Mean over a square window, edges repeated, (T, 1, R, R)."""
    R = x.shape[-1]
    margin = round(BLUR * R) // 2
    width = 2 * margin + 1
    x = F.pad(x, (margin,) * 4, mode="replicate")
    # sums of shifted views: several times as fast as avg_pool2d on a CPU
    for axis in (-1, -2):
        parts = [x.narrow(axis, shift, R) for shift in range(width)]
        x = sum(parts[1:], start=parts[0]) / width
    return x
