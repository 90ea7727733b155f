"""What a voice tells without words: its loudness, its pauses, and a gentle guess of arousal.

How excited a voice sounds shows in how loud, how fast and with how wide a melody it speaks
(Banse and Scherer, 1996, "Acoustic profiles in vocal emotion expression"); whether it is pleased
hardly does, so that valence is left at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.emotion.thin import smooth, thin
from keyface_cli.emotion.track import EmotionTrack

QUIET_DB = -55.0  # of full scale: below it nothing is speech
FLOOR_DB = -80.0
_BELOW_SPEECH_DB = 22.0  # a pause is this much quieter than the loud parts
_PAUSE_FRAMES = 5  # 0.2 s: shorter gaps belong to consonants
_PITCH_HZ = (70.0, 400.0)
_WINDOW = 1024  # samples in which pitch is looked for: 64 ms
_BLOCK = 1024  # frames that are looked at together
_VOICED = 0.45  # of the autocorrelation at lag 0
_NEAR_S = 1.5  # what is averaged: standard deviation of the average
_TOLERANCE = 0.04  # of the keys


class Waveform(Protocol):
    """Samples at 16 kHz in [-1, 1], in memory or in a file: what has a length and slices."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, where: slice, /) -> NDArray[np.float32]:
        """Return some of the samples."""


def loudness(waveform: Waveform) -> NDArray[np.float64]:
    """Return the loudness of each video frame (N,), dB of full scale, at least -80."""
    count = -(-len(waveform) // SAMPLES_PER_FRAME)
    power = np.empty(count)
    for first in range(0, count, _BLOCK):
        part = waveform[first * SAMPLES_PER_FRAME : (first + _BLOCK) * SAMPLES_PER_FRAME]
        edges = np.arange(0, len(part), SAMPLES_PER_FRAME)
        sums = np.add.reduceat(np.square(part, dtype=np.float64), edges)
        lengths = np.diff(np.append(edges, len(part)))
        power[first : first + len(edges)] = sums / lengths
    return np.asarray(10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10))))


def speaks(level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say in which frames there is speech, from their loudness (N,); short gaps are part of it."""
    loud = level > max(QUIET_DB, float(np.percentile(level, 95)) - _BELOW_SPEECH_DB)
    for start, end in _runs(~loud):
        if start > 0 and end < len(loud) and end - start < _PAUSE_FRAMES:
            loud[start:end] = True
    for start, end in _runs(loud.copy()):
        if end - start < 2:  # a click
            loud[start:end] = False
    return np.asarray(loud)


def phrases(level: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return start and end of each stretch of speech in seconds, from each frame's loudness."""
    return [(start / FPS, end / FPS) for start, end in _runs(speaks(level))]


def pauses(level: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return start and end of each pause in seconds, from the loudness of each frame (N,)."""
    return [(start / FPS, end / FPS) for start, end in _runs(~speaks(level))]


def loudest_words(level: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return start and end in seconds of the words that stand out, without knowing any word.

    A syllable that is louder than all within 0.8 s, and by 2 dB than the middle of the speech;
    around it what is at most 9 dB quieter.

    Args:
        level: the loudness of each frame, (N,).
    """
    speech = speaks(level)
    if not speech.any():
        return []
    reach, found = round(0.8 * FPS), []
    usual = float(np.median(level[speech]))
    for peak in np.flatnonzero(syllables(level, speech)).tolist():
        near = level[max(0, peak - reach) : peak + reach + 1]
        if level[peak] < near.max() or level[peak] < usual + 2:
            continue
        start, end = peak, peak + 1
        while start > 0 and level[start - 1] > level[peak] - 9:
            start -= 1
        while end < len(level) and level[end] > level[peak] - 9:
            end += 1
        found.append((start / FPS, end / FPS))
    return found


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def pitch(waveform: Waveform) -> NDArray[np.float64]:
    """Return the pitch of each video frame (N,) in Hz, NaN where there is no voice.

    The highest peak of the autocorrelation between 70 and 400 Hz, each lag divided by what the
    window leaves of it (Boersma, 1993).
    """
    count = -(-len(waveform) // SAMPLES_PER_FRAME)
    window = np.hanning(_WINDOW)
    own = _autocorrelation(window[None])[0]
    lags = np.arange(int(SAMPLE_RATE / _PITCH_HZ[1]), int(SAMPLE_RATE / _PITCH_HZ[0]) + 1)
    found = np.full(count, np.nan)
    before = (_WINDOW - SAMPLES_PER_FRAME) // 2
    for first in range(0, count, _BLOCK):
        many = min(_BLOCK, count - first)
        start = first * SAMPLES_PER_FRAME - before
        end = start + (many - 1) * SAMPLES_PER_FRAME + _WINDOW
        part = np.zeros(end - start)
        inside = waveform[max(0, start) : end]
        part[max(0, -start) : max(0, -start) + len(inside)] = inside
        index = SAMPLES_PER_FRAME * np.arange(many)[:, None] + np.arange(_WINDOW)
        frames = part[index]
        frames = (frames - frames.mean(axis=1, keepdims=True)) * window
        spectrum = _autocorrelation(frames)
        energy = spectrum[:, :1]
        power = spectrum[:, lags] / np.maximum(energy, 1e-12) / (own[lags] / own[0])
        # a little more for short lags: a whole number of periods fits as well as one
        power = power * (1 - 0.0005 * (lags - lags[0]))
        best = power.argmax(axis=1)
        strength = power[np.arange(len(best)), best]
        voiced = (strength > _VOICED) & (energy[:, 0] > 1e-3) & (best > 0) & (best < len(lags) - 1)
        found[first : first + len(best)] = np.where(voiced, SAMPLE_RATE / lags[best], np.nan)
    return found


def _autocorrelation(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(frames, 2 * _WINDOW, axis=1)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :_WINDOW])


def syllables(level: NDArray[np.float64], speech: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return 1 in the frames where a syllable peaks and 0 elsewhere, from loudness (N,)."""
    padded = np.concatenate([[FLOOR_DB], level, [FLOOR_DB]])
    peaks = np.zeros(len(level))
    last, valley = -FPS, FLOOR_DB
    for i in range(len(level)):
        here = padded[i + 1]
        valley = min(valley, here)
        rises = here >= padded[i] and here > padded[i + 2]
        if rises and speech[i] and here - valley > 2.0 and i - last >= 2:
            peaks[i], last, valley = 1.0, i, here
    return peaks


def estimate(waveform: Waveform) -> EmotionTrack:
    """Guess a gentle curve from a voice; an estimate, and no reading of feelings.

    Arousal rises where the voice is louder than on average, faster than 3.5 loud syllables a
    second, or its melody wider than 2.5 semitones; each counts for a part, averaged over seconds,
    and pauses take the value of the speech around them. Valence is 0.

    Args:
        waveform: (S,) at 16 kHz, S >= 1.
    """
    level = loudness(waveform)
    speech = speaks(level)
    times = np.arange(len(level)) / FPS
    if not speech.any():
        return EmotionTrack.constant(0.0, 0.0)
    weights = speech.astype(np.float64)
    width = _NEAR_S * FPS
    louder = smooth(level[:, None], width, weights)[:, 0] - float(level[speech].mean())
    tones = 12 * np.log2(pitch(waveform) / 100)
    voiced = speech & np.isfinite(tones)
    melody = np.zeros(len(level))
    if voiced.any():
        tones = np.where(voiced, tones, 0.0)
        tones = np.clip(tones, np.median(tones[voiced]) - 12, np.median(tones[voiced]) + 12)
        moments = np.stack([tones, tones**2], axis=1)
        mean, square = smooth(moments, width, voiced.astype(np.float64)).T
        melody = np.sqrt(np.maximum(square - mean**2, 0.0))
    rate = FPS * smooth(syllables(level, speech)[:, None], width, weights)[:, 0]
    arousal = (
        0.35 * np.tanh(louder / 6)
        + 0.25 * np.tanh((melody - 2.5) / 2) * voiced.any()
        + 0.2 * np.tanh((rate - 3.5) / 2)
    )
    values = np.stack([np.zeros_like(arousal), arousal], axis=1)
    return thin(times, smooth(values, FPS / 2), _TOLERANCE)
