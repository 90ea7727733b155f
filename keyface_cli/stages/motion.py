"""Motion that no sound determines: blinks, glances, movements of the head, drawn from the seed.

Not of the paper. A model that is sampled in few steps shows what is likeliest, so whatever the
sound does not foretell would never happen. A portrait decoder has these movements as a condition
instead: one number for each of `config.MOTION` and frame. Any stretch of frames can be asked for,
in any order, and the same seed always gives the same: time is cut into slots, each with a source
of chance of its own.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, MOTION, SAMPLES_PER_FRAME

BLINK_SLOT_S = 3.6  # one blink in each: 17 a minute
BLINK_SHAPE = (0.45, 1.0, 0.85, 0.45, 0.12)  # frames; closing is quicker than opening
DOUBLE_BLINK = 0.1  # how often a blink comes twice
GAZE_SLOT_S = 1.5
GLANCE = 0.3  # how often the eyes leave the viewer
# of each head movement: the deviation of its slow and of its quick part
DRIFTS = {
    "yaw": (0.20, 0.045),
    "pitch": (0.13, 0.035),
    "tilt": (0.019, 0.004),
    "shift_x": (0.010, 0.002),
    "shift_y": (0.006, 0.002),
}
SLOW_S, QUICK_S = 2.4, 0.7  # between the points that a drift goes through
NOD = 0.22  # pitch of the nod at a strong accent
NOD_S = 0.14  # deviation of its course
NOD_REACH = 3.5  # deviations from its middle to where it ends
ACCENT_S = 0.4  # an accent is the loudest frame within this time on both sides
ACCENT_DB = 5.0  # by how much an accent is louder than what is around, at least
QUIET_DB = -35.0  # a pause: this much below the loudest frame around
LIMITS = {"yaw": 0.7, "pitch": 0.55, "tilt": 0.07, "shift_x": 0.04, "shift_y": 0.03}


@dataclass(frozen=True)
class Motion:
    """The movements of one video.

    Args:
        waveform: (S,) mono at 16 kHz, an array or whatever reads slices of one; blinks prefer its
            pauses, and the head nods at its accents.
        num_frames: N.
        seed: the user's random seed.
        liveliness: multiplies the movements of head and eyes, and how often the lids blink, 0 to
            1; 0 is still.
    """

    waveform: Any
    num_frames: int
    seed: int
    liveliness: float = 1.0

    def frames(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the movements of frames `first` to `last` - 1: (last - first, 8).

        In the order of `config.MOTION`: how far a blink closes the lids (0 to 1), where the eyes
        look (right and down, -1 to 1), how the head is turned to the right and down (-1 to 1, some
        12 degrees) and leans (radians), and where it has gone (right and down, half pictures), all
        from where they are in the portrait.
        """
        moves = {name: np.zeros(last - first) for name in MOTION}
        if self.liveliness > 0:
            level = self._level(first, last)
            moves["blink"] = self._blinks(first, last)
            self._head(moves, first, last, level)
            self._gaze(moves, first, last)
        return np.stack([moves[name] for name in MOTION], 1).astype(np.float32)

    def _chance(self, what: str, slot: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/{what}/{slot}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def _level(self, first: int, last: int) -> NDArray[np.float64]:
        """Loudness of frames from `first` - margin to `last` + margin in dB, see `_margin`."""
        begin, end = first - _MARGIN, last + _MARGIN
        a, b = max(begin, 0), min(end, self.num_frames)
        level = np.full(end - begin, -100.0)
        if b > a:
            samples = np.asarray(self.waveform[a * SAMPLES_PER_FRAME : b * SAMPLES_PER_FRAME])
            samples = np.pad(samples, (0, (b - a) * SAMPLES_PER_FRAME - len(samples)))
            power = np.square(samples.astype(np.float64)).reshape(b - a, -1).mean(1)
            level[a - begin : b - begin] = 10 * np.log10(power + 1e-10)
        return level

    def _blinks(self, first: int, last: int) -> NDArray[np.float64]:
        closing = np.zeros(last - first)
        slot_frames = BLINK_SLOT_S * FPS
        reach = len(BLINK_SHAPE) + 8
        for slot in range(
            math.floor((first - reach) / slot_frames) - 1, int(last / slot_frames) + 2
        ):
            if slot < 0:
                continue
            for begin in self._blinks_of(slot):
                for i, value in enumerate(BLINK_SHAPE):
                    if first <= begin + i < last:
                        closing[begin + i - first] = max(closing[begin + i - first], value)
        return closing

    def _blinks_of(self, slot: int) -> list[int]:
        """The frames at which the blinks of a slot begin."""
        chance = self._chance("blink", slot)
        slot_frames = BLINK_SLOT_S * FPS
        start = slot * slot_frames
        wanted = start + chance.uniform(0.06, 0.94) * slot_frames
        dropped, double = chance.random() > self.liveliness, chance.random() < DOUBLE_BLINK
        if dropped:
            return []
        # a pause nearby draws the blink to it
        a, b = int(start + 0.05 * slot_frames), int(start + 0.95 * slot_frames)
        level = self._level(a, b)
        around = level[_MARGIN : _MARGIN + b - a]
        quiet = np.flatnonzero(around < level.max() + QUIET_DB) + a
        begin = round(wanted)
        if len(quiet) and chance.random() < 0.6:
            begin = int(quiet[np.argmin(np.abs(quiet - wanted))])
        return [begin, begin + len(BLINK_SHAPE) + 2] if double else [begin]

    def _head(
        self,
        moves: dict[str, NDArray[np.float64]],
        first: int,
        last: int,
        level: NDArray[np.float64],
    ) -> None:
        time_s = (np.arange(first, last) + 0.5) / FPS
        for name, (slow, quick) in DRIFTS.items():
            drift = slow * self._noise(f"{name} slow", time_s / SLOW_S)
            drift = drift + quick * self._noise(f"{name} quick", time_s / QUICK_S)
            moves[name] = drift
        for frame in self._accents(first, level):
            strength = 0.5 + 0.5 * self._chance("nod", frame).random()
            away = (time_s - (frame + 0.5) / FPS) / NOD_S
            # cut off, so that it does not matter which frames are asked for
            course = np.where(np.abs(away) < NOD_REACH, np.exp(-0.5 * away**2), 0.0)
            moves["pitch"] = moves["pitch"] + NOD * strength * course
        for name, most in LIMITS.items():
            moves[name] = self.liveliness * most * np.tanh(moves[name] / most)

    def _accents(self, first: int, level: NDArray[np.float64]) -> list[int]:
        """Frames that are louder than all around them, some way beyond the ends too."""
        reach = round(ACCENT_S * FPS)
        found = []
        for i in range(reach, len(level) - reach):
            around = level[i - reach : i + reach + 1]
            if level[i] == around.max() and level[i] > np.median(around) + ACCENT_DB:
                found.append(first - _MARGIN + i)
        return found

    def _noise(self, name: str, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """Smooth noise of about unit variance through a random value at every whole place."""
        lower = np.floor(place).astype(int)
        knots = range(int(lower.min()) - 1, int(lower.max()) + 3)
        values = np.array([self._chance(name, knot).normal() for knot in knots])
        index = lower - knots.start
        t = (place - lower)[:, None]
        # a cubic B-spline, whose curve never turns sharply
        weights = np.concatenate(
            [
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            ],
            1,
        )
        near = values[index[:, None] + np.arange(-1, 3)]
        result: NDArray[np.float64] = (weights * near).sum(1) * 1.5
        return result

    def _gaze(self, moves: dict[str, NDArray[np.float64]], first: int, last: int) -> None:
        frames = np.arange(first, last)
        slots = range(int(first / (GAZE_SLOT_S * FPS)) - 1, int(last / (GAZE_SLOT_S * FPS)) + 2)
        looks = np.zeros((len(frames), 2))
        for slot in slots:
            if slot < 0:
                continue
            chance = self._chance("gaze", slot)
            begin = (slot + chance.uniform(0.1, 0.9)) * GAZE_SLOT_S * FPS
            spread = 0.32 if chance.random() < GLANCE else 0.035
            spot = np.clip(chance.normal(size=2) * spread, -0.7, 0.7) * (1.0, 0.7)
            # the eyes are there within two frames, and stay until the next one
            arrived = np.clip((frames - begin) / 2 + 0.5, 0, 1)[:, None]
            looks = looks + arrived * (spot - looks)
        # they stay on their target while the head turns
        moves["gaze_x"] = np.clip(self.liveliness * looks[:, 0] - 0.35 * moves["yaw"], -0.8, 0.8)
        moves["gaze_y"] = np.clip(self.liveliness * looks[:, 1] - 0.35 * moves["pitch"], -0.6, 0.6)


# frames on both sides of a stretch that say what its accents and nods are
_MARGIN = round((ACCENT_S + NOD_REACH * NOD_S) * FPS) + 2
