"""Sound to two tokens per video frame: WavLM, wav2vec 2.0 and BEATs in the paper's framing.

The published system ran each encoder once over the whole recording. `AudioFeatures` does that
up to 20 s and goes through longer sound in overlapping windows, so that neither memory nor the cost
of attention grows with it:

    window k gives      frames  [300 k,       300 k + 300)      12 s
    and encodes besides frames  [300 k - 100, 300 k + 400)      4 s more on each side

Windows lie at fixed places, whatever is asked for, so that features never depend on where a run
began. Statistics that are taken over the whole recording are taken over the whole recording
here too, in a first pass over it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.config import FPS, SAMPLES_PER_FRAME, ModelConfig

if TYPE_CHECKING:
    from keyface_cli.models.wav2vec2 import Wav2Vec2, WavLM

# Windows of long sound, in video frames. Multiples of 4, so that BEATs' patches of 160 ms fall on
# the same samples in a window as in the whole.
CORE_FRAMES = 12 * FPS  # what a window contributes
CONTEXT_FRAMES = 4 * FPS  # what it encodes besides, on each side
WINDOW_FRAMES = CORE_FRAMES + 2 * CONTEXT_FRAMES
Attempt = Callable[[Callable[[], Tensor]], Tensor]
_KEPT_WINDOWS = 3  # besides the first, which every clip of keyframes asks for


class Samples(Protocol):
    """A waveform at 16 kHz: an array (S,), or something that reads slices of one when asked."""

    def __len__(self) -> int:
        """Return S."""

    def __getitem__(self, where: slice, /) -> Any:
        """Return the samples of a slice without a step, an array or a tensor of float32."""


class Features(Protocol):
    """Audio features of each video frame: a tensor (N, 2, D), or a file that holds one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, 2, D)."""

    def __getitem__(self, frames: Tensor, /) -> Tensor:
        """Return (n, 2, D) float32 for the numbers (n,) of frames."""


def wavlm_features(model: WavLM, waveforms: Tensor) -> Tensor:
    """Encode waveforms with WavLM as published, in one pass.

    Args:
        model: any WavLM with the usual hop of 320 samples.
        waveforms: (B, S) at 16 kHz; zeros are added up to an even number of video frames.

    Returns:
        (B, F', 2, D), the last layer's output, F' even. The first token is doubled: a frame's
        second token begins where the frame does.
    """
    return _frames_after_first(model(_pad(waveforms, 2)))


def wav2vec2_features(model: Wav2Vec2, waveforms: Tensor) -> Tensor:
    """Encode waveforms with wav2vec 2.0 as published, in one pass.

    Args:
        model: any wav2vec 2.0 with the usual hop of 320 samples.
        waveforms: (B, S) at 16 kHz; each is normalised to mean 0 and variance 1, then zeros are
            added up to whole video frames.

    Returns:
        (B, F, 2, D), the last layer's output. The last token is zero.
    """
    return _frames_before_last(model(_pad(normalise(waveforms), 1)))


def normalise(waveforms: Tensor) -> Tensor:
    """Shift and scale each waveform (B, S) to mean 0 and (unbiased) variance 1."""
    variance, mean = torch.var_mean(waveforms, dim=-1, keepdim=True)
    return (waveforms - mean) / (variance + 1e-7).sqrt()


def encode(encoders: Mapping[str, nn.Module], waveform: Samples) -> dict[str, Tensor]:
    """Encode a recording of any length with several encoders.

    Args:
        encoders: models by name: "wavlm", "wav2vec2" (`wav2vec2`) or "beats" (`BEATs`).
        waveform: (S,) at 16 kHz in [-1, 1], two samples or more.

    Returns:
        For each encoder (N, 2, D) float32 on its own device, N = ceil(S / 640) video frames.

    Raises:
        KeyError: an encoder of another name.
    """
    everything = range(math.ceil(len(waveform) / SAMPLES_PER_FRAME))
    return {
        name: audio_features(name, model, waveform).frames(everything)
        for name, model in encoders.items()
    }


def encoded_sound(config: ModelConfig, samples: Samples) -> Samples:
    """Return what a model's audio encoders are given of a recording."""
    if not config.sampling.silence_steady_sound:
        return samples
    from keyface_cli.models.steady_sound import SteadySilenced  # of models that ask for it

    return SteadySilenced(samples)


def audio_features(
    name: str, model: nn.Module, samples: Samples, attempt: Attempt | None = None
) -> AudioFeatures:
    """Return an encoder's features of a recording, computed when they are asked for.

    Args:
        name: "wavlm", "wav2vec2" or "beats".
        model: the encoder.
        samples: the recording.
        attempt: runs what needs the model, as `memory.Residency.attempt` does; None just runs it.

    Raises:
        KeyError: another name.
    """
    return _KINDS[name](model, samples, attempt or _run)


class AudioFeatures(ABC):
    """One encoder's features of a recording: of any of its frames, a window at a time."""

    multiple = 2  # of video frames, that the recording is filled up to with zeros

    def __init__(self, model: nn.Module, samples: Samples, attempt: Attempt) -> None:
        self.encoded_until = 0  # frames, of the windows so far
        self._model = cast(Any, model)
        self._samples = samples
        self._attempt = attempt
        frames = math.ceil(len(samples) / SAMPLES_PER_FRAME)
        self._frames = frames + -frames % self.multiple
        self._core = CORE_FRAMES if self._frames > WINDOW_FRAMES else self._frames
        self._windows: OrderedDict[int, Tensor] = OrderedDict()

    def frames(self, wanted: Sequence[int]) -> Tensor:
        """Return (n, 2, D) float32, two tokens for each of the n frames wanted."""
        parts: list[Tensor] = []
        for index, run in groupby(wanted, lambda frame: frame // self._core):
            places = torch.tensor([frame - index * self._core for frame in run])
            window = self._window(index)
            parts.append(window[places.to(window.device)])
        return torch.cat(parts)

    def _window(self, index: int) -> Tensor:
        """The features of the frames of a window's core, (300 or fewer, 2, D)."""
        if index not in self._windows:
            self._windows[index] = self._attempt(partial(self._encode, index))
            self.encoded_until = min((index + 1) * self._core, self._frames)
        self._windows.move_to_end(index)
        for old in [k for k in self._windows if k != 0][:-_KEPT_WINDOWS]:
            del self._windows[old]
        return self._windows[index]

    def _encode(self, index: int) -> Tensor:
        if self._core == self._frames:
            return self._whole(self._read(0, self._frames))[0].float()
        start = index * self._core
        first, last = max(0, start - CONTEXT_FRAMES), start + self._core + CONTEXT_FRAMES
        encoded = self._part(first, min(last, self._frames))
        return encoded[0, start - first :][: self._core].float().clone()

    @abstractmethod
    def _whole(self, waveform: Tensor) -> Tensor:
        """Encode all of a short recording, (1, S), as published -> (1, F, 2, D)."""

    @abstractmethod
    def _part(self, first: int, last: int) -> Tensor:
        """Encode the frames first..last of a long one -> (1, last - first, 2, D)."""

    def _read(self, first: int, last: int) -> Tensor:
        """The samples of frames first..last that there are, (1, S), where the model is."""
        return self._slice(first * SAMPLES_PER_FRAME, last * SAMPLES_PER_FRAME)

    def _slice(self, first: int, last: int) -> Tensor:
        given = self._samples[first:last]
        if not isinstance(given, Tensor):
            given = torch.from_numpy(np.array(given, np.float32))
        return given.to(next(self._model.parameters()))[None]

    def _pieces(self, overlap: int = 0) -> Iterator[Tensor]:
        """The recording in pieces (1, S) of a window's length, each `overlap` samples longer."""
        length = WINDOW_FRAMES * SAMPLES_PER_FRAME
        for start in range(0, len(self._samples), length):
            yield self._slice(start, start + length + overlap)


class _WavLM(AudioFeatures):
    """WavLM; the first norm of a long recording takes the statistics of all of it."""

    _norm: nn.Module | None = None

    def _whole(self, waveform: Tensor) -> Tensor:
        return wavlm_features(self._model, waveform)

    def _part(self, first: int, last: int) -> Tensor:
        window = _fill(self._normal(self._read(first, last)), last - first)
        layer = self._model.feature_extractor.conv_layers[0]
        norm = getattr(layer, "layer_norm", None)
        if not isinstance(norm, nn.GroupNorm):  # "layer" models normalise each token by itself
            return self._framed(self._model(window))
        self._norm = self._norm or self._norm_of_whole(layer, norm)
        layer.layer_norm = self._norm.to(window)
        try:
            return self._framed(self._model(window))
        finally:
            layer.layer_norm = norm

    def _framed(self, tokens: Tensor) -> Tensor:
        return _frames_after_first(tokens)

    def _normal(self, waveform: Tensor) -> Tensor:
        return waveform

    def _norm_of_whole(self, layer: Any, norm: nn.GroupNorm) -> nn.Module:
        """What the group norm does where its mean and variance are of the whole recording."""
        (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
        total = square = torch.zeros((), dtype=torch.float64)
        count, left = 0, self._frames * SAMPLES_PER_FRAME
        for piece in self._pieces(overlap=kernel - stride):  # no output is missed or doubled
            length = WINDOW_FRAMES * SAMPLES_PER_FRAME
            wanted = min(left, length + kernel - stride)
            given = F.pad(self._normal(piece), (0, wanted - piece.shape[1]))
            left -= length
            if wanted < kernel:
                break
            y = layer.conv(given[:, None])[0].cpu().double()
            total = total + y.sum(-1)
            square = square + (y**2).sum(-1)
            count += y.shape[-1]
        mean = total / count
        scale = norm.weight.cpu() / (square / count - mean**2 + norm.eps).sqrt()
        return _Affine(scale, norm.bias.cpu() - mean * scale)


class _Wav2Vec2(_WavLM):
    """wav2vec 2.0; a long recording is normalised by the mean and variance of all of it."""

    multiple = 1
    _moments: tuple[float, float] | None = None

    def _whole(self, waveform: Tensor) -> Tensor:
        return wav2vec2_features(self._model, waveform)

    def _framed(self, tokens: Tensor) -> Tensor:
        return _frames_before_last(tokens)

    def _normal(self, waveform: Tensor) -> Tensor:
        if self._moments is None:
            sums = [
                (p.double().sum().item(), p.double().square().sum().item(), p.shape[1])
                for p in self._pieces()
            ]
            total, square, count = (sum(column) for column in zip(*sums, strict=True))
            variance = (square - total**2 / count) / (count - 1)
            self._moments = total / count, math.sqrt(max(variance, 0.0) + 1e-7)
        mean, scale = self._moments
        return (waveform - mean) / scale


class _Beats(AudioFeatures):
    """BEATs, whose tokens are spread over the frames of the whole recording."""

    _source: Tensor | None = None

    def _whole(self, waveform: Tensor) -> Tensor:
        return cast(Tensor, self._model(waveform))

    def _part(self, first: int, last: int) -> Tensor:
        from keyface_cli.models.beats import stretch  # who has a BEATs has imported it

        per_frame = self._model.tokens_per_frame
        if self._source is None:  # the token that each half frame of the recording takes
            tokens = torch.arange(self._model.count_tokens(self._frames * SAMPLES_PER_FRAME))
            self._source = stretch(tokens.float()[None, :, None], self._frames)[0, :, :, 0].long()
        window = self._model.tokens(_fill(self._read(first, last), last - first))
        wanted = self._source[first:last] - round(first * per_frame)
        return cast(Tensor, window[:, wanted.clamp(0, window.shape[1] - 1).to(window.device)])


_KINDS: dict[str, type[AudioFeatures]] = {"wavlm": _WavLM, "wav2vec2": _Wav2Vec2, "beats": _Beats}


def _run(work: Callable[[], Tensor]) -> Tensor:
    return work()


def _fill(waveform: Tensor, frames: int) -> Tensor:
    """Add zeros to (1, S) up to so many video frames."""
    return F.pad(waveform, (0, frames * SAMPLES_PER_FRAME - waveform.shape[1]))


def _pad(waveforms: Tensor, multiple: int) -> Tensor:
    """Add zeros on the right up to a multiple of so many video frames."""
    return F.pad(waveforms, (0, -waveforms.shape[1] % (multiple * SAMPLES_PER_FRAME)))


def _frames_after_first(tokens: Tensor) -> Tensor:
    """2 F - 1 tokens to (B, F, 2, D): the first is doubled, as published."""
    B, count, D = tokens.shape
    return torch.cat([tokens[:, :1], tokens], dim=1).view(B, (count + 1) // 2, 2, D)


def _frames_before_last(tokens: Tensor) -> Tensor:
    """2 F - 1 tokens to (B, F, 2, D): a token of zeros is added at the end, as published."""
    B, count, D = tokens.shape
    return F.pad(tokens, (0, 0, 0, 1)).view(B, (count + 1) // 2, 2, D)


class _Affine(nn.Module):
    """A fixed scale and shift per channel of (B, C, L)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None])
        self.register_buffer("shift", shift[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.scale) + cast(Tensor, self.shift)
