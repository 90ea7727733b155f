"""Performances: timed phones, loudness and emotion become the rig's tracks at 25 frames a second.

Frame i shows the pose at the middle of its time, (i + 0.5) / 25 s. The mouth follows the sound and
the emotion without any chance, so that a model can learn it; blinks, gaze and the head's drift are
drawn from the generator that is given, and repeat with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.tracks import TICKS, at_frames, smooth
from keyface_cli.avatars.vocalisations import Vocalisation
from keyface_cli.avatars.voices import PHONES, SILENCE, VOCALISATIONS, VOWELS, Phone
from keyface_cli.config import FPS, SAMPLE_RATE

MOUTH = ("jaw", "width", "round", "teeth", "press", "tongue")

# What each phone asks of the mouth, in the order of MOUTH.
VISEMES: dict[str, tuple[float, ...]] = {
    #       jaw   width  round teeth press tongue
    "pau": (0.00, 0.00, 0.00, 0.00, 0.10, 0.0),
    "aa": (0.90, 0.10, 0.05, 0.25, 0.00, 0.0),
    "ah": (0.60, 0.10, 0.05, 0.25, 0.00, 0.0),
    "ax": (0.38, 0.10, 0.05, 0.25, 0.00, 0.0),
    "ae": (0.80, 0.50, 0.00, 0.45, 0.00, 0.0),
    "aw": (0.85, 0.10, 0.30, 0.25, 0.00, 0.0),
    "ao": (0.75, -0.10, 0.55, 0.10, 0.00, 0.0),
    "ay": (0.85, 0.30, 0.00, 0.40, 0.00, 0.0),
    "eh": (0.60, 0.45, 0.00, 0.45, 0.00, 0.0),
    "ey": (0.50, 0.65, 0.00, 0.55, 0.00, 0.0),
    "er": (0.35, -0.05, 0.40, 0.30, 0.00, 0.0),
    "ih": (0.36, 0.50, 0.00, 0.50, 0.00, 0.0),
    "iy": (0.24, 0.85, 0.00, 0.65, 0.00, 0.0),
    "ow": (0.50, -0.30, 0.80, 0.05, 0.00, 0.0),
    "oy": (0.55, 0.00, 0.60, 0.10, 0.00, 0.0),
    "uw": (0.20, -0.50, 1.00, 0.00, 0.00, 0.0),
    "uh": (0.32, -0.20, 0.60, 0.10, 0.00, 0.0),
    "m": (0.00, 0.05, 0.00, 0.00, 0.60, 0.0),
    "p": (0.00, 0.00, 0.00, 0.00, 0.80, 0.0),
    "b": (0.00, 0.00, 0.00, 0.00, 0.80, 0.0),
    "f": (0.07, 0.20, 0.00, 0.70, 0.35, 0.0),
    "v": (0.08, 0.20, 0.00, 0.70, 0.35, 0.0),
    "w": (0.12, -0.50, 1.00, 0.00, 0.00, 0.0),
    "r": (0.20, -0.15, 0.50, 0.20, 0.00, 0.2),
    "l": (0.32, 0.25, 0.00, 0.40, 0.00, 0.9),
    "s": (0.10, 0.50, 0.00, 0.90, 0.00, 0.1),
    "z": (0.10, 0.50, 0.00, 0.90, 0.00, 0.1),
    "sh": (0.14, -0.20, 0.60, 0.80, 0.00, 0.1),
    "zh": (0.14, -0.20, 0.60, 0.80, 0.00, 0.1),
    "ch": (0.14, -0.15, 0.55, 0.80, 0.00, 0.3),
    "jh": (0.14, -0.15, 0.55, 0.80, 0.00, 0.3),
    "th": (0.20, 0.25, 0.00, 0.70, 0.00, 1.0),
    "dh": (0.20, 0.25, 0.00, 0.60, 0.00, 0.9),
    "t": (0.16, 0.30, 0.00, 0.60, 0.00, 0.5),
    "d": (0.17, 0.30, 0.00, 0.55, 0.00, 0.6),
    "n": (0.20, 0.30, 0.00, 0.50, 0.00, 0.6),
    "k": (0.26, 0.20, 0.00, 0.40, 0.00, 0.0),
    "g": (0.26, 0.20, 0.00, 0.40, 0.00, 0.0),
    "ng": (0.26, 0.25, 0.00, 0.40, 0.00, 0.0),
    "y": (0.20, 0.60, 0.00, 0.55, 0.00, 0.0),
    "hh": (0.35, 0.15, 0.00, 0.30, 0.00, 0.0),
    # vocalisations bring their own motion
    **{f"<{name}>": (0.0,) * 6 for name in VOCALISATIONS},
}
_GLIDES = {"ay": "iy", "oy": "iy", "ey": "iy", "aw": "uw", "ow": "uw"}  # where a diphthong ends
_CLOSURES = frozenset("mpb")  # the lips must touch
_LABIALS = frozenset("mpbfv")  # the lips must be on time
# How strongly a consonant insists on its mouth (MOUTH without press and tongue); the rest yield
# to their neighbours, so that lips round early in "stew" and the jaw stays open in "ago".
_WEIGHTS = {
    **dict.fromkeys("kg", (0.4, 0.3, 0.3, 0.5)),
    **dict.fromkeys(("ng", "hh"), (0.4, 0.3, 0.3, 0.5)),
    **dict.fromkeys("tdnl", (0.7, 0.5, 0.35, 0.7)),
    **dict.fromkeys(("th", "dh"), (0.8, 0.5, 0.4, 1.0)),
    **dict.fromkeys("sz", (1.0, 0.6, 0.4, 1.0)),
    "ax": (0.7, 0.7, 0.7, 0.7),
}
_SMOOTHING_S = 0.036  # deviation of the Gaussian over the targets
_LABIAL_SMOOTHING_S = 0.014
_JAW, _PRESS = MOUTH.index("jaw"), MOUTH.index("press")
_MOUTH_INDEX = [rig.INDEX[name] for name in MOUTH]
_LOW = torch.tensor([control.low for control in rig.CONTROLS])
_HIGH = torch.tensor([control.high for control in rig.CONTROLS])
_REST = torch.tensor(rig.REST)


class Act(NamedTuple):
    """A vocalisation within a scene."""

    start_s: float  # when its sound begins
    end_s: float
    vocalisation: Vocalisation

    @property
    def name(self) -> str:
        return self.vocalisation.name


def phone_labels(phones: Sequence[Phone], num_frames: int) -> Tensor:
    """Label the middle of each half frame, 20 ms, with its phone.

    Returns:
        (2 `num_frames`,) int64, positions in `PHONES`; silence where no phone is.
    """
    labels = torch.full((2 * num_frames,), PHONES.index(SILENCE))
    rate = 2 * FPS
    for phone in phones:
        first, last = (math.ceil(t * rate - 0.5) for t in (phone.start_s, phone.end_s))
        labels[max(first, 0) : max(last, 0)] = PHONES.index(phone.name)
    return labels


def loudness(waveform: Tensor, num_ticks: int) -> Tensor:
    """Return the sound's level every 10 ms in dB relative to its loud passages.

    Args:
        waveform: (S,), 16 kHz.
        num_ticks: length of the result.

    Returns:
        (num_ticks,), about 0 in stressed vowels, -60 at the least.
    """
    hop = SAMPLE_RATE // TICKS
    size = num_ticks * hop
    padded = torch.nn.functional.pad(waveform, (0, max(0, size - len(waveform))))[:size]
    power = smooth(padded.reshape(num_ticks, hop).square().mean(1, keepdim=True), 0.02)[:, 0]
    level = 10 * torch.log10(power + 1e-10)
    loud = torch.quantile(level, 0.95) if num_ticks else torch.tensor(0.0)
    return (level - loud).clamp(min=-60)


def perform(
    phones: Sequence[Phone],
    num_frames: int,
    emotion: Tensor,
    generator: torch.Generator,
    *,
    waveform: Tensor | None = None,
    acts: Sequence[Act] = (),
    head_motion: float = 1.0,
) -> Tensor:
    """Act out a speech and the vocalisations in it.

    Args:
        phones: of the speech, in seconds.
        num_frames: N.
        emotion: (N, 2) valence and arousal in [-1, 1].
        generator: of blinks, gaze and head motion, the only source of chance.
        waveform: (S,) the speech itself; the louder it is, the wider the jaw opens.
        acts: the vocalisations, whose motion comes on top.
        head_motion: multiplies the head's motion in speech; 0 keeps it still.

    Returns:
        (N, R) in the order of `rig.CONTROLS`, within their ranges.
    """
    emotion = emotion.float()
    num_ticks = math.ceil(num_frames * TICKS / FPS)
    level = None if waveform is None else loudness(waveform, num_ticks)
    mouth = mouth_tracks(phones, num_frames, level)
    mouth[:, _JAW] *= 1 + 0.2 * emotion[:, 1]
    tracks = _REST.expand(num_frames, -1).clone()
    tracks[:, _MOUTH_INDEX] += mouth
    tracks += expression(emotion)
    accents = _accents(phones, level)
    tracks += _head(num_frames, emotion[:, 1], accents, head_motion, generator)
    tracks += _gaze(num_frames, tracks[:, rig.INDEX["yaw"]], generator)
    for act in acts:
        begin_s = act.start_s - act.vocalisation.start_s
        tracks += at_frames(act.vocalisation.tracks, num_frames, begin_s)
    tracks[:, rig.INDEX["blink"]] = _blinks(num_frames, generator)
    return torch.minimum(torch.maximum(tracks, _LOW), _HIGH)


def mouth_tracks(phones: Sequence[Phone], num_frames: int, level: Tensor | None = None) -> Tensor:
    """Blend the visemes of timed phones into tracks, with coarticulation.

    The targets of every 10 ms are averaged with a Gaussian window and each phone's weight, which
    looks as far ahead as back; around lip closures a narrower window takes over, and at least one
    frame of every p, b and m shows the lips closed.

    Args:
        phones: in seconds.
        num_frames: N.
        level: (ticks,) dB from `loudness`, or None.

    Returns:
        (N, 6) in the order of `MOUTH`.
    """
    num_ticks = math.ceil(num_frames * TICKS / FPS)
    targets = torch.tensor(VISEMES[SILENCE]).repeat(num_ticks, 1)
    weights = torch.ones(num_ticks, len(MOUTH))
    labial = torch.zeros(num_ticks, 1)
    closed_at: list[float] = []
    for i, phone in enumerate(phones):
        following = phones[i + 1].name if i + 1 < len(phones) else SILENCE
        for name, start_s, end_s in _gestures(phone, following):
            span = slice(*(min(max(round(t * TICKS), 0), num_ticks) for t in (start_s, end_s)))
            targets[span] = torch.tensor(VISEMES[name])
            weights[span, :4] = torch.tensor(_WEIGHTS.get(name, (1.0, 1.0, 1.0, 1.0)))
            if name in _LABIALS:
                labial[span] = 1.0
            if name in _CLOSURES and phone.name == name:
                closed_at.append((start_s + end_s) / 2)
    if level is not None:
        targets[:, _JAW] *= (1.12 + 0.025 * level).clamp(0.55, 1.12)
    broad = smooth(targets * weights, _SMOOTHING_S) / smooth(weights, _SMOOTHING_S)
    narrow = smooth(targets, _LABIAL_SMOOTHING_S)
    sharpness = (1.6 * smooth(labial, _LABIAL_SMOOTHING_S)).clamp(max=1)
    tracks = torch.lerp(broad, narrow, sharpness)
    frames = at_frames(tracks, num_frames)
    for moment_s in closed_at:
        frame, tick = int(moment_s * FPS), int(moment_s * TICKS)
        if frame < num_frames:
            frames[frame] = tracks[min(tick, num_ticks - 1)]
            frames[frame, _JAW] = 0.0
    return frames


def _gestures(phone: Phone, following: str) -> list[Phone]:
    """Split a phone where the mouth has two aims: a diphthong's glide, a plosive's release."""
    name, start, end = phone
    if name in _GLIDES:
        turn = start + 0.6 * (end - start)
        return [Phone(name, start, turn), Phone(_GLIDES[name], turn, end)]
    if name in "pb" and following != SILENCE and end - start > 0.05:
        turn = start + max(0.05, 0.7 * (end - start))
        return [Phone(name, start, turn), Phone(following, turn, end)]
    return [phone]


def expression(emotion: Tensor) -> Tensor:
    """Return what valence and arousal add to the pose: smooth over the square, 0 at its centre.

    Joy lifts the mouth corners and narrows the eyes, excitement opens eyes and raises brows, anger
    (unpleasant and excited) furrows, sorrow (unpleasant and calm) lifts the inner brows and lowers
    corners, lids and gaze, and calm relaxes the lids.

    Args:
        emotion: (N, 2) valence and arousal in [-1, 1].

    Returns:
        (N, R).
    """
    valence, arousal = emotion.unbind(1)
    pleasant, unpleasant = _positive(valence), _positive(-valence)
    excited, calm = _positive(arousal), _positive(-arousal)
    anger, sorrow = unpleasant * excited, unpleasant * (0.35 + calm) * (1 - 0.9 * excited)
    delight = pleasant * excited
    added = torch.zeros(len(emotion), len(rig.CONTROLS))
    for name, value in {
        "smile": 0.72 * valence + 0.18 * delight + 0.12 * anger,
        "width": 0.16 * pleasant + 0.14 * anger,
        "press": 0.25 * anger,
        "brow": 0.75 * excited + 0.05 * pleasant - 0.7 * anger - 0.35 * calm,
        "furrow": 1.3 * anger - 0.75 * sorrow - 0.1 * delight,
        "lid": 0.34 * calm + 0.14 * pleasant * (1 - 0.5 * excited) + 0.15 * anger - 0.27 * excited,
        "gaze_y": 0.25 * sorrow,
        "shift_y": 0.008 * sorrow - 0.004 * delight,
    }.items():
        added[:, rig.INDEX[name]] = value
    return added


def _positive(x: Tensor) -> Tensor:
    """The positive part of x, smooth, and exactly 0 at 0."""
    return x * torch.sigmoid(8 * x)


def _accents(phones: Sequence[Phone], level: Tensor | None) -> list[tuple[float, float]]:
    """Stressed vowels, longer and louder than their neighbours: (seconds, strength in 0..1)."""
    candidates: list[tuple[float, float]] = []
    for phone in phones:
        if phone.name in VOWELS and phone.end_s - phone.start_s >= 0.07:
            middle = (phone.start_s + phone.end_s) / 2
            strength = phone.end_s - phone.start_s
            tick = int(middle * TICKS)
            if level is not None and tick < len(level):
                strength *= 10 ** (float(level[tick]) / 20)
            candidates.append((middle, strength))
    most = max((strength for _, strength in candidates), default=1.0)
    return [
        (moment, strength / most)
        for i, (moment, strength) in enumerate(candidates)
        if strength == max(other for _, other in candidates[max(0, i - 2) : i + 3])
    ]


def _head(
    num_frames: int,
    arousal: Tensor,
    accents: Sequence[tuple[float, float]],
    amount: float,
    generator: torch.Generator,
) -> Tensor:
    """Slow drift of the head, and on accents a nod that the brows share where it is strong."""
    time_s = (torch.arange(num_frames) + 0.5) / FPS
    energy = amount * (1 + 0.45 * arousal)
    restless = energy * (0.4 + 0.6 * torch.rand((), generator=generator))
    moves = torch.zeros(num_frames, len(rig.CONTROLS))
    # (most, slow part, quick part); the tanh below keeps to the most
    for name, most, slow, quick in (
        ("yaw", 0.5, 0.14, 0.02),
        ("pitch", 0.4, 0.09, 0.015),
        ("tilt", 0.05, 0.012, 0.0016),
        ("shift_x", 0.012, 0.0027, 0.0007),
        ("shift_y", 0.03, 0.0017, 0.0007),
    ):
        drift = slow * _drift(num_frames, 1.1, generator) + quick * _drift(
            num_frames, 0.3, generator
        )
        moves[:, rig.INDEX[name]] = most * torch.tanh(restless * drift / most)
    for moment, strength in accents:
        bump = torch.exp(-0.5 * ((time_s - moment) / 0.13) ** 2)
        moves[:, rig.INDEX["shift_y"]] += 0.006 * strength**2 * energy * bump
        moves[:, rig.INDEX["pitch"]] += 0.28 * strength**2 * energy * bump
        wide = torch.exp(-0.5 * ((time_s - moment) / 0.18) ** 2)
        moves[:, rig.INDEX["brow"]] += 0.5 * max(0.0, strength - 0.6) * energy * wide
    for name, most in (("shift_y", 0.03), ("pitch", 0.6), ("brow", 0.4)):
        moves[:, rig.INDEX[name]].clamp_(-most, most)
    return moves


def _drift(num_frames: int, deviation_s: float, generator: torch.Generator) -> Tensor:
    """(N,) smooth noise of unit variance whose correlation fades over `deviation_s`."""
    margin = math.ceil(3 * deviation_s * FPS)
    noise = torch.randn(num_frames + 2 * margin, generator=generator)
    steps = torch.arange(-margin, margin + 1) / (deviation_s * FPS)
    window = torch.exp(-0.5 * steps**2)
    window = window / window.square().sum().sqrt()
    return torch.nn.functional.conv1d(noise[None, None], window[None, None])[0, 0]


def _gaze(num_frames: int, yaw: Tensor, generator: torch.Generator) -> Tensor:
    """Fixations of 0.4 to 2.5 s, mostly on the viewer, with quick saccades between them."""
    ticks = torch.zeros(math.ceil(num_frames * TICKS / FPS), 2)
    start = 0
    while start < len(ticks):
        hold_s, away = torch.rand(2, generator=generator).tolist()
        spread = 0.04 if away < 0.7 else 0.32
        spot = (torch.randn(2, generator=generator) * spread).clamp(-0.8, 0.8)
        length = max(1, int((0.4 + 2.1 * hold_s) * (1.0 if away < 0.7 else 0.5) * TICKS))
        ticks[start : start + length] = spot
        start += length
    looks = torch.zeros(num_frames, len(rig.CONTROLS))
    fixations = at_frames(smooth(ticks, 0.012), num_frames)
    looks[:, rig.INDEX["gaze_x"]] = fixations[:, 0] - 0.35 * yaw  # the eyes stay on their target
    looks[:, rig.INDEX["gaze_y"]] = 0.7 * fixations[:, 1]
    return looks


def _blinks(num_frames: int, generator: torch.Generator) -> Tensor:
    """(N,) how far a blink closes the lids: every 2 to 6 s, 0.2 s long, 1 in its middle frame."""
    shape = torch.tensor([0.45, 1.0, 0.85, 0.45, 0.12])  # frames; closing is quicker than opening
    closing = torch.zeros(num_frames)
    moment = 6 * float(torch.rand((), generator=generator)) - 1
    while moment * FPS < num_frames:
        first = round(moment * FPS)
        for i, value in enumerate(shape):
            if 0 <= first + i < num_frames:
                closing[first + i] = torch.maximum(closing[first + i], value)
        wait = 2 + 4 * float(torch.rand((), generator=generator))
        moment += wait
    return closing
