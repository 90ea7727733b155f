"""The eight vocalisations of the paper that are not speech: their sound and their look.

A vocalisation is written as a score of gestures over time. Some drive a formant synthesiser, a
buzz and a hiss through four resonances, others the rig; both repeat with the generator that is
given. No recording of a person is needed, so a model trained on them knows their pattern, not the
timbre of real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.synthesis import LEVEL
from keyface_cli.avatars.tracks import TICKS, smooth
from keyface_cli.config import SAMPLE_RATE

BEFORE_S, AFTER_S = 0.2, 0.3  # of silence around the sound, in which the face starts and ends

# The first four resonances of vowels, Hz, for a tract of medium length.
RESONANCES = {
    "a": (750, 1250, 2550, 3500),
    "o": (430, 820, 2500, 3400),
    "e": (530, 1800, 2500, 3500),
    "neutral": (500, 1500, 2500, 3500),
    "hum": (260, 1050, 2150, 3100),
}
_BANDWIDTHS = (80.0, 110.0, 160.0, 240.0)
_HUM_TILT = 0.35  # what a hum keeps of the sound above its first resonance
_SOUND = ("voiced", "breath", "rough")  # what the synthesiser takes of a score
_FACE = ("jaw", "width", "round", "press", "teeth", "smile", "brow", "furrow", "lid", "tilt",
         "shift_y")  # fmt: skip


class Vocalisation(NamedTuple):
    """A sound and what it does to the face, from the same start."""

    name: str  # in voices.VOCALISATIONS
    waveform: Tensor  # (S,) float32, mono, 16 kHz
    tracks: Tensor  # (S / 160, R) every 10 ms, to be added to a pose at rest
    start_s: float  # of the sound itself within the waveform
    end_s: float


class Speaker(NamedTuple):
    """Who makes the sound."""

    f0: float  # mean pitch, Hz
    tract: float  # factor of all resonances: above 1 a shorter tract


class _Score:
    """Gestures over time: each swells from 0 to an amount and fades to 0 again."""

    def __init__(self, duration_s: float, speaker: Speaker) -> None:
        self.duration_s = duration_s
        self.speaker = speaker
        self.time_s = (torch.arange(round((BEFORE_S + duration_s + AFTER_S) * TICKS)) + 0.5) / TICKS
        self.time_s = self.time_s - BEFORE_S
        self.tracks = {name: torch.zeros_like(self.time_s) for name in (*_SOUND, *_FACE)}
        self.f0 = torch.full_like(self.time_s, speaker.f0)
        self.vowel = torch.tensor(RESONANCES["neutral"]).float().repeat(len(self.time_s), 1)
        self.hum = torch.zeros_like(self.time_s)

    def swell(
        self,
        name: str,
        amount: float,
        start_s: float,
        end_s: float,
        rise_s: float = 0.06,
        fall_s: float = 0.1,
    ) -> None:
        """Add a gesture; it is full from `start_s + rise_s` to `end_s - fall_s`."""
        up = ((self.time_s - start_s) / rise_s).clamp(0, 1)
        down = ((end_s - self.time_s) / fall_s).clamp(0, 1)
        shape = torch.minimum(up, down)
        self.tracks[name] += amount * shape * shape * (3 - 2 * shape)

    def pitch(self, start_s: float, end_s: float, first: float, last: float) -> None:
        """Glide from one multiple of the speaker's pitch to another, over a span."""
        part = (self.time_s - start_s) / max(end_s - start_s, 1e-3)
        inside = (part >= 0) & (part < 1)
        glide = self.speaker.f0 * (first + (last - first) * part)
        self.f0 = torch.where(inside, glide, self.f0)

    def tongue(self, name: str, start_s: float, end_s: float) -> None:
        """Hold the resonances of a vowel over a span."""
        inside = ((self.time_s >= start_s) & (self.time_s < end_s))[:, None]
        self.vowel = torch.where(inside, torch.tensor(RESONANCES[name]).float(), self.vowel)
        if name == "hum":
            self.hum = torch.where(inside[:, 0], torch.ones_like(self.hum), self.hum)


def vocalise(name: str, generator: torch.Generator, speaker: Speaker | None = None) -> Vocalisation:
    """Make one vocalisation, never twice the same.

    Args:
        name: one of `voices.VOCALISATIONS`.
        generator: the only source of chance.
        speaker: whose it is; drawn where None.

    Returns:
        Its sound, as loud as it is beside speech of level `synthesis.LEVEL`, and its motion.

    Raises:
        KeyError: no such vocalisation.
    """
    act, loudness = _SCORES[name]
    score = act(_draw(generator), speaker or draw_speaker(generator))
    waveform = _synthesise(score, generator)
    power = waveform.square()
    loud = power[power > 0.05 * power.max()].mean().sqrt().clamp(min=1e-6)
    waveform = waveform * torch.minimum(LEVEL * loudness / loud, 0.98 / waveform.abs().max())
    tracks = torch.zeros(len(score.time_s), len(rig.CONTROLS))
    for control in _FACE:
        tracks[:, rig.INDEX[control]] = score.tracks[control]
    return Vocalisation(name, waveform, smooth(tracks, 0.02), BEFORE_S, BEFORE_S + score.duration_s)


def draw_speaker(generator: torch.Generator) -> Speaker:
    """Draw a speaker from a low to a high voice; higher ones have shorter tracts on the whole."""
    uniform = _draw(generator)
    f0 = 85 * math.exp(uniform(0, 1) * math.log(250 / 85))
    return Speaker(f0, (f0 / 140) ** 0.22 * uniform(0.93, 1.07))


Draw = Callable[[float, float], float]


def _draw(generator: torch.Generator) -> Draw:
    return lambda low, high: low + (high - low) * float(torch.rand((), generator=generator))


# --- the scores


def _mhm(draw: Draw, speaker: Speaker) -> _Score:
    """Two hums behind closed lips, the second higher; the head nods."""
    first, gap, second = draw(0.12, 0.22), draw(0.03, 0.08), draw(0.2, 0.4)
    end = first + gap + second
    score = _Score(end, speaker)
    score.tongue("hum", -1, end + 1)
    score.pitch(0, first, draw(0.95, 1.1), draw(0.85, 0.95))
    score.pitch(first + gap, end, draw(0.95, 1.05), draw(1.15, 1.5))
    score.swell("voiced", 0.8, 0, first, 0.04, 0.05)
    score.swell("voiced", 1.0, first + gap, end, 0.04, 0.12)
    score.swell("press", draw(0.6, 0.9), -0.08, end + 0.1, 0.08, 0.15)
    score.swell("smile", draw(0.05, 0.25), -0.05, end + 0.2, 0.15, 0.2)
    score.swell("brow", draw(0.1, 0.4), first, end + 0.1, 0.15, 0.2)
    for start in (-0.05, first):
        score.swell("shift_y", draw(0.012, 0.022), start, start + 0.35, 0.15, 0.2)
    return score


def _oh(draw: Draw, speaker: Speaker) -> _Score:
    """A rounded, surprised vowel whose pitch falls; the brows rise."""
    end = draw(0.35, 0.8)
    score = _Score(end, speaker)
    score.tongue("o", -1, end + 1)
    score.pitch(0, end, draw(1.25, 1.6), draw(0.8, 1.0))
    score.swell("voiced", 1.0, 0, end, 0.05, 0.2)
    score.swell("breath", 0.05, 0, end, 0.05, 0.1)
    score.swell("round", draw(0.85, 1.0), -0.12, end + 0.12, 0.12, 0.2)
    score.swell("width", -0.35, -0.12, end + 0.12, 0.12, 0.2)
    score.swell("jaw", draw(0.4, 0.6), -0.06, end + 0.1, 0.1, 0.25)
    score.swell("brow", draw(0.5, 0.8), -0.1, end + 0.2, 0.15, 0.3)
    score.swell("lid", draw(-0.25, -0.15), -0.1, end + 0.2, 0.12, 0.3)
    score.swell("shift_y", -0.008, -0.1, end + 0.2, 0.2, 0.3)
    return score


def _ah(draw: Draw, speaker: Speaker) -> _Score:
    """An open, understanding vowel; the head lifts and settles."""
    end = draw(0.4, 0.9)
    score = _Score(end, speaker)
    score.tongue("a", -1, end + 1)
    score.pitch(0, 0.4 * end, draw(0.95, 1.1), draw(1.15, 1.4))
    score.pitch(0.4 * end, end, 1.25, draw(0.75, 0.95))
    score.swell("voiced", 1.0, 0, end, 0.06, 0.2)
    score.swell("breath", 0.06, 0, end, 0.05, 0.1)
    score.swell("jaw", draw(0.75, 0.95), -0.08, end + 0.08, 0.12, 0.25)
    score.swell("teeth", 0.3, -0.05, end + 0.05, 0.1, 0.2)
    score.swell("width", 0.12, -0.05, end + 0.05, 0.1, 0.2)
    score.swell("brow", draw(0.2, 0.45), -0.05, end + 0.15, 0.15, 0.3)
    score.swell("shift_y", -0.015, -0.05, 0.6 * end, 0.15, 0.2)
    score.swell("shift_y", 0.012, 0.5 * end, end + 0.2, 0.15, 0.25)
    return score


def _cough(draw: Draw, speaker: Speaker) -> _Score:
    """One to three bursts of breath; eyes shut and the head goes down with each."""
    starts = [0.0]
    while len(starts) < 3 and draw(0, 1) < 0.65:
        starts.append(starts[-1] + draw(0.3, 0.45))
    end = starts[-1] + draw(0.28, 0.4)
    score = _Score(end, speaker)
    score.tongue("neutral", -1, end + 1)
    for start in starts:
        strength = draw(0.7, 1.0)
        score.swell("breath", 1.0 * strength, start, start + 0.1, 0.008, 0.08)
        score.swell("breath", 0.45 * strength, start + 0.03, start + 0.27, 0.03, 0.2)
        score.swell("voiced", 0.35 * strength, start + 0.04, start + 0.22, 0.03, 0.14)
        score.swell("rough", 0.7, start, start + 0.25, 0.02, 0.05)
        score.pitch(start, start + 0.27, 1.5, 1.0)
        score.swell("jaw", draw(0.4, 0.65) * strength, start - 0.03, start + 0.28, 0.05, 0.18)
        score.swell("round", 0.15, start - 0.02, start + 0.25, 0.05, 0.15)
        score.swell("lid", 0.8 * strength, start - 0.06, start + 0.26, 0.06, 0.15)
        score.swell("shift_y", 0.03 * strength, start - 0.05, start + 0.3, 0.08, 0.2)
    score.swell("furrow", 0.4, -0.1, end + 0.1, 0.1, 0.2)
    score.swell("brow", -0.15, -0.1, end + 0.1, 0.1, 0.2)
    return score


def _sigh(draw: Draw, speaker: Speaker) -> _Score:
    """Breath in, then a long breath out that may carry some voice; the face sinks."""
    breath_in, breath_out = draw(0.35, 0.7), draw(0.8, 1.5)
    turn, end = breath_in + 0.08, breath_in + 0.08 + breath_out
    score = _Score(end, speaker)
    score.tongue("neutral", -1, turn)
    score.tongue("a", turn, end + 1)
    score.swell("breath", 0.35, 0, breath_in, 0.2, 0.1)
    score.swell("breath", 1.0, turn, end, 0.08, 0.7 * breath_out)
    if draw(0, 1) < 0.5:
        score.swell("voiced", draw(0.1, 0.35), turn, turn + 0.7 * breath_out, 0.1, 0.5 * breath_out)
        score.pitch(turn, end, 1.15, 0.75)
    score.swell("jaw", draw(0.12, 0.22), -0.05, breath_in + 0.1, 0.2, 0.15)
    score.swell("jaw", draw(0.3, 0.45), turn - 0.1, end, 0.2, 0.7 * breath_out)
    score.swell("round", draw(0.15, 0.4), turn - 0.05, end, 0.2, 0.6 * breath_out)
    score.swell("furrow", draw(-0.5, -0.2), 0, end + 0.2, 0.4, 0.4)
    score.swell("brow", 0.2, 0, turn + 0.2, 0.3, 0.3)
    score.swell("lid", draw(0.25, 0.5), turn - 0.1, end + 0.2, 0.3, 0.4)
    score.swell("smile", -0.12, turn, end + 0.2, 0.3, 0.4)
    score.swell("shift_y", -0.012, 0, turn + 0.1, 0.3, 0.2)
    score.swell("shift_y", draw(0.015, 0.03), turn, end + 0.25, 0.35, 0.5)
    return score


def _yawn(draw: Draw, speaker: Speaker) -> _Score:
    """The mouth opens as wide as it can while air streams in, then a falling, breathy vowel."""
    breath_in, hold, out = draw(0.8, 1.3), draw(0.1, 0.3), draw(0.7, 1.2)
    turn = breath_in + hold
    end = turn + out
    score = _Score(end, speaker)
    score.tongue("a", -1, turn + 0.5 * out)
    score.tongue("o", turn + 0.5 * out, end + 1)
    score.swell("breath", 0.5, 0, breath_in, 0.5, 0.15)
    score.swell("breath", 0.5, turn, end, 0.1, 0.5 * out)
    score.swell("voiced", 0.6, turn - 0.05, end, 0.15, 0.6 * out)
    score.pitch(turn - 0.05, end, draw(1.3, 1.6), draw(0.7, 0.85))
    score.swell("jaw", draw(0.9, 1.0), -0.1, end + 0.1, 0.7 * breath_in, 0.8 * out)
    score.swell("width", -0.25, 0, end, 0.5, 0.5)
    score.swell("round", 0.25, 0.2, end + 0.1, 0.5, 0.4)
    score.swell("lid", draw(0.75, 0.95), 0.3 * breath_in, end + 0.1, 0.4, 0.5)
    score.swell("brow", draw(0.4, 0.7), 0.1, end, 0.5, 0.6)
    score.swell("furrow", -0.25, 0.1, end, 0.5, 0.5)
    score.swell("shift_y", -0.03, 0, turn + 0.3, 0.7, 0.5)
    score.swell("tilt", draw(-0.05, 0.05), 0.2, end + 0.2, 0.6, 0.6)
    return score


def _throat(draw: Draw, speaker: Speaker) -> _Score:
    """Two short, rough sounds behind a nearly closed mouth."""
    first, gap, second = draw(0.14, 0.24), draw(0.05, 0.12), draw(0.18, 0.35)
    end = first + gap + second
    score = _Score(end, speaker)
    score.tongue("neutral", -1, end + 1)
    score.pitch(-1, end + 1, 0.75, 0.65)
    for start, stop in ((0.0, first), (first + gap, end)):
        score.swell("voiced", 0.7, start, stop, 0.02, 0.08)
        score.swell("breath", 0.5, start, stop, 0.02, 0.1)
        score.swell("rough", 1.0, start, stop, 0.01, 0.01)
        score.swell("jaw", draw(0.08, 0.16), start - 0.04, stop + 0.04, 0.06, 0.1)
        score.swell("shift_y", 0.012, start - 0.05, stop + 0.1, 0.1, 0.15)
    score.swell("width", 0.15, -0.05, end + 0.1, 0.1, 0.15)
    score.swell("furrow", draw(0.2, 0.45), -0.1, end + 0.15, 0.12, 0.2)
    score.swell("lid", draw(0.2, 0.4), -0.05, end + 0.1, 0.1, 0.2)
    return score


def _laugh(draw: Draw, speaker: Speaker) -> _Score:
    """Ha, ha, ha: four to six a second, falling; a wide smile, narrow eyes, a bobbing head."""
    period, count = draw(0.17, 0.24), round(draw(3, 8))
    end = count * period + 0.1
    score = _Score(end + 0.25, speaker)
    score.tongue("e" if draw(0, 1) < 0.35 else "a", -1, end + 1)
    top, fall = draw(1.3, 1.9), draw(0.35, 0.6)
    for i in range(count):
        start, strength = i * period, 1 - 0.55 * i / count
        score.pitch(
            start, start + period, top * (1 - fall * i / count), top * (0.9 - fall * i / count)
        )
        score.swell("breath", 0.35 * strength, start, start + 0.45 * period, 0.03, 0.05)
        score.swell("voiced", strength, start + 0.28 * period, start + 0.85 * period, 0.03, 0.05)
        score.swell("jaw", 0.22 * strength, start, start + period, 0.45 * period, 0.5 * period)
        score.swell("shift_y", 0.008 * strength, start, start + period, 0.4 * period, 0.5 * period)
    score.swell("breath", 0.25, end, end + 0.25, 0.1, 0.1)
    score.swell("jaw", draw(0.25, 0.45), -0.1, end + 0.1, 0.15, 0.4 * end)
    score.swell("smile", draw(0.8, 1.0), -0.15, end + 0.25, 0.2, 0.3)
    score.swell("width", draw(0.35, 0.6), -0.12, end + 0.2, 0.2, 0.3)
    score.swell("teeth", draw(0.6, 0.9), -0.1, end + 0.15, 0.15, 0.3)
    score.swell("lid", draw(0.3, 0.5), -0.05, end + 0.2, 0.2, 0.3)
    score.swell("brow", draw(0.0, 0.35), -0.1, end + 0.2, 0.2, 0.3)
    score.swell("tilt", draw(-0.05, 0.05), 0, end + 0.25, 0.4, 0.3)
    return score


# each with its loudness beside speech
_SCORES: dict[str, tuple[Callable[[Draw, Speaker], _Score], float]] = {
    "mhm": (_mhm, 0.7),
    "oh": (_oh, 1.0),
    "ah": (_ah, 1.0),
    "cough": (_cough, 1.1),
    "sigh": (_sigh, 0.4),
    "yawn": (_yawn, 0.6),
    "throat": (_throat, 0.7),
    "laugh": (_laugh, 1.0),
}


# --- the synthesiser


def _synthesise(score: _Score, generator: torch.Generator) -> Tensor:
    """A buzz and a hiss through the resonances of the score: (S,), 160 samples a tick."""
    samples = len(score.time_s) * (SAMPLE_RATE // TICKS)

    def at_samples(track: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(
            track[None, None], size=samples, mode="linear", align_corners=False
        )[0, 0]

    wander = smooth(torch.randn(len(score.time_s), 1, generator=generator), 0.03)[:, 0]
    f0 = at_samples(score.f0 * (1 + 0.02 * wander))
    phase = torch.cumsum(f0.double() / SAMPLE_RATE, 0).remainder(1).float()
    rough = at_samples(score.tracks["rough"])
    growl = smooth(torch.randn(len(score.time_s), 1, generator=generator), 0.008)[:, 0]
    growl = at_samples(growl / growl.std().clamp(min=1e-6))
    buzz = (1 - 2 * phase) * (1 + rough * growl).clamp(0, 2)
    hiss = 0.6 * torch.randn(samples, generator=generator)
    source = at_samples(score.tracks["voiced"]) * buzz + at_samples(score.tracks["breath"]) * hiss
    return _resonate(source, score.vowel * score.speaker.tract, score.hum)


def _resonate(source: Tensor, formants: Tensor, hum: Tensor) -> Tensor:
    """Filter a source (S,) with resonances (ticks, 4) in Hz that move with time."""
    size, hop = 512, SAMPLE_RATE // TICKS
    window = torch.hann_window(size)
    spectrum = torch.stft(source, size, hop, window=window, return_complex=True)
    frequency = torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)[:, None]
    moving = smooth(torch.cat([formants, formants[-1:]]), 0.02)
    gain = torch.ones(len(frequency), len(moving))
    for i, width in enumerate(_BANDWIDTHS):
        centre, half = moving[:, i][None], width / 2
        gain *= (centre**2 + half**2) / (
            ((frequency - centre) ** 2 + half**2).sqrt()
            * ((frequency + centre) ** 2 + half**2).sqrt()
        )
    closed = smooth(torch.cat([hum, hum[-1:]])[:, None], 0.02)[:, 0]
    gain *= torch.where(frequency > 600, 1 - (1 - _HUM_TILT) * closed, torch.ones(()))
    return torch.istft(spectrum * gain, size, hop, window=window, length=len(source))
