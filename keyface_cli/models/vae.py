"""Stable Video Diffusion's VAE: an encoder of pictures, a decoder of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.models.blocks import (
    NORM_GROUPS,
    Blend,
    ConvOverTime,
    Downsample,
    Level,
    PictureAttention,
    ResBlock,
    Upsample,
    VideoResBlock,
)
from keyface_cli.models.network import Network

EPS, TIME_EPS = 1e-6, 1e-5  # of the norms within frames and along time
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """What the encoder says of a picture's latent: a normal distribution for each number of it."""

    mean: Tensor  # (B, C, h, w)
    logvar: Tensor  # (B, C, h, w)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (B, C, h, w)."""
        noise = torch.randn(
            self.mean.shape,
            generator=generator,
            device=self.mean.device,
            dtype=self.mean.dtype,
        )
        return self.mean + (0.5 * self.logvar).exp() * noise


class VideoVAE(Network):
    """diffusers' AutoencoderKLTemporalDecoder: an encoder of pictures and a decoder of videos.

    Args:
        in_channels: of pictures that are encoded.
        out_channels: of pictures that are decoded.
        block_out_channels: channels of each resolution, the finest first; multiples of 32.
        down_block_types: "DownEncoderBlock2D" for each resolution, the only kind there is.
        layers_per_block: residual blocks of a resolution; the decoder has one more.
        latent_channels: C.
    """

    signature: ClassVar[dict[str, str]] = {"_class_name": "AutoencoderKLTemporalDecoder"}

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (64,),
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        layers_per_block: int = 1,
        latent_channels: int = 4,
    ) -> None:
        super().__init__(locals())
        if list(down_block_types) != ["DownEncoderBlock2D"] * len(block_out_channels):
            raise ValueError(f"blocks of a kind that the VAE does not have: {down_block_types}")
        self.encoder = _Encoder(in_channels, latent_channels, block_out_channels, layers_per_block)
        self.decoder = _Decoder(latent_channels, out_channels, block_out_channels, layers_per_block)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

    def encode(self, x: Tensor) -> Posterior:
        """Encode pictures (B, in_channels, H, W) as distributions of (B, C, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(x, self)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, z: Tensor, num_frames: int = 1) -> Tensor:
        """Decode latents (B T, C, h, w) as pictures (B T, out_channels, H, W).

        Args:
            z: the latents, unscaled.
            num_frames: T, how many neighbours are decoded as one video.
        """
        return cast(Tensor, self.decoder(z, num_frames, self))


class _Encoder(nn.Module):
    def __init__(
        self, in_channels: int, latent_channels: int, widths: Sequence[int], layers: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = widths[0]
        for level, out_width in enumerate(widths):
            block = Level()
            for _ in range(layers):
                block.resnets.append(ResBlock(width, out_width, None, EPS))
                width = out_width
            if level < len(widths) - 1:
                block.downsamplers.append(Downsample(width, centred=False))
            self.down_blocks.append(block)
        self.mid_block = Level()
        self.mid_block.resnets.append(ResBlock(width, width, None, EPS))
        self.mid_block.attentions.append(PictureAttention(width))
        self.mid_block.resnets.append(ResBlock(width, width, None, EPS))
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, width, EPS)
        self.conv_out = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor, vae: Network) -> Tensor:
        """Pictures to means and log variances before `quant_conv`, (B, 2 C, h, w)."""
        x = self.conv_in(x)
        for block in cast("list[Level]", self.down_blocks):
            for resnet in (*block.resnets, *block.downsamplers):
                x = vae.run(resnet, x)
        first, last = self.mid_block.resnets
        for module in (first, self.mid_block.attentions[0], last):
            x = vae.run(module, x)
        return cast(Tensor, self.conv_out(F.silu(self.conv_norm_out(x))))


class _Decoder(nn.Module):
    def __init__(
        self, latent_channels: int, out_channels: int, widths: Sequence[int], layers: int
    ) -> None:
        super().__init__()

        def resnet(in_width: int, out_width: int) -> VideoResBlock:
            blend = Blend(0.0, to_temporal=True)
            return VideoResBlock(in_width, out_width, None, EPS, TIME_EPS, blend)

        width = widths[-1]
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid_block = Level()
        self.mid_block.attentions.append(PictureAttention(width))
        for _ in range(layers):
            self.mid_block.resnets.append(resnet(width, width))
        self.up_blocks = nn.ModuleList()
        for level, out_width in reversed(list(enumerate(widths))):
            block = Level()
            for _ in range(layers + 1):
                block.resnets.append(resnet(width, out_width))
                width = out_width
            if level > 0:
                block.upsamplers.append(Upsample(width))
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, width, EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        self.time_conv_out = ConvOverTime(out_channels, out_channels)

    def forward(self, z: Tensor, T: int, vae: Network) -> Tensor:
        """Latents (B T, C, h, w) to pictures."""
        x = self.conv_in(z)
        # one attention, before the second block: with a single one it has no place
        for index, resnet in enumerate(self.mid_block.resnets[:2]):
            if index == 1:
                x = vae.run(self.mid_block.attentions[0], x)
            x = vae.run(resnet, x, None, T)
        for block in cast("list[Level]", self.up_blocks):
            for resnet in block.resnets:
                x = vae.run(resnet, x, None, T)
            for upsample in block.upsamplers:
                x = vae.run(upsample, x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        BT, C, H, W = x.shape
        clips = x.view(BT // T, T, C, H * W).transpose(1, 2)  # (B, C, T, H W)
        return cast(Tensor, self.time_conv_out(clips).transpose(1, 2).reshape(BT, C, H, W))
