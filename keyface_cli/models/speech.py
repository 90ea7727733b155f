"""Sound to two tokens per video frame: WavLM, wav2vec 2.0 and BEATs in the paper's framing.

The published system ran each encoder once over the whole recording (SPEC 3). `encode` does that
up to 20 s and goes through longer sound in overlapping windows, so that memory and the cost of
attention do not grow with its square. Statistics that are taken over the whole recording are taken
over the whole recording here too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.config import FPS, SAMPLES_PER_FRAME
from keyface_cli.models.beats import BEATs, stretch

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model, WavLMModel

# Windows of long sound, in video frames. Multiples of 4, so that BEATs' patches of 160 ms fall on
# the same samples in a window as in the whole.
CORE_FRAMES = 12 * FPS  # what a window contributes
CONTEXT_FRAMES = 4 * FPS  # what it hears besides, on each side
WINDOW_FRAMES = CORE_FRAMES + 2 * CONTEXT_FRAMES


def wavlm_features(model: WavLMModel, waveforms: Tensor) -> Tensor:
    """Encode waveforms with WavLM as published (SPEC 3.2), in one pass.

    Args:
        model: any WavLM with the usual hop of 320 samples.
        waveforms: (B, S) at 16 kHz; zeros are added up to an even number of video frames.

    Returns:
        (B, F', 2, D), the last layer's output, F' even. The first token is doubled: a frame's
        second token begins where the frame does.
    """
    tokens = model(_pad(waveforms, 2)).last_hidden_state
    return _frames_after_first(tokens)


def wav2vec2_features(model: Wav2Vec2Model, waveforms: Tensor) -> Tensor:
    """Encode waveforms with wav2vec 2.0 as published (SPEC 3.1), in one pass.

    Args:
        model: any wav2vec 2.0 with the usual hop of 320 samples.
        waveforms: (B, S) at 16 kHz; each is normalised to mean 0 and variance 1, then zeros are
            added up to whole video frames.

    Returns:
        (B, F, 2, D), the last layer's output. The last token is zero.
    """
    tokens = model(_pad(normalise(waveforms), 1)).last_hidden_state
    return _frames_before_last(tokens)


def normalise(waveforms: Tensor) -> Tensor:
    """Shift and scale each waveform (B, S) to mean 0 and (unbiased) variance 1."""
    variance, mean = torch.var_mean(waveforms, dim=-1, keepdim=True)
    return (waveforms - mean) / (variance + 1e-7).sqrt()


def encode(encoders: Mapping[str, nn.Module], waveform: Tensor) -> dict[str, Tensor]:
    """Encode a recording of any length with several encoders.

    Args:
        encoders: models by name: "wavlm", "wav2vec2" (transformers) or "beats" (`BEATs`).
        waveform: (S,) at 16 kHz in [-1, 1], two samples or more.

    Returns:
        For each encoder (N, 2, D) float32 on its own device, N = ceil(S / 640) video frames.

    Raises:
        KeyError: an encoder of another name.
    """
    N = math.ceil(len(waveform) / SAMPLES_PER_FRAME)
    features = {}
    for name, model in encoders.items():
        device = next(model.parameters()).device
        features[name] = _ENCODERS[name](model, waveform.to(device)[None])[0, :N].float()
    return features


def _encode_wavlm(model: nn.Module, waveform: Tensor) -> Tensor:
    return _frames_after_first(_speech_tokens(model, _pad(waveform, 2)))


def _encode_wav2vec2(model: nn.Module, waveform: Tensor) -> Tensor:
    return _frames_before_last(_speech_tokens(model, _pad(normalise(waveform), 1)))


def _encode_beats(model: nn.Module, waveform: Tensor) -> Tensor:
    beats = cast(BEATs, model)
    if waveform.shape[1] <= WINDOW_FRAMES * SAMPLES_PER_FRAME:
        return cast(Tensor, beats(waveform))
    waveform = _pad(waveform, 2)
    tokens = _in_windows(beats.tokens, waveform, beats.tokens_per_frame)
    return stretch(tokens, waveform.shape[1] // SAMPLES_PER_FRAME)


_ENCODERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "wavlm": _encode_wavlm,
    "wav2vec2": _encode_wav2vec2,
    "beats": _encode_beats,
}


def _pad(waveforms: Tensor, multiple: int) -> Tensor:
    """Add zeros on the right up to a multiple of so many video frames."""
    return F.pad(waveforms, (0, -waveforms.shape[1] % (multiple * SAMPLES_PER_FRAME)))


def _frames_after_first(tokens: Tensor) -> Tensor:
    """2 F - 1 tokens to (B, F, 2, D): the first is doubled (SPEC 3.2)."""
    B, count, D = tokens.shape
    return torch.cat([tokens[:, :1], tokens], dim=1).view(B, (count + 1) // 2, 2, D)


def _frames_before_last(tokens: Tensor) -> Tensor:
    """2 F - 1 tokens to (B, F, 2, D): a token of zeros is added at the end (SPEC 3.1)."""
    B, count, D = tokens.shape
    return F.pad(tokens, (0, 0, 0, 1)).view(B, (count + 1) // 2, 2, D)


def _speech_tokens(model: nn.Module, waveform: Tensor) -> Tensor:
    """Run WavLM or wav2vec 2.0 over (1, S), S whole video frames, in windows where it is long."""

    def run(window: Tensor) -> Tensor:
        return cast(Tensor, model(window).last_hidden_state)

    waveform = waveform.to(next(model.parameters()).dtype)
    if waveform.shape[1] <= WINDOW_FRAMES * SAMPLES_PER_FRAME:
        return run(waveform)
    with _norm_of_whole(model, waveform):
        return _in_windows(run, waveform, tokens_per_frame=2)


def _in_windows(
    run: Callable[[Tensor], Tensor], waveform: Tensor, tokens_per_frame: float
) -> Tensor:
    """Join what each window says about its core; `run` takes (1, S) to (1, L, D)."""
    frames = waveform.shape[1] // SAMPLES_PER_FRAME
    parts = []
    for start in range(0, frames, CORE_FRAMES):
        first = max(0, start - CONTEXT_FRAMES)
        last = start + CORE_FRAMES + CONTEXT_FRAMES  # past the end in the last windows
        tokens = run(waveform[:, first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME])
        begin = round((start - first) * tokens_per_frame)
        count = round(CORE_FRAMES * tokens_per_frame)
        parts.append(tokens[:, begin : begin + count])
    return torch.cat(parts, dim=1)


@contextlib.contextmanager
def _norm_of_whole(model: nn.Module, waveform: Tensor) -> Iterator[None]:
    """Let the first layer normalise every window by the statistics of the whole waveform (1, S).

    That layer's group norm takes mean and variance of each channel over time (where the model has
    one: "group" models such as Base do, "layer" models do not).
    """
    layer = cast(Any, model).feature_extractor.conv_layers[0]
    norm = getattr(layer, "layer_norm", None)
    if not isinstance(norm, nn.GroupNorm):
        yield
        return
    (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
    piece = WINDOW_FRAMES * SAMPLES_PER_FRAME // stride * stride
    total = square = torch.zeros((), dtype=torch.float64)
    count = 0
    for start in range(0, waveform.shape[1] - kernel + 1, piece):
        # Pieces overlap by what the kernel reaches over, so no output is missed or doubled.
        y = layer.conv(waveform[:, None, start : start + piece + kernel - stride])[0].cpu().double()
        total = total + y.sum(-1)
        square = square + (y**2).sum(-1)
        count += y.shape[-1]
    mean = total / count
    scale = norm.weight.cpu() / (square / count - mean**2 + norm.eps).sqrt()
    layer.layer_norm = _Affine(scale, norm.bias.cpu() - mean * scale).to(waveform)
    try:
        yield
    finally:
        layer.layer_norm = norm


class _Affine(nn.Module):
    """A fixed scale and shift per channel of (B, C, L)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None])
        self.register_buffer("shift", shift[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.scale) + cast(Tensor, self.shift)
