"""Pictures to scaled latents and back, through a VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from keyface_cli.models.vae import VideoVAE


class LatentCodec(nn.Module):
    """A VAE with the scale of its latents and, for a small one, patches of pixels as channels.

    With `patch_size` s, the s x s pixels of a square are stacked as channels before the VAE and
    laid out again after it, so that a VAE of 3 s^2 channels works at 1/s of the resolution.

    Args:
        vae: the autoencoder, in and out 3 s^2 channels.
        latent_scale: VAE latents times this are about unit variance; 0.18215 as published.
        patch_size: s, 1 as published.
    """

    def __init__(self, vae: VideoVAE, latent_scale: float, patch_size: int = 1) -> None:
        super().__init__()
        self.vae = vae
        self.latent_scale = latent_scale
        self.patch_size = patch_size

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [-1, 1] as scaled latents (B, C, h, w), float32.

        The latent is the mode of the posterior, so the same picture has the same latent (the
        published code draws a sample; the posterior is so narrow that they hardly differ).
        """
        patches = F.pixel_unshuffle(pixels.to(self.vae.dtype), self.patch_size)
        return self.vae.encode(patches).mean.float() * self.latent_scale

    def decode(self, latents: Tensor, frames_per_call: int = 1) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pictures (B, 3, H, W), about [-1, 1], float32.

        Args:
            latents: one row per frame.
            frames_per_call: how many neighbouring rows the decoder's convolutions over time see
                together. The published pipeline uses 1, with zeros on both sides of each frame.
        """
        unscaled = (latents / self.latent_scale).to(self.vae.dtype)
        patches = self.vae.decode(unscaled, frames_per_call)
        return F.pixel_shuffle(patches.float(), self.patch_size)
