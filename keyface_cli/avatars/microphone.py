"""Other speakers and other recordings of a voice, without any external tool."""

from __future__ import annotations

import math

import numpy as np
import soxr
import torch
from torch import Tensor

from keyface_cli.config import SAMPLE_RATE


def shift_voice(
    waveform: Tensor, generator: torch.Generator, most: float = 0.15
) -> tuple[Tensor, float]:
    """Shift pitch and formants together by up to +-`most` by resampling.

    Returns:
        the waveform (S / f,) and its time scale 1 / f for a pitch f times as high.
    """
    factor = log_uniform(1 / (1 + most), 1 + most, generator)
    moved = soxr.resample(waveform.numpy(), factor * SAMPLE_RATE, SAMPLE_RATE)
    return torch.from_numpy(np.asarray(moved, dtype=np.float32)), 1 / factor


def degrade(waveform: Tensor, generator: torch.Generator, quietest_db: float = -38.0) -> Tensor:
    """Record a voice at random: equaliser, band limits, room, noise, clipping and gain.

    A quarter of the recordings is left clean but for the gain. No step delays the sound.

    Args:
        waveform: (S,), 16 kHz.
        generator: the only source of chance.
        quietest_db: see below.

    Returns:
        (S,) within [-1, 1], its root mean square between `quietest_db` and -14 dBFS.
    """
    out = waveform
    if _chance(0.75, generator):
        if _chance(0.6, generator):
            out = _equalise(out, generator)
        if _chance(0.35, generator):
            out = _reverberate(out, generator)
        if _chance(0.7, generator):
            snr_db = float(_uniform(5, 40, generator))
            out = add_noise(out, snr_db, float(_uniform(0, 1.5, generator)), generator)
        if _chance(0.1, generator):
            limit = out.abs().max() * float(_uniform(0.2, 0.7, generator))
            out = torch.minimum(torch.maximum(out, -limit), limit)
    level = out.square().mean().sqrt().clamp(min=1e-6)
    wanted = 10 ** (float(_uniform(quietest_db, -14, generator)) / 20)
    return (out * (wanted / level)).clamp(-1, 1)


def add_noise(waveform: Tensor, snr_db: float, colour: float, generator: torch.Generator) -> Tensor:
    """Add stationary noise whose power falls with frequency to the power `colour`.

    Args:
        waveform: (S,).
        snr_db: mean power of the waveform over that of the noise, decibels.
        colour: 0 is white, 1 pink, 2 brown.
        generator: the only source of chance.
    """
    noise = coloured_noise(len(waveform), colour, generator)
    power = waveform.square().mean() / noise.square().mean().clamp(min=1e-12)
    return waveform + noise * (power * 10 ** (-snr_db / 10)).sqrt()


def coloured_noise(size: int, colour: float, generator: torch.Generator) -> Tensor:
    """Make stationary noise (size,) whose power falls with frequency to the power `colour`.

    Below 40 Hz it falls no further. Its level depends on the colour.
    """
    spectrum = torch.fft.rfft(torch.randn(size, generator=generator))
    frequency = torch.arange(len(spectrum)).clamp(min=max(1, size * 40 // SAMPLE_RATE))
    noise: Tensor = torch.fft.irfft(spectrum * frequency ** (-colour / 2), n=size)
    return noise


def _equalise(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """Zero-phase filter: a random curve of +-8 dB, at times the band of a telephone or worse."""
    size = len(waveform) + SAMPLE_RATE // 4
    frequency = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE).clamp(min=20)
    points = 16 * (torch.rand(7, generator=generator) - 0.5)  # dB, from 60 Hz to 8 kHz
    place = (torch.log(frequency / 60) / math.log(8000 / 60) * 6).clamp(0, 5.999)
    lower = place.long()
    curve = torch.lerp(points[lower], points[lower + 1], place - lower)
    if _chance(0.35, generator):
        low = log_uniform(60, 350, generator)
        curve = curve - 10 * torch.log10(1 + (low / frequency) ** 6)
    if _chance(0.35, generator):
        high = log_uniform(2800, 7000, generator)
        curve = curve - 10 * torch.log10(1 + (frequency / high) ** 16)
    spectrum = torch.fft.rfft(waveform, n=size) * 10 ** (curve / 20)
    equalised: Tensor = torch.fft.irfft(spectrum, n=size)
    return equalised[: len(waveform)]


def _reverberate(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """A simple room: the direct sound and an exponentially dying noise after it."""
    length_s = float(_uniform(0.1, 0.6, generator))  # until the echo has fallen by 60 dB
    count = int(length_s * SAMPLE_RATE)
    tail = torch.randn(count, generator=generator) * 10 ** (-3 * torch.arange(count) / count)
    direct_db = float(_uniform(2, 16, generator))  # direct sound over echo
    tail = tail / tail.square().sum().sqrt() * 10 ** (-direct_db / 20)
    tail[: SAMPLE_RATE // 500] = 0  # the first echo comes after 2 ms
    tail[0] = 1
    size = len(waveform) + count
    echoed: Tensor = torch.fft.irfft(
        torch.fft.rfft(waveform, size) * torch.fft.rfft(tail, size), size
    )
    return echoed[: len(waveform)]


def _uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator) * (high - low) + low


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number whose logarithm is uniform between those of `low` and `high`."""
    return float(_uniform(math.log(low), math.log(high), generator).exp())


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
