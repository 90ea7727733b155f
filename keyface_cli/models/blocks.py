"""The blocks of Stable Video Diffusion, of which the video UNet and the VAE are assembled.

Their tensors have the names that diffusers gives them, so that folders of either are read by both.
They are written here because importing diffusers takes longer than making a second of video with
a small model does. Shapes: see `models`.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32
TRANSFORMER_EPS = 1e-6  # of the norm at a transformer's door


class Sinusoid(nn.Module):
    """Numbers to cosines and sines of `width` / 2 frequencies from 1 down to 1 / 10,000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(n,) -> (n, width), float32; the cosines come first."""
        half = self.width // 2
        exponent = torch.arange(half, dtype=torch.float32, device=x.device) / half
        angles = x[:, None].float() * torch.exp(-math.log(10_000) * exponent)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Embedding(nn.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, in_width: int, width: int, out_width: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, out_width or width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_width) -> (..., out_width)."""
        return cast(Tensor, self.linear_2(F.silu(self.linear_1(x))))


class ConvOverTime(nn.Conv3d):
    """A kernel of (3, 1, 1), applied to pictures whose height is time."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, positions) -> (B, C', T, positions), with zeros before and after."""
        weight = self.weight.squeeze(-1)
        if x.shape[2] == 1:  # the kernel's ends would meet the zeros alone
            return F.conv2d(x, weight[:, :, 1:2], self.bias)
        return F.conv2d(x, weight, self.bias, padding=(1, 0))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution; add the embedding; again; add the input.

    Args:
        in_channels: C.
        out_channels: C'.
        embed_dim: E, None where nothing is added.
        eps: of the norms.
        over_time: convolve along time instead of within frames; then C = C'.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int | None,
        eps: float,
        *,
        over_time: bool = False,
    ) -> None:
        super().__init__()

        def conv(width: int) -> nn.Module:
            if over_time:
                return ConvOverTime(width, out_channels)
            return nn.Conv2d(width, out_channels, 3, padding=1)

        self.norm1 = nn.GroupNorm(NORM_GROUPS, in_channels, eps)
        self.conv1 = conv(in_channels)
        self.time_emb_proj = nn.Linear(embed_dim, out_channels) if embed_dim else None
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels, eps)
        self.conv2 = conv(out_channels)
        self.conv_shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, ...) and what is added to each channel, to broadcast -> (B, C', ...)."""
        y = self.conv1(F.silu(self.norm1(x)))
        if added is not None:
            y = y + added
        y = self.conv2(F.silu(self.norm2(y)))
        return cast(Tensor, (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y)


class Blend(nn.Module):
    """a spatial + (1 - a) temporal with a = sigmoid(mix_factor), one number per block.

    Args:
        start: mix_factor of a new network.
        to_temporal: let a be the temporal part's share, as in the VAE.
    """

    def __init__(self, start: float, *, to_temporal: bool = False) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([start]))
        self.to_temporal = to_temporal

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Two tensors of one shape -> their mixture."""
        share = self.mix_factor.sigmoid().to(spatial.dtype)
        if self.to_temporal:
            return torch.lerp(spatial, temporal, share)
        return torch.lerp(temporal, spatial, share)


class VideoResBlock(nn.Module):
    """A residual block within frames, then one along time, blended.

    Args:
        in_channels: C.
        out_channels: C'.
        embed_dim: E, None where nothing is added.
        eps: of the norms within frames, and
        temporal_eps: of those along time.
        blend: of both.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int | None,
        eps: float,
        temporal_eps: float,
        blend: Blend,
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResBlock(in_channels, out_channels, embed_dim, eps)
        self.temporal_res_block = ResBlock(
            out_channels, out_channels, embed_dim, temporal_eps, over_time=True
        )
        self.time_mixer = blend

    def forward(self, x: Tensor, embedding: Tensor | None, T: int) -> Tensor:
        """(B T, C, h, w), (B T, E) -> (B T, C', h, w)."""
        spatial, temporal = self.spatial_res_block, self.temporal_res_block
        within = along = None
        if embedding is not None:
            activated = F.silu(embedding)
            within = cast(nn.Linear, spatial.time_emb_proj)(activated)[:, :, None, None]
            along = cast(nn.Linear, temporal.time_emb_proj)(activated)
            along = along.view(len(along) // T, T, -1, 1).transpose(1, 2)
        x = spatial(x, within)

        # Time becomes the height of a picture of T x (h w) positions.
        BT, C, h, w = x.shape
        clips = x.view(BT // T, T, C, h * w).transpose(1, 2).contiguous()  # (B, C, T, h w)
        clips = self.time_mixer(clips, temporal(clips, along))
        return cast(Tensor, clips.transpose(1, 2).reshape(BT, C, h, w))


class Attention(nn.Module):
    """Multi-head attention of tokens to others, or to themselves.

    Args:
        width: D of the tokens.
        head_dim: of a head.
        context_dim: of what is attended to, None for the tokens themselves.
        bias: of queries, keys and values.
    """

    fused = True  # one kernel; False: products and a softmax, faster to train on a CPU

    def __init__(
        self, width: int, head_dim: int, context_dim: int | None = None, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_dim or width, width, bias=bias)
        self.to_v = nn.Linear(context_dim or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, D), context (B, M, K) -> (B, N, D)."""
        given = x if context is None else context
        projected = (self.to_q(x), self.to_k(given), self.to_v(given))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else _attend(q, k, v)
        return cast(Tensor, self.to_out[0](y.transpose(1, 2).flatten(2)))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries (B, heads, N, d), keys and values (B, heads, M, d) -> (B, heads, N, d)."""
    B, heads, N, d = q.shape
    q, k, v = (t.reshape(B * heads, -1, d) for t in (q, k, v))
    empty = q.new_empty(B * heads, N, k.shape[1])
    scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(B, heads, N, d)


class PictureAttention(Attention):
    """Attention among all positions of a picture, added to it: the VAE's."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=True)
        self.group_norm = nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)
        return x + super().forward(tokens).transpose(1, 2).reshape(x.shape)


class FeedForward(nn.Module):
    """A hidden layer of four times the width, gated by a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # the libraries have dropout in the middle
        hidden = 4 * width
        self.net = nn.Sequential(_Gated(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return cast(Tensor, self.net(x))


class _Gated(nn.Module):
    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.proj = _GatedLinear(in_width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x))


class _GatedLinear(nn.Linear):
    """The first half of its outputs, times the GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        # Each half by itself: halves of longer rows are not in one piece, and a GPU's kernels for
        # such tensors take twice the time.
        hidden, gate = map(F.linear, (x, x), self.weight.chunk(2), self.bias.chunk(2))
        return hidden * F.gelu(gate)


class SpatialBlock(nn.Module):
    """Attention within each frame, to the audio, feed-forward."""

    def __init__(self, width: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, head_dim)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, head_dim, context_dim)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B T, h w, C), context (B, T, D) -> (B T, h w, C)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attend_audio(x, context)
        return x + cast(Tensor, self.ff(self.norm3(x)))

    def attend_audio(self, x: Tensor, context: Tensor) -> Tensor:
        """Let every position of a clip read the clip's audio tokens; x (B T, h w, C)."""
        queries = self.norm2(x).view(context.shape[0], -1, x.shape[-1])  # (B, T h w, C)
        return cast(Tensor, self.attn2(queries, context).view_as(x))


class TemporalBlock(SpatialBlock):
    """Feed-forward, attention along time at each position, to the audio, feed-forward."""

    def __init__(self, width: int, head_dim: int, context_dim: int) -> None:
        super().__init__(width, head_dim, context_dim)
        self.norm_in = nn.LayerNorm(width)
        self.ff_in = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B T, h w, C), context (B, T, D) -> (B T, h w, C)."""
        B, T, _ = context.shape
        _, S, C = x.shape
        x = x + self.ff_in(self.norm_in(x))
        tracks = self.norm1(x).view(B, T, S, C).transpose(1, 2).reshape(B * S, T, C)
        x = x + self.attn1(tracks).view(B, S, T, C).transpose(1, 2).reshape(B * T, S, C)
        x = x + self.attend_audio(x, context)
        return x + cast(Tensor, self.ff(self.norm3(x)))


class VideoTransformer(nn.Module):
    """Attention within frames, then along time, blended.

    All T audio tokens are the context of every position of every frame, so one cross-attention
    call serves a whole clip: keys and values are computed once per clip, not per frame.
    """

    def __init__(self, width: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, width, eps=TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(width, head_dim, context_dim)])
        self.temporal_transformer_blocks = nn.ModuleList(
            [TemporalBlock(width, head_dim, context_dim)]
        )
        self.time_proj = Sinusoid(width)
        self.time_pos_embed = Embedding(width, 4 * width, width)
        self.time_mixer = Blend(0.5)
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B T, C, h, w), (B, T, D) -> (B T, C, h, w)."""
        B, T, _ = context.shape
        BT, C, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B T, h w, C)
        tokens = self.proj_in(tokens)

        frame = self.time_proj(torch.arange(T, device=x.device)).to(self.proj_in.weight.dtype)
        position = self.time_pos_embed(frame)[:, None]  # (T, 1, C)
        position = position.to(tokens.dtype).repeat(B, 1, 1)
        spatial, temporal = self.transformer_blocks[0], self.temporal_transformer_blocks[0]
        tokens = spatial(tokens, context)
        tokens = self.time_mixer(tokens, temporal(tokens + position, context))

        tokens = self.proj_out(tokens)
        # x first: the sum then has its memory layout, not that of the transposed tokens
        return x + cast(Tensor, tokens.transpose(1, 2).reshape(BT, C, h, w))


class Downsample(nn.Module):
    """Half the height and width by a convolution.

    Args:
        width: C.
        centred: pad on all sides, as the UNet does; False: below and to the right, as the VAE.
    """

    def __init__(self, width: int, *, centred: bool = True) -> None:
        super().__init__()
        self.centred = centred
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1 if centred else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2)."""
        return cast(Tensor, self.conv(x if self.centred else F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Level(nn.Module):
    """The blocks of one resolution, named as in diffusers; a plain container."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()
