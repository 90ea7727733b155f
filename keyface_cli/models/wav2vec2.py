"""wav2vec 2.0 (Baevski et al. 2020) and WavLM (Chen et al. 2022), for 16 kHz sound.

Seven convolutions make a token every 20 ms and a transformer refines them. WavLM differs by a bias
of attention by relative position, which every token gates. The tensors have the names of the
library transformers, so that folders of either are read by both; they are written here because
importing that library takes longer than encoding a sentence does. Without dropout and masks, which
only pre-training at size needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.models.beats import position_bias
from keyface_cli.models.network import Network, NormedConv

WEIGHT_STD = 0.02  # of linear layers at the beginning of training


class Wav2Vec2(Network):
    """Waveforms to tokens. The arguments are those of transformers' Wav2Vec2Config.

    Args:
        hidden_size: D.
        num_hidden_layers: of the transformer.
        num_attention_heads: of each.
        intermediate_size: of its feed-forward layer.
        conv_dim: channels of each convolution, and
        conv_kernel: its kernel, and
        conv_stride: its stride, in samples of its input.
        conv_bias: whether they have one.
        feat_extract_norm: "group", one norm over time after the first, or "layer", after each.
        do_stable_layer_norm: norms before a layer's parts instead of after.
        num_conv_pos_embeddings: kernel of the convolution that tells the position.
        num_conv_pos_embedding_groups: its groups.
        mask_time_prob: above 0 the folder holds the embedding that masked tokens had, unused here.
    """

    signature: ClassVar[dict[str, str]] = {"model_type": "wav2vec2"}

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        conv_dim: Sequence[int] = (512,) * 7,
        conv_kernel: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        conv_stride: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        conv_bias: bool = False,
        feat_extract_norm: str = "group",
        do_stable_layer_norm: bool = False,
        num_conv_pos_embeddings: int = 128,
        num_conv_pos_embedding_groups: int = 16,
        mask_time_prob: float = 0.05,
    ) -> None:
        super().__init__(locals())
        self.feature_extractor = _Convolutions(
            conv_dim, conv_kernel, conv_stride, conv_bias, feat_extract_norm
        )
        self.feature_projection = _Projection(conv_dim[-1], hidden_size)
        if mask_time_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.rand(hidden_size))
        position = _Position(hidden_size, num_conv_pos_embeddings, num_conv_pos_embedding_groups)
        layers = [
            self._layer(hidden_size, num_attention_heads, intermediate_size, index)
            for index in range(num_hidden_layers)
        ]
        self.encoder = _Encoder(hidden_size, position, layers, before=do_stable_layer_norm)
        if not self.encoder.layer_norm.weight.is_meta:
            self.apply(_initialise)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, S) samples -> (B, L, D), a token every 320 samples; the last layer's output."""
        tokens = self.feature_extractor(waveforms).transpose(1, 2)
        return cast(Tensor, self.encoder(self.feature_projection(tokens)))

    def _layer(self, width: int, heads: int, ffn: int, index: int) -> _Layer:
        return _Layer(_Attention(width, heads), width, ffn)


class WavLM(Wav2Vec2):
    """Waveforms to tokens. The arguments are those of transformers' WavLMConfig.

    Args:
        num_buckets: of relative positions, and
        max_bucket_distance: beyond which all share one, in tokens.
        others: see `Wav2Vec2`.
    """

    signature: ClassVar[dict[str, str]] = {"model_type": "wavlm"}

    def __init__(
        self, num_buckets: int = 320, max_bucket_distance: int = 800, **others: object
    ) -> None:
        self._buckets = (num_buckets, max_bucket_distance)
        super().__init__(**others)  # type: ignore[arg-type]
        self.config |= {"num_buckets": num_buckets, "max_bucket_distance": max_bucket_distance}

    def _layer(self, width: int, heads: int, ffn: int, index: int) -> _Layer:
        buckets, farthest = self._buckets
        attention = _GatedAttention(width, heads, buckets if index == 0 else 0, farthest)
        return _Layer(attention, width, ffn)


class _Convolutions(nn.Module):
    def __init__(
        self,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        bias: bool,
        norm: str,
    ) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        channels = 1
        for index, sizes in enumerate(zip(widths, kernels, strides, strict=True)):
            kind = norm if norm == "layer" or index == 0 else None
            self.conv_layers.append(_Convolution(channels, *sizes, bias=bias, norm=kind))
            channels = sizes[0]

    def forward(self, waveforms: Tensor) -> Tensor:
        x = waveforms[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class _Convolution(nn.Module):
    def __init__(
        self, channels: int, width: int, kernel: int, stride: int, *, bias: bool, norm: str | None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel, stride, bias=bias)
        self.layer_norm: nn.Module | None = None
        if norm == "group":
            self.layer_norm = nn.GroupNorm(width, width)
        elif norm == "layer":
            self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x)


class _Projection(nn.Module):
    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(in_width)
        self.projection = nn.Linear(in_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.layer_norm(x)))


class _Position(nn.Module):
    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = NormedConv(width, kernel, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]]
        return F.gelu(y).transpose(1, 2)


class _Encoder(nn.Module):
    def __init__(
        self, width: int, position: _Position, layers: Sequence[_Layer], *, before: bool
    ) -> None:
        super().__init__()
        self.pos_conv_embed = position
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(layers)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_conv_embed(x)
        if not self.before:
            x = self.layer_norm(x)
        first = cast(_Layer, self.layers[0]).attention
        bias = first.bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, bias, self.before)
        return cast(Tensor, self.layer_norm(x) if self.before else x)


class _Layer(nn.Module):
    def __init__(self, attention: _Attention, width: int, ffn: int) -> None:
        super().__init__()
        self.attention = attention
        self.layer_norm = nn.LayerNorm(width)
        self.feed_forward = _FeedForward(width, ffn)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor | None, before: bool) -> Tensor:
        """(B, L, D), bias (heads, L, L) -> (B, L, D); norms before the parts or after them."""
        if before:
            x = x + self.attention(self.layer_norm(x), bias)
            return x + cast(Tensor, self.feed_forward(self.final_layer_norm(x)))
        x = self.layer_norm(x + self.attention(x, bias))
        return cast(Tensor, self.final_layer_norm(x + self.feed_forward(x)))


class _FeedForward(nn.Module):
    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, ffn)
        self.output_dense = nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.output_dense(F.gelu(self.intermediate_dense(x))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, L, D), bias (heads, L, L) -> (B, L, D)."""
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        mask = None if bias is None else self._gated(x, bias).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return cast(Tensor, self.out_proj(y.transpose(1, 2).flatten(2)))

    def bias(self, length: int) -> Tensor | None:
        """What every layer adds to its scores of so many tokens, before gating."""
        return None

    def _gated(self, x: Tensor, bias: Tensor) -> Tensor:
        return bias

    def _split(self, x: Tensor) -> Tensor:
        B, L, _ = x.shape
        return x.view(B, L, self.heads, -1).transpose(1, 2)  # (B, heads, L, d)


class _GatedAttention(_Attention):
    """WavLM's: how strongly relative position counts depends on the token."""

    def __init__(self, width: int, heads: int, buckets: int, farthest: int) -> None:
        super().__init__(width, heads)
        self.farthest = farthest
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(width // heads, 8)
        if buckets:  # one table, in the first layer, serves all
            self.rel_attn_embed = nn.Embedding(buckets, heads)

    def bias(self, length: int) -> Tensor | None:
        return position_bias(self.rel_attn_embed, length, self.farthest)

    def _gated(self, x: Tensor, bias: Tensor) -> Tensor:
        B, L, _ = x.shape
        gates = self.gru_rel_pos_linear(self._split(x)).view(B, self.heads, L, 2, 4)
        first, second = gates.sum(-1).sigmoid().chunk(2, dim=-1)  # (B, heads, L, 1)
        gate: Tensor = first * (second * self.gru_rel_pos_const - 1) + 2
        return gate * bias


def _initialise(module: nn.Module) -> None:
    """Give one module the weights that a new network begins with."""
    if isinstance(module, _Projection):
        bound = 1 / math.sqrt(module.projection.in_features)
        nn.init.uniform_(module.projection.weight, -bound, bound)
        nn.init.uniform_(module.projection.bias, -bound, bound)
    elif isinstance(module, _Convolution):
        nn.init.kaiming_normal_(module.conv.weight)
    elif isinstance(module, NormedConv):
        nn.init.zeros_(cast(Tensor, module.bias))
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=WEIGHT_STD)
    elif isinstance(module, _Attention | _FeedForward):
        for part in module.children():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=WEIGHT_STD)
                nn.init.zeros_(part.bias)
