"""The visual encoder of Auto-AVSR: mouth pictures to lip-reading features (Ma et al. 2023).

A Conv3d stem, a ResNet-18 trunk a frame, and a conformer over time with relative positions. T
frames in, T features out; every frame sees all others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.checkpoints.unpickle import read_tensors
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.networks.loading import load_strictly

_QUERIES = 256  # whose attention is computed together: bounds memory, changes nothing
_NORM_EPS = 1e-12


@dataclass(frozen=True)
class LipReaderConfig:
    """Sizes; the defaults are those of the published network."""

    width: int = 64  # channels of the stem and of the trunk's first stage
    dim: int = 768
    heads: int = 12
    hidden: int = 3072  # of the feed-forward parts
    blocks: int = 12
    kernel: int = 31  # of the depthwise convolution, in frames


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1:
            self.downsample: nn.Module = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x)))))
        return F.silu(y + self.downsample(x))


class Frontend(nn.Module):
    """Pictures (B, T, 1, H, W) to (B, T, 8 width): stem over time and space, then the trunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, width, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.SiLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.trunk = nn.Module()
        for stage in range(4):
            inputs, outputs = width * 2 ** max(stage - 1, 0), width * 2**stage
            blocks = [_Residual(inputs, outputs, 2 if stage else 1), _Residual(outputs, outputs, 1)]
            self.trunk.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def stem(self, video: Tensor) -> Tensor:
        """(B, T, 1, H, W) -> (B, width, T, H / 4, W / 4)."""
        return cast(Tensor, self.frontend3D(video.transpose(1, 2)))

    def forward(self, video: Tensor) -> Tensor:
        """See the class."""
        b, t = video.shape[:2]
        x = self.stem(video).transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
        for stage in self.trunk.children():
            x = stage(x)
        return x.mean(dim=(2, 3)).reshape(b, t, -1)


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=_NORM_EPS)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.w_2(F.relu(self.w_1(x))))  # not SiLU, as elsewhere


class _Attention(nn.Module):
    """score(i, j) = ((q_i + u) k_j + (q_i + v) P(i - j)) / sqrt(k), all frames see each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear_v, self.linear_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, dim // heads))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D), and (1, 2T-1, D) for the offsets T-1 ... -(T-1) -> (B, T, D)."""
        t = x.shape[1]
        q = self._split(self.linear_q(x))  # (B, h, T, k)
        k, v = self._split(self.linear_k(x)), self._split(self.linear_v(x))
        p = self._split(self.linear_pos(positions))  # (1, h, 2T-1, k)
        u, w = self.pos_bias_u[:, None], self.pos_bias_v[:, None]
        frames = torch.arange(t, device=x.device)
        outputs = []
        for start in range(0, t, _QUERIES):
            part = q[:, :, start : start + _QUERIES]
            rows = t - 1 - (frames[start : start + _QUERIES, None] - frames)  # of offset i - j
            by_offset = (part + w) @ p.transpose(-1, -2)  # (B, h, n, 2T-1)
            places = by_offset.gather(-1, rows.expand(*by_offset.shape[:2], -1, -1))
            scores = (part + u) @ k.transpose(-1, -2) + places
            outputs.append((scores / math.sqrt(q.shape[-1])).softmax(-1) @ v)
        return cast(Tensor, self.linear_out(torch.cat(outputs, 2).transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return x.reshape(b, t, self.heads, -1).transpose(1, 2)


class _Convolution(nn.Module):
    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_cov1 = nn.Conv1d(dim, 2 * dim, 1)  # the checkpoint spells it so
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.BatchNorm1d(dim)
        self.pointwise_cov2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.pointwise_cov1(x.transpose(1, 2)), dim=1)  # first half gated by the second
        x = F.silu(self.norm(self.depthwise_conv(x)))
        return cast(Tensor, self.pointwise_cov2(x).transpose(1, 2))


class ConformerBlock(nn.Module):
    """Half a feed-forward part, attention, convolution, the other half; pre-norm."""

    def __init__(self, config: LipReaderConfig) -> None:
        super().__init__()
        self.feed_forward_macaron = _FeedForward(config.dim, config.hidden)
        self.self_attn = _Attention(config.dim, config.heads)
        self.conv_module = _Convolution(config.dim, config.kernel)
        self.feed_forward = _FeedForward(config.dim, config.hidden)
        self.norm_ff_macaron, self.norm_mha = _norm(config.dim), _norm(config.dim)
        self.norm_conv, self.norm_ff = _norm(config.dim), _norm(config.dim)
        self.norm_final = _norm(config.dim)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + 0.5 * self.feed_forward_macaron(self.norm_ff_macaron(x))
        x = x + self.self_attn(self.norm_mha(x), positions)
        x = x + self.conv_module(self.norm_conv(x))
        x = x + 0.5 * self.feed_forward(self.norm_ff(x))
        return cast(Tensor, self.norm_final(x))


class LipReader(nn.Module):
    """The encoder."""

    def __init__(self, config: LipReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = Frontend(config.width)
        self.embed = nn.Sequential(nn.Linear(8 * config.width, config.dim))
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.blocks))
        self.after_norm = _norm(config.dim)

    def forward(self, video: Tensor) -> Tensor:
        """Read lips.

        Args:
            video: (B, T, 1, 88, 88) normalised grey mouth pictures at 25 frames a second; clips
                of one length only.

        Returns:
            (B, T, D) features.
        """
        return self.conform(self.frontend(video))

    def project(self, frames: Tensor) -> Tensor:
        """(B, T, 8 width) of the frontend -> (B, T, D), the conformer's input."""
        return cast(Tensor, self.embed(frames) * math.sqrt(self.config.dim))

    def conform(self, frames: Tensor) -> Tensor:
        """(B, T, 8 width) of the frontend -> (B, T, D) features."""
        x = self.project(frames)
        positions = offset_table(x.shape[1], self.config.dim).to(x)
        for block in self.encoders:
            x = block(x, positions)
        return cast(Tensor, self.after_norm(x))


def offset_table(frames: int, dim: int) -> Tensor:
    """Return (1, 2T-1, dim): sine and cosine, interleaved, of the offsets T-1 ... -(T-1)."""
    offsets = torch.arange(frames - 1, -frames, -1, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * -(math.log(10_000.0) / dim))
    angles = offsets[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[None]


def load_lipreader(path: Path) -> LipReader:
    """Read a file of the recogniser's weights, in the official or the public names.

    Raises:
        WeightsError: the file is missing, damaged or another network.
    """
    tensors, _ = read_tensors(path)
    encoder = encoder_tensors(tensors)
    try:
        stem = encoder["frontend.frontend3D.0.weight"]
        heads = encoder["encoders.0.self_attn.pos_bias_u"]
        hidden = encoder["encoders.0.feed_forward.w_1.weight"]
        kernel = encoder["encoders.0.conv_module.depthwise_conv.weight"]
    except KeyError as error:
        raise WeightsError(
            f"{path}: is no Auto-AVSR visual encoder: tensor {error.args[0]} is missing",
            "expected: vsr_trlrs2lrs3vox2avsp_base.pth",
        ) from error
    blocks = {int(found[1]) for name in encoder if (found := re.match(r"encoders\.(\d+)\.", name))}
    config = LipReaderConfig(
        width=stem.shape[0],
        dim=hidden.shape[1],
        heads=heads.shape[0],
        hidden=hidden.shape[0],
        blocks=len(blocks),
        kernel=kernel.shape[-1],
    )
    network = LipReader(config)
    load_strictly(network, encoder, path, "the visual encoder of Auto-AVSR")
    return network.eval().requires_grad_(False)


def encoder_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pick the encoder's tensors out of a recogniser's, by our names."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(("decoder.", "ctc.")) or name.endswith(".pe"):
            continue
        name = re.sub(r"^proj_encoder\.", "encoder.embed.0.", name)
        name = re.sub(r"^frontend\.", "encoder.frontend.", name)
        name = re.sub(r"^encoder\.input_layer\.", "encoder.embed.", name)
        name = re.sub(r"^encoder\.norm\.", "encoder.after_norm.", name)
        renamed[name.removeprefix("encoder.")] = tensor
    return renamed
