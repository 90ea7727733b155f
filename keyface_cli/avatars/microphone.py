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
    return _convolved(waveform, tail)


def _convolved(waveform: Tensor, response: Tensor) -> Tensor:
    """Filter (S,) with an impulse response that begins at once: (S,)."""
    size = len(waveform) + len(response)
    filtered: Tensor = torch.fft.irfft(
        torch.fft.rfft(waveform, size) * torch.fft.rfft(response, size), size
    )
    return filtered[: len(waveform)]


def transmit(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """Send a recording through a telephone, a codec of few bits or a hard, small room.

    No step delays the sound.

    Args:
        waveform: (S,), 16 kHz.
        generator: the only source of chance.

    Returns:
        (S,) at about the same level.
    """
    ways = (_telephone, _few_bits, _hard_room)
    return ways[int(torch.randint(len(ways), (), generator=generator))](waveform, generator)


_MU = 255  # of the companding in ITU-T G.711


def _telephone(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """The band of a telephone, 8000 samples a second, of 8 bits each on a logarithmic scale."""
    size = len(waveform) + len(waveform) % 2
    low, high = float(_uniform(150, 400, generator)), float(_uniform(2800, 3600, generator))
    spectrum = torch.fft.rfft(waveform, n=size)
    frequency = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE).clamp(min=1)
    gain = 1 / (1 + (low / frequency) ** 8 + (frequency / high) ** 24).sqrt()
    samples = torch.fft.irfft(spectrum * gain, n=size)[::2]
    most = samples.abs().max().clamp(min=1e-6)
    companded = torch.log1p(_MU * samples.abs() / most) / math.log1p(_MU)
    coded = (companded * 127).round() / 127
    decoded = samples.sign() * most * torch.expm1(coded * math.log1p(_MU)) / _MU
    restored: Tensor = 2 * torch.fft.irfft(torch.fft.rfft(decoded), n=size)
    return restored[: len(waveform)]


def _few_bits(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """A transform codec that keeps few lines of each spectrum, in coarse steps, up to a limit."""
    size, window = 512, torch.hann_window(512)
    kept, step_db = float(_uniform(0.06, 0.3, generator)), float(_uniform(1.5, 6, generator))
    limit = int(_uniform(3500, 7500, generator) / SAMPLE_RATE * size)
    spectrum = torch.stft(waveform, size, size // 2, window=window, return_complex=True)
    spectrum[limit:] = 0
    level = spectrum.abs()
    weakest = torch.quantile(level[:limit], 1 - kept, dim=0, keepdim=True)
    steps = 20 * torch.log10(level.clamp(min=1e-9)) / step_db
    coarse = 10 ** (steps.round() * step_db / 20)
    coded = torch.where(level >= weakest, torch.polar(coarse, spectrum.angle()), 0)
    return torch.istft(coded, size, size // 2, window=window, length=len(waveform))


def _hard_room(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """Single echoes from near walls and a table, then the tail of a room."""
    response = torch.zeros(SAMPLE_RATE // 20)
    response[0] = 1
    for _ in range(3 + int(torch.randint(8, (), generator=generator))):
        delay_s = log_uniform(0.001, 0.045, generator)
        strength = float(_uniform(0.2, 0.7, generator)) * min(1.0, 0.008 / delay_s)
        response[int(delay_s * SAMPLE_RATE)] += strength if _chance(0.5, generator) else -strength
    return _reverberate(_convolved(waveform, response), generator)


def _uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator) * (high - low) + low


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number whose logarithm is uniform between those of `low` and `high`."""
    return float(_uniform(math.log(low), math.log(high), generator).exp())


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
