"""Sounds that are no voice, in which a mouth stays at rest: noise, music, hum, room tone and more.

All are synthesised. Some instruments are played in evaluation only, so that "music" means more
than the timbres of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.avatars.microphone import coloured_noise, log_uniform
from keyface_cli.config import SAMPLE_RATE

Draw = Callable[[float, float], float]


def make_sound(
    kind: str,
    seconds: float,
    generator: torch.Generator,
    *,
    level_db: float = -25.0,
    held_out: bool = False,
) -> Tensor:
    """Make a sound that is no voice.

    Args:
        kind: one of `KINDS`.
        seconds: its length.
        generator: the only source of chance.
        level_db: root mean square over full scale, decibels; a peaked sound stays below it where
            it would clip.
        held_out: play music on the instruments that training never plays.

    Returns:
        (S,) float32, mono, 16 kHz, within [-1, 1].

    Raises:
        KeyError: no such kind.
    """
    size = round(seconds * SAMPLE_RATE)
    sound = KINDS[kind](size, generator, held_out)
    gain = 10 ** (level_db / 20) / sound.square().mean().sqrt().clamp(min=1e-9)
    return sound * torch.minimum(gain, 0.98 / sound.abs().max().clamp(min=1e-9))


def draw_sound(
    seconds: float, generator: torch.Generator, level_db: float = -25.0, held_out: bool = False
) -> Tensor:
    """Make a sound of a random kind, half of them music or noise, see `make_sound`."""
    shares = torch.tensor([3.0 if kind in ("noise", "music") else 1.2 for kind in KINDS])
    kind = list(KINDS)[int(torch.multinomial(shares, 1, generator=generator))]
    return make_sound(kind, seconds, generator, level_db=level_db, held_out=held_out)


def _drawing(generator: torch.Generator) -> Draw:
    return lambda low, high: low + (high - low) * float(torch.rand((), generator=generator))


def _swells(size: int, rate_hz: float, depth: float, generator: torch.Generator) -> Tensor:
    """(size,) a positive envelope around 1 that wanders `rate_hz` times a second."""
    points = max(2, math.ceil(size / SAMPLE_RATE * rate_hz) + 1)
    course = torch.randn(1, 1, points, generator=generator)
    smooth = torch.nn.functional.interpolate(course, size, mode="linear", align_corners=True)
    return torch.exp(depth * smooth[0, 0])


# --- noises


def _noise(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """White to brown noise, half of it steady, the rest swelling as wind, rain or surf do."""
    draw = _drawing(generator)
    noise = coloured_noise(size, draw(0, 2), generator)
    if draw(0, 1) < 0.5:
        noise = noise * _swells(size, log_uniform(0.3, 8, generator), draw(0.2, 1), generator)
    return noise


def _hum(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """The mains, 50 or 60 Hz with harmonics, or the higher buzz of a fan; a little hiss."""
    draw = _drawing(generator)
    if draw(0, 1) < 0.7:
        base = (50.0 if draw(0, 1) < 0.5 else 60.0) + draw(-0.1, 0.1)
    else:
        base = draw(70, 260)
    tilt, time_s = draw(0.2, 1.6), torch.arange(size) / SAMPLE_RATE
    hum = torch.zeros(size)
    for order in range(1, min(24, int(7000 / base)) + 1):
        strength = order**-tilt * draw(0.1, 1)
        hum += strength * torch.sin(2 * torch.pi * (base * order * time_s + draw(0, 1)))
    hum = hum * _swells(size, 0.5, 0.1, generator)
    hiss = coloured_noise(size, 1.0, generator)
    return _unit(hum) + _unit(hiss) * 10 ** (draw(-35, -8) / 20)


def _room(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """The tone of a quiet room: dull noise, some hum, at times a tick or a rustle."""
    draw = _drawing(generator)
    tone = _unit(coloured_noise(size, draw(0.7, 2.5), generator))
    tone = tone * _swells(size, 0.4, 0.15, generator)
    tone = tone + _unit(_hum(size, generator, held_out)) * 10 ** (draw(-30, -3) / 20)
    if draw(0, 1) < 0.4:
        tone = tone + _unit(_clicks(size, generator, held_out)) * 10 ** (draw(-25, -5) / 20)
    return tone


def _clicks(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """Keys, knocks, steps: short resonances at random moments."""
    draw = _drawing(generator)
    sound, pace, low = torch.zeros(size), draw(1, 9), log_uniform(120, 2500, generator)
    moment = draw(0, 0.5)
    while moment * SAMPLE_RATE < size:
        start, decay_s = int(moment * SAMPLE_RATE), log_uniform(0.002, 0.05, generator)
        time_s = torch.arange(min(int(8 * decay_s * SAMPLE_RATE) + 1, size - start)) / SAMPLE_RATE
        ring = sum(
            draw(0.2, 1) * torch.sin(2 * torch.pi * low * draw(1, 3) * time_s) for _ in range(3)
        )
        burst = torch.randn(len(time_s), generator=generator) * torch.exp(-time_s / 0.003)
        hit = (ring + draw(0, 1.5) * burst) * torch.exp(-time_s / decay_s)
        sound[start : start + len(hit)] += draw(0.3, 1) * hit
        moment += max(0.03, draw(0.3, 1.7) / pace)
    return sound


def _traffic(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """Rumble of a street or a vehicle, with cars that pass and an engine."""
    draw = _drawing(generator)
    time_s = torch.arange(size) / SAMPLE_RATE
    sound = _unit(coloured_noise(size, draw(1.6, 3), generator))
    for _ in range(int(draw(0, 3))):
        middle, width = draw(0, size / SAMPLE_RATE), draw(0.5, 2)
        passing = torch.exp(-0.5 * ((time_s - middle) / width) ** 2)
        sound = sound + draw(0.3, 1.5) * passing * _unit(coloured_noise(size, 0.8, generator))
    if draw(0, 1) < 0.5:
        turns = draw(25, 90) * _swells(size, 0.5, 0.12, generator)
        phase = 2 * torch.pi * torch.cumsum(turns.double() / SAMPLE_RATE, 0).float()
        engine = sum(order**-1.0 * torch.sin(order * phase) for order in range(1, 12))
        sound = sound + draw(0.1, 0.8) * _unit(torch.as_tensor(engine))
    return sound


def _tones(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """Beeps, ringing, sirens and chirps: one or two sines that step, sweep and pause."""
    draw = _drawing(generator)
    sound, moment = torch.zeros(size), draw(0, 0.4)
    length_s, gap_s = log_uniform(0.05, 1.2, generator), log_uniform(0.03, 1, generator)
    base, sweep = log_uniform(250, 3500, generator), draw(-1, 1) if draw(0, 1) < 0.5 else 0.0
    second = draw(1.05, 2.5) if draw(0, 1) < 0.5 else 0.0
    while moment * SAMPLE_RATE < size:
        start = int(moment * SAMPLE_RATE)
        count = min(max(int(length_s * SAMPLE_RATE), 2), size - start)
        part = torch.arange(count) / (length_s * SAMPLE_RATE)
        pitch = base * 2 ** (sweep * part) * (1 + 0.2 * (draw(0, 1) < 0.3))
        phase = 2 * torch.pi * torch.cumsum(pitch.double() / SAMPLE_RATE, 0).float()
        edge = (torch.minimum(part, 1 - part) * length_s / 0.006).clamp(0, 1)
        sound[start : start + count] += edge * (
            torch.sin(phase) + (torch.sin(second * phase) if second else 0.0)
        )
        moment += length_s + gap_s
    return sound


# --- music

_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))


class Timbre(NamedTuple):
    """How an instrument sounds: harmonics that begin together and die away one by one."""

    tilt: float  # harmonic k has amplitude k ** -tilt
    even: float  # amplitude of even harmonics: small for reeds and closed pipes
    attack_s: float
    decay_s: float  # until a held tone has fallen to 1 / e; long for winds and bowed strings
    damping: float  # how much faster high harmonics die
    vibrato: float  # depth, as a share of the frequency
    breath: float  # noise in the tone


def _draw_timbre(generator: torch.Generator) -> Timbre:
    draw = _drawing(generator)
    plucked = draw(0, 1) < 0.5
    return Timbre(
        tilt=draw(0.5, 2.2),
        even=1.0 if draw(0, 1) < 0.7 else draw(0.05, 0.5),
        attack_s=draw(0.001, 0.008) if plucked else log_uniform(0.01, 0.4, generator),
        decay_s=log_uniform(0.15, 1.5, generator) if plucked else 8.0,
        damping=draw(0.1, 0.8) if plucked else 0.0,
        vibrato=draw(0.002, 0.012) if not plucked and draw(0, 1) < 0.5 else 0.0,
        breath=draw(0.02, 0.2) if not plucked and draw(0, 1) < 0.4 else 0.0,
    )


def _play(timbre: Timbre, pitch: float, length_s: float, generator: torch.Generator) -> Tensor:
    """One note of an instrument, with 0.1 s in which it fades."""
    draw = _drawing(generator)
    time_s = torch.arange(int((length_s + 0.1) * SAMPLE_RATE)) / SAMPLE_RATE
    phase = time_s + timbre.vibrato * torch.sin(2 * torch.pi * draw(4, 7) * time_s) / 35
    tone = torch.zeros(len(time_s))
    for order in range(1, min(20, int(7500 / pitch)) + 1):
        strength = order**-timbre.tilt * (timbre.even if order % 2 == 0 else 1.0) * draw(0.5, 1)
        fall = torch.exp(-time_s * (1 + timbre.damping * (order - 1)) / timbre.decay_s)
        tone += strength * fall * torch.sin(2 * torch.pi * (pitch * order * phase + draw(0, 1)))
    tone += timbre.breath * torch.randn(len(time_s), generator=generator)
    edges = (time_s / timbre.attack_s).clamp(max=1) * ((length_s + 0.1 - time_s) / 0.1).clamp(0, 1)
    return _unit(tone * edges)


def _pluck(pitch: float, length_s: float, generator: torch.Generator) -> Tensor:
    """A plucked string by Karplus and Strong, 1983: noise that is averaged at every round."""
    size, period = int((length_s + 0.5) * SAMPLE_RATE), max(2, round(SAMPLE_RATE / pitch))
    string = torch.rand(period, generator=generator) * 2 - 1
    rounds = []
    for _ in range(math.ceil(size / period)):
        rounds.append(string)
        string = 0.498 * (string + string.roll(-1))
    return _unit(torch.cat(rounds)[:size])


def _bell(pitch: float, length_s: float, generator: torch.Generator) -> Tensor:
    """An electric piano or bell by frequency modulation (Chowning, 1973)."""
    draw = _drawing(generator)
    time_s = torch.arange(int((length_s + 0.3) * SAMPLE_RATE)) / SAMPLE_RATE
    index = draw(1, 4) * torch.exp(-time_s / 0.4)
    modulator = index * torch.sin(2 * torch.pi * pitch * round(draw(1, 5)) * time_s)
    return _unit(torch.sin(2 * torch.pi * pitch * time_s + modulator) * torch.exp(-time_s / 0.6))


def _instrument(generator: torch.Generator, held_out: bool) -> Callable[[float, float], Tensor]:
    """Draw an instrument: it makes a note of a frequency in Hz and a length in seconds."""
    if held_out:
        play = _pluck if _drawing(generator)(0, 1) < 0.6 else _bell
        return lambda pitch, length_s: play(pitch, length_s, generator)
    timbre = _draw_timbre(generator)
    return lambda pitch, length_s: _play(timbre, pitch, length_s, generator)


def _music(size: int, generator: torch.Generator, held_out: bool) -> Tensor:
    """A melody, chords, a bass and drums, some of them, in one key and tempo."""
    draw = _drawing(generator)
    beat_s, root = draw(0.28, 0.8), 2 ** (draw(0, 12) / 12) * 110.0
    scale = _SCALES[int(draw(0, len(_SCALES)))]
    parts = [part for part in (_melody, _chords, _bass, _drums) if draw(0, 1) < 0.5]
    sound = torch.zeros(size)
    for part in parts or [_melody]:
        played = _Score(size, beat_s, root, scale)
        part(played, _instrument(generator, held_out), draw, generator)
        sound += draw(0.4, 1) * _unit(played.sound)
    return sound


class _Score:
    """A part of a piece, as it is being played."""

    def __init__(self, size: int, beat_s: float, root: float, scale: tuple[int, ...]) -> None:
        self.sound = torch.zeros(size)
        self.beat_s, self.root, self.scale = beat_s, root, scale
        self.seconds = size / SAMPLE_RATE

    def pitch(self, degree: int) -> float:
        """Return the frequency of a step of the scale, 0 is the root."""
        octave, step = divmod(degree, len(self.scale))
        return float(self.root * 2 ** (octave + self.scale[step] / 12))

    def put(self, note: Tensor, moment_s: float) -> None:
        start = int(moment_s * SAMPLE_RATE)
        note = note[: max(0, len(self.sound) - start)]
        self.sound[start : start + len(note)] += note


Instrument = Callable[[float, float], Tensor]


def _melody(score: _Score, play: Instrument, draw: Draw, generator: torch.Generator) -> None:
    moment, degree = 0.0, int(draw(3, 12))
    while moment < score.seconds:
        length = score.beat_s * (0.5, 1.0, 1.0, 2.0)[int(draw(0, 4))]
        degree = min(max(degree + round(draw(-3, 3)), 0), 17)
        if draw(0, 1) < 0.85:
            score.put(draw(0.5, 1) * play(score.pitch(degree), length), moment)
        moment += length


def _chords(score: _Score, play: Instrument, draw: Draw, generator: torch.Generator) -> None:
    moment, length = 0.0, score.beat_s * (2, 4)[int(draw(0, 2))]
    strummed = draw(0, 0.06)
    while moment < score.seconds:
        low = int(draw(0, 6))
        for i, degree in enumerate((low, low + 2, low + 4)):
            score.put(play(score.pitch(degree), length), moment + i * strummed)
        moment += length


def _bass(score: _Score, play: Instrument, draw: Draw, generator: torch.Generator) -> None:
    moment = 0.0
    while moment < score.seconds:
        score.put(play(score.pitch(int(draw(0, 5))) / 2, score.beat_s), moment)
        moment += score.beat_s


def _drums(score: _Score, play: Instrument, draw: Draw, generator: torch.Generator) -> None:
    """Kick, snare and hat on a pattern of eight half beats that repeats."""
    time_s = torch.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    noise = torch.randn(len(time_s), generator=generator)
    sweep = 50 * time_s + draw(2, 5) * (1 - torch.exp(-time_s / 0.03))
    kick = torch.sin(2 * torch.pi * sweep) * torch.exp(-time_s / draw(0.05, 0.12))
    body = torch.sin(2 * torch.pi * draw(150, 230) * time_s)
    snare = (body + noise) * torch.exp(-time_s / draw(0.03, 0.08))
    hat = torch.diff(noise, prepend=noise[:1]) * torch.exp(-time_s / draw(0.01, 0.05))
    hits = [
        (drum, torch.rand(8, generator=generator) < share)
        for drum, share in ((kick, 0.35), (0.6 * snare, 0.25), (0.25 * hat, 0.6))
    ]
    for i in range(math.ceil(score.seconds / (score.beat_s / 2))):
        for drum, pattern in hits:
            if pattern[i % 8]:
                score.put(drum, i * score.beat_s / 2)


def _unit(sound: Tensor) -> Tensor:
    """Bring a sound to a root mean square of 1."""
    return sound / sound.square().mean().sqrt().clamp(min=1e-9)


KINDS: dict[str, Callable[[int, torch.Generator, bool], Tensor]] = {
    "noise": _noise,
    "music": _music,
    "hum": _hum,
    "room": _room,
    "clicks": _clicks,
    "traffic": _traffic,
    "tones": _tones,
}
"""How each kind of sound is made: of a size, a generator and whether it is for evaluation."""
