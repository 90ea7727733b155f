"""Sound that stays the same for two seconds is no voice: mouths rest in noise, hum and room tone.

Not of the paper: models that were trained on speech alone open the mouth to a fan or a street. A
voice changes its spectrum all the time, whispered or sung too, and so does music; what a machine,
the wind or a room makes does not, whether it is loud or soft and even where it swells.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import SAMPLE_RATE
from keyface_cli.models.speech import Samples

HOP = SAMPLE_RATE // 50  # samples between two spectra: 20 ms
WINDOW = 1024  # samples of a spectrum
BAND = slice(6, 400)  # its bins from 94 Hz to 6.2 kHz
MOMENT = 4  # spectra, 80 ms
BLOCK = 20  # spectra, 0.4 s: what is silenced, or not, as a whole
SPAN = 5  # blocks, 2 s, whose spectra are compared
BLOCK_LIMIT_DB = 2.0  # between any two blocks of a span, root mean square over the bins
MOMENT_LIMIT_DB = 4.0  # between neighbouring moments: a held note's harmonics waver
FADE = SAMPLE_RATE // 50  # samples

_SIZE = BLOCK * HOP  # samples of a block
_REACH = SPAN + 1  # blocks on both sides that decide what becomes of one


class SteadySilenced:
    """A recording whose steady sound is silence; slices of it are computed when they are asked for.

    A block is silent where it lies in a span of steady sound, unless its neighbour does not: there
    a voice may begin or end. Where spectra are alike is measured without their level. What a slice
    holds does not depend on where it begins.

    Args:
        samples: the recording at 16 kHz.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._window = np.hanning(WINDOW).astype(np.float32)

    def __len__(self) -> int:
        """Return the recording's length in samples."""
        return len(self._samples)

    def __getitem__(self, where: slice, /) -> NDArray[np.float32]:
        """Return the samples of a slice without a step, float32."""
        start, stop, _ = where.indices(len(self))
        given = self._read(start, stop)
        if len(self) < SPAN * _SIZE or not len(given):
            return given
        blocks = range(max(0, start // _SIZE - 1), -(-stop // _SIZE) + 1)
        heard = ~self._silent(blocks)
        if heard.all():
            return given
        gain = np.repeat(heard.astype(np.float32), _SIZE)
        # fades lie inside what is silenced, for the sound around it stays as it is
        ramp = np.linspace(1, 0, FADE, endpoint=False, dtype=np.float32)
        for edge in np.flatnonzero(np.diff(heard.astype(np.int8))) + 1:
            if heard[edge]:
                gain[edge * _SIZE - FADE : edge * _SIZE] = ramp[::-1]
            else:
                gain[edge * _SIZE : edge * _SIZE + FADE] = ramp
        offset = start - blocks.start * _SIZE
        return given * gain[offset : offset + len(given)]

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.asarray(self._samples[max(0, start) : stop], np.float32)

    def _silent(self, blocks: range) -> NDArray[np.bool_]:
        """Which of some blocks are silenced; a short last one is as the one before it."""
        whole = len(self) // _SIZE
        first, last = max(0, blocks.start - _REACH), min(whole, blocks.stop + _REACH)
        count = last - first
        steady = np.zeros(max(0, count), bool)
        if count >= SPAN:
            spectra, wavering = self._spectra(first, last)
            for begin in range(count - SPAN + 1):
                span = slice(begin, begin + SPAN)
                if np.median(wavering[span]) < MOMENT_LIMIT_DB and _alike(spectra[span]):
                    steady[span] = True
        before, after = np.pad(steady, (1, 0), "edge")[:-1], np.pad(steady, (0, 1), "edge")[1:]
        inside = steady & before & after
        wanted = np.clip(np.arange(blocks.start, blocks.stop), 0, whole - 1) - first
        return cast("NDArray[np.bool_]", inside[wanted])

    def _spectra(self, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return each block's spectrum, (n, bins) in dB, and how its moments differ, (n,) in dB."""
        half = WINDOW // 2
        given = self._read(first * _SIZE - half, last * _SIZE + half)
        before = half - min(half, first * _SIZE)
        missing = (last - first) * _SIZE + 2 * half - before - len(given)
        given = np.pad(given, (before, missing))
        frames = np.lib.stride_tricks.sliding_window_view(given, WINDOW)[:-HOP:HOP]
        power = np.abs(np.fft.rfft(frames * self._window, axis=1)[:, BAND]) ** 2
        blocks = power.reshape(last - first, BLOCK, -1)
        moments = _decibels(blocks.reshape(last - first, -1, MOMENT, blocks.shape[2]).mean(2))
        wavering = np.median(_differences(moments[:, 1:], moments[:, :-1]), axis=1)
        return _decibels(blocks.mean(1)), wavering


def _decibels(power: NDArray[np.float64]) -> NDArray[np.float32]:
    """Spectra in dB, averaged over three bins."""
    padded = np.pad(power, [(0, 0)] * (power.ndim - 1) + [(1, 1)], mode="edge")
    smooth = (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 3
    return (10 * np.log10(smooth + 1e-12)).astype(np.float32)


def _differences(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square over the bins of how two spectra differ in shape, in dB."""
    apart = a - b
    apart = apart - np.median(apart, axis=-1, keepdims=True)
    return cast("NDArray[np.float32]", np.sqrt((apart**2).mean(-1)))


def _alike(spectra: NDArray[np.float32]) -> bool:
    n = len(spectra)
    one, other = np.triu_indices(n, 1)
    return bool(_differences(spectra[one], spectra[other]).max() < BLOCK_LIMIT_DB)
