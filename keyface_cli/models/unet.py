"""The video UNet of both stages (paper section 3.2, SPEC 6 and 7).

A Stable Video Diffusion UNet, assembled from diffusers' spatio-temporal blocks, that listens to
audio in two ways: every cross-attention reads the T audio tokens of the clip, and each frame's own
token joins its time embedding, next to sinusoids of its valence and arousal. The keyframe network
sees the identity latent beside every noisy frame. The interpolation network sees the two keyframes
beside the first and the last frame, a learned latent beside those between, and a mask that tells
which is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import (
    AttentionMixin,
    BasicTransformerBlock,
    TemporalBasicTransformerBlock,
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import (
    AlphaBlender,
    ResnetBlock2D,
    SpatioTemporalResBlock,
    TemporalResnetBlock,
)
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

NORM_GROUPS = 32
NORM_EPS = 1e-5  # of residual blocks and output; the transformers' input norm has 1e-6


@dataclass(frozen=True)
class Conditioning:
    """What the network listens to; zeros mean "not heard", as in training with dropout (SPEC 7)."""

    audio: Tensor  # (B, T, D) from `VideoUNet.project_audio`
    # (B, K, C, h, w) clean latents without `latent_scale`: the identity frame (K = 1), or the
    # start and end keyframes (K = 2)
    latents: Tensor
    emotion: Tensor | None = None  # (B, T, 2) valence and arousal in [-1, 1]
    # (B, T, C, h, w), without `latent_scale`: a guess of every frame, which an "anchored"
    # interpolation network sees where the frames are missing; None as published
    anchor: Tensor | None = None

    def without_audio(self) -> Conditioning:
        """Return the same conditions with the audio unheard."""
        return replace(self, audio=torch.zeros_like(self.audio))

    def without_identity(self) -> Conditioning:
        """Return the same conditions with the identity frame (or keyframes) unseen."""
        return replace(self, latents=torch.zeros_like(self.latents))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join the clips of several conditionings into one batch, in order."""
        emotions = [part.emotion for part in parts if part.emotion is not None]
        anchors = [part.anchor for part in parts if part.anchor is not None]
        return Conditioning(
            audio=torch.cat([part.audio for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            emotion=torch.cat(emotions) if emotions else None,
            anchor=torch.cat(anchors) if anchors else None,
        )


class VideoUNet(ModelMixin, ConfigMixin, AttentionMixin):  # type: ignore[misc]
    """F of either stage: c_in x, c_noise and conditions to a raw prediction per frame.

    The arguments are the fields of `config.UNetConfig`, whose defaults are the published keyframe
    network. `missing_frame_shape` makes it an interpolation network. Widths are multiples of 32;
    h and w are divisible by 2 to the number of levels less one. In half precision or under
    autocast, norms still take their statistics in float32, as published: torch's kernels do.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
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
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        embed_dim = 4 * first

        self.audio_projection = nn.Linear(audio_dim, context_dim)
        self.missing_frame: nn.Parameter | None = None
        if missing_frame_shape is not None:
            self.missing_frame = nn.Parameter(torch.zeros(*missing_frame_shape))

        self.time_sinusoid = Timesteps(first, True, 0)
        self.time_embedding = TimestepEmbedding(first, embed_dim)
        self.emotion_sinusoid = Timesteps(emotion_dim, True, 0) if emotion_dim else None
        self.add_embedding = TimestepEmbedding(2 * emotion_dim + context_dim, embed_dim)

        def resnet(in_width: int, out_width: int) -> _VideoResBlock:
            return _VideoResBlock(in_width, out_width, embed_dim, eps=NORM_EPS)

        def transformer(width: int) -> _VideoTransformer:
            heads = width // attention_head_dim
            return _VideoTransformer(
                heads, attention_head_dim, width, cross_attention_dim=context_dim
            )

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        skip_widths = [first]
        width = first
        for level, out_width in enumerate(block_out_channels):
            block = _Level()
            for _ in range(layers_per_block):
                block.resnets.append(resnet(width, out_width))
                width = out_width
                skip_widths.append(width)
                if attention_levels[level]:
                    block.attentions.append(transformer(width))
            if level < len(block_out_channels) - 1:
                block.downsamplers = nn.ModuleList([_Downsample(width)])
                skip_widths.append(width)
            self.down_blocks.append(block)

        self.mid_block = _Level()
        self.mid_block.resnets.extend([resnet(last, last), resnet(last, last)])
        self.mid_block.attentions.append(transformer(last))

        self.up_blocks = nn.ModuleList()
        for level, out_width in reversed(list(enumerate(block_out_channels))):
            block = _Level()
            for _ in range(layers_per_block + 1):
                block.resnets.append(resnet(width + skip_widths.pop(), out_width))
                width = out_width
                if attention_levels[level]:
                    block.attentions.append(transformer(width))
            if level > 0:
                block.upsamplers = nn.ModuleList([_Upsample(width)])
            self.up_blocks.append(block)

        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, first, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

        self.gradient_checkpointing = False
        # every tensor is used by the module that holds it, so that hooks may move the two together
        for module in self.modules():
            if isinstance(module, AlphaBlender):
                module.__class__ = _Blend
            elif isinstance(module, nn.Conv3d):
                module.__class__ = _ConvOverTime

    @property
    def core_parameters(self) -> int:
        """Number of parameters as the published counts have it (SPEC 6).

        It leaves out the audio projection, which the published code keeps in the conditioner, and
        the learned missing frame, which it keeps in the wrapper.
        """
        outside = ("audio_projection.", "missing_frame")
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith(outside))

    def zero_output_layers(self) -> None:
        """Zero the last layer of every residual branch and of the network: how training begins.

        Each residual block and transformer starts as the identity and F as 0 (SPEC 6.1).
        """
        for module in self.modules():
            if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
                nn.init.zeros_(cast(nn.Conv2d, module.conv2).weight)
                nn.init.zeros_(cast(Tensor, module.conv2.bias))
            elif isinstance(module, _VideoTransformer):
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def project_audio(self, features: Tensor) -> Tensor:
        """Turn raw audio features into the context that the network hears (SPEC 7).

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
        saving = self.gradient_checkpointing and torch.is_grad_enabled()
        run = self._checkpointed if saving else _call

        x = self.conv_in(x)
        skips = [x]
        for block in cast("list[_Level]", self.down_blocks):
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

        for block in cast("list[_Level]", self.up_blocks):
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
        heard = conditioning.audio.to(dtype)
        if self.emotion_sinusoid is not None:
            if conditioning.emotion is None:
                raise ValueError("this network hears valence and arousal: emotion is missing")
            emotion = self.emotion_sinusoid(conditioning.emotion.flatten())
            heard = torch.cat([emotion.view(B, T, -1).to(dtype), heard], dim=-1)
        return cast(Tensor, (self.add_embedding(heard) + time).flatten(0, 1))

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
        known[[0, -1]] = 1
        return torch.cat([frames, known.expand(B, T, 1, h, w)], dim=2)

    def _checkpointed(self, module: nn.Module, *inputs: Any) -> Tensor:
        return cast(Tensor, self._gradient_checkpointing_func(module, *inputs))


def _call(module: nn.Module, *inputs: Any) -> Tensor:
    return cast(Tensor, module(*inputs))


class _Level(nn.Module):
    """The blocks of one resolution, named as in diffusers; a plain container."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()  # empty, or one after each of `resnets`
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class _VideoResBlock(SpatioTemporalResBlock):  # type: ignore[misc]
    """A residual block within frames, then one along time, blended (SPEC 6, step 4)."""

    def forward(self, x: Tensor, embedding: Tensor, T: int) -> Tensor:
        """(B T, C, h, w), (B T, E) -> (B T, C', h, w)."""
        spatial, temporal = self.spatial_res_block, self.temporal_res_block
        activated = F.silu(embedding)
        added = spatial.time_emb_proj(activated)[:, :, None, None]
        x = _residual(spatial, x, added)

        # Time becomes the height of a picture of T x (h w) positions.
        BT, C, h, w = x.shape
        clips = x.view(BT // T, T, C, h * w).transpose(1, 2).contiguous()  # (B, C, T, h w)
        added = temporal.time_emb_proj(activated).view(BT // T, T, C, 1).transpose(1, 2)
        clips = self.time_mixer(clips, _residual(temporal, clips, added))
        return cast(Tensor, clips.transpose(1, 2).reshape(BT, C, h, w))


def _residual(block: ResnetBlock2D | TemporalResnetBlock, x: Tensor, added: Tensor) -> Tensor:
    """Norm, SiLU, convolution; add the embedding; again; add the input."""
    y = block.conv1(F.silu(block.norm1(x))) + added
    y = block.conv2(F.silu(block.norm2(y)))
    skip = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return cast(Tensor, skip + y)


class _ConvOverTime(nn.Conv3d):
    """A kernel of (3, 1, 1), applied to pictures whose height is time."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, positions) -> (B, C', T, positions)."""
        return F.conv2d(x, self.weight.squeeze(-1), self.bias, padding=(1, 0))


class _Blend(AlphaBlender):  # type: ignore[misc]
    """a spatial + (1 - a) temporal with a = sigmoid(mix_factor), one number per block."""

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Two tensors of one shape -> their mixture."""
        return torch.lerp(temporal, spatial, self.mix_factor.sigmoid().to(spatial.dtype))


class _VideoTransformer(TransformerSpatioTemporalModel):  # type: ignore[misc]
    """Attention within frames, then along time, blended (SPEC 6, step 5).

    All T audio tokens are the context of every position of every frame, so one cross-attention
    call serves a whole clip: keys and values are computed once per clip, not per frame.
    """

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B T, C, h, w), (B, T, D) -> (B T, C, h, w)."""
        B, T, _ = context.shape
        BT, C, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B T, h w, C)
        tokens = self.proj_in(tokens)

        frame = self.time_proj(torch.arange(T, device=x.device)).to(self.proj_in.weight.dtype)
        position = self.time_pos_embed(frame)[:, None]  # (T, 1, C)
        position = position.to(tokens.dtype).repeat(B, 1, 1)
        for spatial, temporal in zip(
            self.transformer_blocks, self.temporal_transformer_blocks, strict=True
        ):
            tokens = _attend_space(spatial, tokens, context)
            moved = _attend_time(temporal, tokens + position, context)
            tokens = self.time_mixer(tokens, moved)

        tokens = self.proj_out(tokens)
        # x first: the sum then has its memory layout, not that of the transposed tokens
        return x + cast(Tensor, tokens.transpose(1, 2).reshape(BT, C, h, w))


def _attend_space(block: BasicTransformerBlock, x: Tensor, context: Tensor) -> Tensor:
    """x (B T, h w, C): attention within each frame, to the audio, feed-forward."""
    x = x + block.attn1(block.norm1(x))
    x = x + _attend_audio(block, x, context)
    return x + cast(Tensor, block.ff(block.norm3(x)))


def _attend_time(block: TemporalBasicTransformerBlock, x: Tensor, context: Tensor) -> Tensor:
    """x (B T, h w, C): feed-forward, attention along time at each position, as above."""
    B, T, _ = context.shape
    _, S, C = x.shape
    x = x + block.ff_in(block.norm_in(x))
    tracks = block.norm1(x).view(B, T, S, C).transpose(1, 2).reshape(B * S, T, C)
    x = x + block.attn1(tracks).view(B, S, T, C).transpose(1, 2).reshape(B * T, S, C)
    x = x + _attend_audio(block, x, context)
    return x + cast(Tensor, block.ff(block.norm3(x)))


def _attend_audio(
    block: BasicTransformerBlock | TemporalBasicTransformerBlock, x: Tensor, context: Tensor
) -> Tensor:
    """Let every position of a clip read the clip's audio tokens; x (B T, h w, C)."""
    queries = block.norm2(x).view(context.shape[0], -1, x.shape[-1])  # (B, T h w, C)
    return cast(Tensor, block.attn2(queries, context).view_as(x))
