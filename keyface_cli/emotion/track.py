"""A curve of valence and arousal: keys, what lies between them, and what a model reads of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.emotion.names import NAMED
from keyface_cli.errors import EmotionError
from keyface_cli.stages.timeline import Timeline

# how the curve goes on from a key to the next one
EASES = ("linear", "hold", "smooth")


@dataclass(frozen=True)
class Key:
    """One point of a curve.

    `emotion` and `intensity` are kept where the key was given by a name, so that it is written as
    it was read; `valence` and `arousal` are always there.
    """

    time_s: float  # from the start of the video, >= 0
    valence: float  # in [-1, 1]
    arousal: float  # in [-1, 1]
    ease: str = "linear"  # one of EASES: the way to the next key
    emotion: str | None = None  # one of NAMED
    intensity: float = 1.0  # in [0, 1]: 0 is neutral, 1 the name's own values

    @classmethod
    def named(
        cls, time_s: float, emotion: str, intensity: float = 1.0, ease: str = "linear"
    ) -> Key:
        """Return a key at a named emotion, nearer to neutral where `intensity` is below 1."""
        valence, arousal = (intensity * value for value in NAMED[emotion])
        return cls(time_s, valence, arousal, ease, emotion, intensity)


@dataclass(frozen=True)
class KeyframeEmotion:
    """The curve at one keyframe, which is all that a model reads of it."""

    frame: int
    valence: float
    arousal: float

    @property
    def time_s(self) -> float:
        """Seconds from the start of the video."""
        return self.frame / FPS


@dataclass(frozen=True)
class EmotionTrack:
    """A curve: at least one key, in order of time.

    Raises:
        EmotionError: there is no key, a number is out of range, or the times do not rise.
    """

    keys: tuple[Key, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise EmotionError("the curve holds no key")
        before = -1.0
        for number, key in enumerate(self.keys, start=1):
            bounded = -1 <= key.valence <= 1 and -1 <= key.arousal <= 1 and 0 <= key.intensity <= 1
            if not (bounded and 0 <= key.time_s < float("inf") and key.ease in EASES):
                raise EmotionError(f"key {number} of the curve is out of range: {key}")
            if key.time_s <= before:
                raise EmotionError(f"key {number} of the curve is not after the one before it")
            before = key.time_s

    @classmethod
    def constant(cls, valence: float, arousal: float) -> EmotionTrack:
        """Return the track that holds one state."""
        return cls((Key(0.0, valence, arousal),))

    @property
    def end_s(self) -> float:
        """Time of the last key; the curve holds from there on."""
        return self.keys[-1].time_s

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return valence and arousal (N, 2) at times (N,) in seconds.

        A key's ease rules until the next key: a straight line, its value held, or a monotone cubic
        that never leaves the range of its two keys (`_slopes`). Before the first key and after the
        last the value holds.
        """
        t = np.array([key.time_s for key in self.keys])
        values = np.array([(key.valence, key.arousal) for key in self.keys])
        eases = np.array([EASES.index(key.ease) for key in self.keys])
        left = np.clip(np.searchsorted(t, times, side="right") - 1, 0, len(t) - 1)
        right = np.minimum(left + 1, len(t) - 1)
        width = np.where(right > left, t[right] - t[left], 1.0)
        x = np.clip((times - t[left]) / width, 0.0, 1.0)[:, None]
        a, b = values[left], values[right]
        linear = a + (b - a) * x
        slopes = _slopes(t, values, eases == EASES.index("hold"))
        # cubic Hermite; the ends' slopes are scaled to the segment's width
        da, db = slopes[left] * width[:, None], slopes[right] * width[:, None]
        cubic = (
            a * (1 + 2 * x) * (1 - x) ** 2
            + da * x * (1 - x) ** 2
            + b * x**2 * (3 - 2 * x)
            + db * x**2 * (x - 1)
        )
        cubic = np.clip(cubic, np.minimum(a, b), np.maximum(a, b))  # the last bit of rounding
        ease = eases[left][:, None]
        return np.where(ease == 0, linear, np.where(ease == 1, a, cubic))

    def sample(self, num_frames: int) -> NDArray[np.float32]:
        """Return (num_frames, 2) valence and arousal at 25 frames a second."""
        return self.at(np.arange(num_frames) / FPS).astype(np.float32)

    def at_keyframes(self, num_frames: int) -> list[KeyframeEmotion]:
        """Return what a model reads: the curve at the frame of each keyframe."""
        plan = Timeline(num_frames)
        frames = [plan.keyframe_audio(k) for k in range(plan.num_keyframes)]
        values = self.at(np.array(frames) / FPS)
        pairs = zip(frames, values.tolist(), strict=True)
        return [KeyframeEmotion(frame, *values) for frame, values in pairs]

    def scaled(self, strength: float) -> EmotionTrack:
        """Return the curve with every key `strength` times as far from neutral, clipped once.

        Keys that were given by a name are given by their values then.
        """
        if strength == 1:
            return self
        scaled = (
            Key(k.time_s, _clip(strength * k.valence), _clip(strength * k.arousal), k.ease)
            for k in self.keys
        )
        return EmotionTrack(tuple(scaled))


def _clip(value: float) -> float:
    return round(min(1.0, max(-1.0, value)), 9)


def _slopes(
    t: NDArray[np.float64], values: NDArray[np.float64], hold: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the slope of a smooth curve at each key: (K, 2) for times (K,) and values (K, 2).

    The weighted harmonic mean of the slopes at both sides, 0 where they turn (Fritsch and Butland,
    1984: PCHIP). The curve is level before the first key, after the last, and where it is held, so
    that two keys alone make an ease-in and ease-out.
    """
    slopes = np.zeros_like(values)
    if len(t) < 3:
        return slopes
    h = np.diff(t)[:, None]
    w0, w1 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(all="ignore"):  # keys may be as near as numbers can be
        secants = np.where(hold[:-1, None], 0.0, np.diff(values, axis=0) / h)
        d0, d1 = secants[:-1], secants[1:]
        same = np.sign(d0) * np.sign(d1) > 0
        mean = (w0 + w1) / (w0 / d0 + w1 / d1)
    slopes[1:-1] = np.where(same & np.isfinite(mean), mean, 0.0)
    return slopes
