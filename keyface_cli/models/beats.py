"""BEATs, the audio encoder for sounds that are not speech (Chen et al. 2023).

A transformer over 16 x 16 patches of a log-mel spectrogram: 128 mel bins make eight patches, so
160 ms of sound are eight tokens. Written from the specification, inference and training alike;
the published weights are the fine-tuned iteration 3+, whose classifier is not used.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.models.network import Network, NormedConv

WINDOW = 400  # samples of one spectrum, 25 ms
HOP = 160  # samples from one spectrum to the next, 10 ms
FFT_SIZE = 512
MEL_BINS = 128
MEL_RANGE_HZ = (20.0, 8000.0)
LOG_FLOOR = 1.1920929e-07  # float32 epsilon
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582  # over the training set; the code divides by 2 std


class BEATs(Network):
    """Waveforms to two tokens per video frame.

    The arguments have the names of the published file's `cfg`; the defaults are its values.
    """

    def __init__(
        self,
        input_patch_size: int = 16,
        embed_dim: int = 512,
        encoder_embed_dim: int = 768,
        encoder_layers: int = 12,
        encoder_attention_heads: int = 12,
        encoder_ffn_embed_dim: int = 3072,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
    ) -> None:
        super().__init__(locals())
        width, heads = encoder_embed_dim, encoder_attention_heads
        patch = input_patch_size
        self.patch_embedding = nn.Conv2d(1, embed_dim, patch, stride=patch, bias=False)
        self.patch_norm = nn.LayerNorm(embed_dim)
        self.patch_projection = nn.Linear(embed_dim, width)
        self.position_conv = NormedConv(width, conv_pos, conv_pos_groups)
        self.norm = nn.LayerNorm(width)
        self.relative_bias = nn.Embedding(num_buckets, heads)  # one table for all layers
        residual_scale = (2 * encoder_layers) ** 0.25  # deep norm
        self.layers = nn.ModuleList(
            _Layer(width, heads, encoder_ffn_embed_dim, residual_scale)
            for _ in range(encoder_layers)
        )
        self.max_distance = max_distance
        # A video frame is four spectra and a patch p of them, in 128 / p bands.
        self.tokens_per_frame = 4 / patch * (MEL_BINS // patch)  # 2 for p = 16
        self.min_frames = 2 * math.ceil((patch + 2) / 8)  # even, and hold one whole patch

    def forward(self, waveforms: Tensor) -> Tensor:
        """Encode waveforms with the frame rate of the video.

        Args:
            waveforms: (B, S) at 16 kHz in [-1, 1]; zeros are added up to whole frames and to an
                even number of them, as published.

        Returns:
            (B, F', 2, D): two tokens for each of F' video frames, F' even.
        """
        frames = 2 * math.ceil(waveforms.shape[1] / (2 * SAMPLES_PER_FRAME))
        padded = max(frames, self.min_frames)
        waveforms = F.pad(waveforms, (0, padded * SAMPLES_PER_FRAME - waveforms.shape[1]))
        return stretch(self.tokens(waveforms), padded)[:, :frames]

    def tokens(self, waveforms: Tensor) -> Tensor:
        """Encode waveforms (B, S) as (B, L, D), eight tokens for each whole patch of 160 ms.

        The tokens of a patch are its frequency bands, low to high. Spectra left over at the end
        are dropped.
        """
        spectra = fbank(waveforms).to(self.patch_embedding.weight.dtype)[:, None]
        patches = self.patch_embedding(spectra).flatten(2)  # (B, embed, L), time before frequency
        x = self.patch_projection(self.patch_norm(patches.transpose(1, 2)))  # (B, L, D)
        position = F.gelu(self.position_conv(x.transpose(1, 2)))[..., : x.shape[1]]
        x = self.norm(x + position.transpose(1, 2))
        bias = position_bias(self.relative_bias, x.shape[1], self.max_distance)
        for layer in self.layers:
            x = layer(x, bias)
        return cast(Tensor, x)

    def count_tokens(self, samples: int) -> int:
        """Return how many tokens `tokens` makes of so many samples."""
        patch = int(self.config["input_patch_size"])
        return (1 + (samples - WINDOW) // HOP) // patch * (MEL_BINS // patch)


def position_bias(table: nn.Embedding, length: int, max_distance: int) -> Tensor:
    """Return what attention adds by distance j - i -> (heads, L, L).

    Args:
        table: (buckets, heads) by bucket of distances; half of them for each sign.
        length: L.
        max_distance: from which on all tokens share a bucket.
    """
    distance = torch.arange(1 - length, length, device=table.weight.device)
    buckets = _bucket(distance, table.num_embeddings, max_distance)
    by_distance = table(buckets).T  # (heads, 2 L - 1)
    return cast(Tensor, by_distance.unfold(1, length, 1).flip(1))


def stretch(tokens: Tensor, frames: int) -> Tensor:
    """Spread L tokens over two for each video frame -> (B, frames, 2, D).

    Nearest neighbour over the flat sequence, so the two tokens of a frame are neighbouring
    frequency bands, not a summary of all eight; the networks were trained so.
    """
    spread = F.interpolate(tokens.transpose(1, 2), size=2 * frames, mode="nearest")
    return spread.transpose(1, 2).reshape(len(tokens), frames, 2, -1)


def fbank(waveforms: Tensor) -> Tensor:
    """Return Kaldi's log-mel filter bank, normalised as BEATs expects.

    Args:
        waveforms: (B, S) at 16 kHz in [-1, 1].

    Returns:
        (B, 1 + (S - 400) // 160, 128), float32.
    """
    frames = (waveforms.float() * 2**15).unfold(-1, WINDOW, HOP)  # (B, frames, 400)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - 0.97 * previous) * _povey_window().to(frames.device)
    power: Tensor = torch.fft.rfft(frames, n=FFT_SIZE).abs() ** 2
    mel = power @ _mel_filters().to(frames.device)
    return (mel.clamp(min=LOG_FLOOR).log() - FBANK_MEAN) / (2 * FBANK_STD)


@functools.cache
def _povey_window() -> Tensor:
    return torch.hann_window(WINDOW, periodic=False) ** 0.85


@functools.cache
def _mel_filters() -> Tensor:
    """Triangles that are straight on the mel scale -> (257, 128); the last row, Nyquist, is 0."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    low, high = mel(torch.tensor(MEL_RANGE_HZ, dtype=torch.float64))
    step = (high - low) / (MEL_BINS + 1)
    bins = mel(torch.arange(FFT_SIZE // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE)
    rising = (bins[:, None] - low) / step - torch.arange(MEL_BINS)
    filters = torch.minimum(rising, 2 - rising).clamp(min=0)
    filters[-1] = 0
    return filters.float()


def _bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Number the distances: one bucket each when near, logarithmic when far; half per sign."""
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.clamp(min=1) / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)


class _Layer(nn.Module):
    """A post-norm transformer layer with deep norm and a gated bias by relative position."""

    def __init__(self, width: int, heads: int, ffn: int, residual_scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.residual_scale = residual_scale
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gate = nn.Linear(width // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.attention_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D), bias (heads, L, L) -> (B, L, D)."""
        x = self.attention_norm(self.residual_scale * x + self._attend(x, bias))
        x = self.residual_scale * x + self.fc2(F.gelu(self.fc1(x)))
        return cast(Tensor, self.ffn_norm(x))

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        B, L, _ = x.shape
        q, k, v = (
            project(x).view(B, L, self.heads, -1).transpose(1, 2)  # (B, heads, L, d)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # How strongly position counts depends on the projected query; in WavLM on the input.
        gates = self.gate(q).view(B, self.heads, L, 2, 4).sum(-1).sigmoid()
        first, second = gates.chunk(2, dim=-1)  # (B, heads, L, 1)
        gate = first * (second * self.gate_scale - 1) + 2
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(gate * bias).to(q.dtype))
        return cast(Tensor, self.out_proj(y.transpose(1, 2).flatten(2)))
