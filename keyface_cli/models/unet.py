"""The video UNet of both stages of KeyFace (arXiv 2503.01715).

A Stable Video Diffusion UNet, assembled from the blocks of `blocks`, that audio conditions in two
ways: every cross-attention reads the T audio tokens of the clip, and each frame's own
token joins its time embedding, next to sinusoids of its valence and arousal. The keyframe network
sees the identity latent beside every noisy frame. The interpolation network sees the two keyframes
beside the first and the last frame, a learned latent beside those between, and a mask that tells
which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.models.blocks import (
    NORM_GROUPS,
    Attention,
    Blend,
    Downsample,
    Embedding,
    Level,
    ResBlock,
    Sinusoid,
    Upsample,
    VideoResBlock,
    VideoTransformer,
)
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.network import Network

NORM_EPS = 1e-5  # of residual blocks and output; the transformers' input norm has 1e-6


class VideoUNet(Network):
    """The raw network F(c_in x, c_noise, conditioning) of both stages.

    The arguments are the fields of `config.UNetConfig`, whose defaults are the published keyframe
    network. `missing_frame_shape` makes it an interpolation network. Widths are multiples of 32;
    h and w are divisible by 2 to the number of levels less one. In half precision or under
    autocast, norms still take their statistics in float32, as published: torch's kernels do.
    """

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_levels: Sequence[bool] = (True, True, True, False),
        layers_per_block: int = 2,
        attention_head_dim: int = 64,
        context_dim: int = 1024,
        audio_dim: int = 1536,
        emotion_dim: int = 256,
        missing_frame_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(locals())
        first, last = block_out_channels[0], block_out_channels[-1]
        embed_dim = 4 * first

        self.audio_projection = nn.Linear(audio_dim, context_dim)
        self.missing_frame: nn.Parameter | None = None
        if missing_frame_shape is not None:
            self.missing_frame = nn.Parameter(torch.zeros(*missing_frame_shape))

        self.time_sinusoid = Sinusoid(first)
        self.time_embedding = Embedding(first, embed_dim)
        self.emotion_sinusoid = Sinusoid(emotion_dim) if emotion_dim else None
        self.add_embedding = Embedding(2 * emotion_dim + context_dim, embed_dim)

        def resnet(in_width: int, out_width: int) -> VideoResBlock:
            return VideoResBlock(in_width, out_width, embed_dim, NORM_EPS, NORM_EPS, Blend(0.5))

        def transformer(width: int) -> VideoTransformer:
            return VideoTransformer(width, attention_head_dim, context_dim)

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        shape = (block_out_channels, attention_levels, layers_per_block)
        self.down_blocks, skip_widths = _down_blocks(*shape, resnet, transformer)
        self.mid_block = Level()
        self.mid_block.resnets.extend([resnet(last, last), resnet(last, last)])
        self.mid_block.attentions.append(transformer(last))
        self.up_blocks = _up_blocks(*shape, skip_widths, resnet, transformer)

        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, first, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def zero_output_layers(self) -> None:
        """Zero the last layer of every residual branch and of the network: how training begins.

        Each residual block and transformer starts as the identity function and F as 0.
        """
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(cast(nn.Conv2d, module.conv2).weight)
                nn.init.zeros_(cast(Tensor, module.conv2.bias))
            elif isinstance(module, VideoTransformer):
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def train_on_cpu(self) -> None:
        """Compute attention as products and a softmax: twice as fast to train on a CPU."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused = False

    def project_audio(self, features: Tensor) -> Tensor:
        """Turn raw audio features into the context that cross-attention reads.

        Args:
            features: (B, T, 2, A), two tokens per video frame, the encoders side by side.

        Returns:
            (B, T, D): the mean of both tokens, projected.
        """
        tokens = features.to(self.audio_projection.weight.dtype).mean(dim=2)
        return cast(Tensor, self.audio_projection(tokens))

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict F for each frame.

        Args:
            x: noisy latents times c_in, (B, T, C, h, w).
            c_noise: ln(sigma) / 4, one per clip (B,), or one per frame (B, T).
            conditioning: what the clips' audio, pictures and emotion are.

        Returns:
            (B, T, C, h, w) in the network's own type.
        """
        B, T, _, h, w = x.shape
        dtype = self.conv_in.weight.dtype
        embedding = self._embed(c_noise, conditioning, B, T, dtype)  # (B T, E)
        context = conditioning.audio.to(dtype)  # (B, T, D)
        x = torch.cat([x.to(dtype), self._condition_channels(conditioning, T, dtype)], dim=2)
        x = x.flatten(0, 1)  # (B T, C, h, w)
        run = self.run

        x = self.conv_in(x)
        skips = [x]
        for block in cast("list[Level]", self.down_blocks):
            for index, resnet in enumerate(block.resnets):
                x = run(resnet, x, embedding, T)
                if block.attentions:
                    x = run(block.attentions[index], x, context)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)

        x = run(self.mid_block.resnets[0], x, embedding, T)
        x = run(self.mid_block.attentions[0], x, context)
        x = run(self.mid_block.resnets[1], x, embedding, T)

        for block in cast("list[Level]", self.up_blocks):
            for index, resnet in enumerate(block.resnets):
                x = run(resnet, torch.cat([x, skips.pop()], dim=1), embedding, T)
                if block.attentions:
                    x = run(block.attentions[index], x, context)
            for upsample in block.upsamplers:
                x = upsample(x)

        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.reshape(B, T, -1, h, w)

    def _embed(
        self, c_noise: Tensor, conditioning: Conditioning, B: int, T: int, dtype: torch.dtype
    ) -> Tensor:
        """Embed noise level, emotion and each frame's own audio token -> (B T, E)."""
        sinusoid = self.time_sinusoid(c_noise.flatten()).to(dtype)
        time = self.time_embedding(sinusoid.view(B, c_noise.numel() // B, -1))  # (B, 1 or T, E)
        given = conditioning.audio.to(dtype)
        if self.emotion_sinusoid is not None:
            if conditioning.emotion is None:
                raise ValueError(
                    "this network is conditioned on valence and arousal: emotion is missing"
                )
            emotion = self.emotion_sinusoid(conditioning.emotion.flatten())
            given = torch.cat([emotion.view(B, T, -1).to(dtype), given], dim=-1)
        return cast(Tensor, (self.add_embedding(given) + time).flatten(0, 1))

    def _condition_channels(self, conditioning: Conditioning, T: int, dtype: torch.dtype) -> Tensor:
        """Lay the clean latents beside the noisy ones -> (B, T, C or C + 1, h, w)."""
        latents = conditioning.latents.to(dtype)
        if self.missing_frame is None:
            return latents.expand(-1, T, -1, -1, -1)
        B, _, C, h, w = latents.shape
        missing = self.missing_frame.to(dtype).expand(B, T - 2, C, h, w)
        if conditioning.anchor is not None:
            missing = missing + conditioning.anchor[:, 1:-1].to(dtype)
        frames = torch.cat([latents[:, :1], missing, latents[:, 1:]], dim=1)
        known = torch.zeros(T, 1, 1, 1, dtype=dtype, device=latents.device)
        known[0] = known[-1] = 1
        return torch.cat([frames, known.expand(B, T, 1, h, w)], dim=2)


_MakeResnet = Callable[[int, int], VideoResBlock]
_MakeTransformer = Callable[[int], VideoTransformer]


def _down_blocks(
    widths: Sequence[int],
    attention_levels: Sequence[bool],
    layers: int,
    resnet: _MakeResnet,
    transformer: _MakeTransformer,
) -> tuple[nn.ModuleList, list[int]]:
    """Build the levels on the way down; and the widths that they hand to those on the way up."""
    blocks = nn.ModuleList()
    width = widths[0]
    skip_widths = [width]
    for level, out_width in enumerate(widths):
        block = Level()
        for _ in range(layers):
            block.resnets.append(resnet(width, out_width))
            width = out_width
            skip_widths.append(width)
            if attention_levels[level]:
                block.attentions.append(transformer(width))
        if level < len(widths) - 1:
            block.downsamplers = nn.ModuleList([Downsample(width)])
            skip_widths.append(width)
        blocks.append(block)
    return blocks, skip_widths


def _up_blocks(
    widths: Sequence[int],
    attention_levels: Sequence[bool],
    layers: int,
    skip_widths: list[int],
    resnet: _MakeResnet,
    transformer: _MakeTransformer,
) -> nn.ModuleList:
    """Build the levels on the way up, each residual block beside what one further up gave."""
    blocks = nn.ModuleList()
    width = widths[-1]
    for level, out_width in reversed(list(enumerate(widths))):
        block = Level()
        for _ in range(layers + 1):
            block.resnets.append(resnet(width + skip_widths.pop(), out_width))
            width = out_width
            if attention_levels[level]:
                block.attentions.append(transformer(width))
        if level > 0:
            block.upsamplers = nn.ModuleList([Upsample(width)])
        blocks.append(block)
    return blocks
