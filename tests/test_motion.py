"""Blinks, glances and the head's way: drawn from the seed, in any order, and as still as wanted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from keyface_cli.config import FPS, MOTION, SAMPLES_PER_FRAME
from keyface_cli.stages.motion import LIMITS, Motion

MINUTES = 4
N = MINUTES * 60 * FPS


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    """Syllables, five a second, in phrases of two seconds with half a second between them."""
    time_s = np.arange(N * SAMPLES_PER_FRAME) / 16_000
    syllables = np.sin(np.pi * 2.5 * time_s) ** 2 * (time_s % 2.5 < 2.0)
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.uniform(0.3, 1.0, len(time_s) // 6400 + 1), 6400)[: len(time_s)]
    return (0.2 * syllables * loud * np.sin(2 * np.pi * 180 * time_s)).astype(np.float32)


def control(frames: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    return frames[:, MOTION.index(name)]


def blinks(frames: NDArray[np.float32]) -> NDArray[np.int64]:
    """Frames at which the lids are closed."""
    closed = control(frames, "blink") >= 1
    return np.flatnonzero(closed & ~np.r_[False, closed[:-1]])


def test_any_stretch_is_the_same_bits(speech: NDArray[np.float32]) -> None:
    motion = Motion(speech, N, 7)
    whole = motion.frames(0, 800)
    pieces = [motion.frames(i, min(i + 14, 800)) for i in range(0, 800, 14)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert np.array_equal(motion.frames(333, 444), whole[333:444])


def test_blinks_come_as_often_as_people_blink(speech: NDArray[np.float32]) -> None:
    rates = [len(blinks(Motion(speech, N, seed).frames(0, N))) / MINUTES for seed in range(4)]
    assert all(10 <= rate <= 25 for rate in rates), rates
    frames = Motion(speech, N, 0).frames(0, N)
    assert control(frames, "blink").max() == 1
    assert (control(frames, "blink") == 0).mean() > 0.8


def test_blinks_prefer_pauses(speech: NDArray[np.float32]) -> None:
    in_pause = []
    for seed in range(6):
        at = blinks(Motion(speech, N, seed).frames(0, N)) / FPS
        in_pause.append((at % 2.5 > 1.9).mean())
    assert np.mean(in_pause) > 0.35  # a pause takes a fifth of the time


def test_the_head_nods_at_accents(speech: NDArray[np.float32]) -> None:
    quiet = Motion(np.zeros_like(speech), N, 3).frames(0, N)
    moved = Motion(speech, N, 3).frames(0, N)
    nods = control(moved, "pitch") - control(quiet, "pitch")
    assert nods.max() > 0.1
    assert nods.min() > -0.05  # down, never up
    assert np.array_equal(control(moved, "yaw"), control(quiet, "yaw"))


def test_two_seeds_are_two_performances(speech: NDArray[np.float32]) -> None:
    one, same, other = (Motion(speech, N, seed).frames(0, 500) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    for name in MOTION:
        assert not np.array_equal(control(one, name), control(other, name)), name


def test_it_moves_within_limits_and_without_jumps(speech: NDArray[np.float32]) -> None:
    frames = Motion(speech, N, 5).frames(0, N)
    for name, most in LIMITS.items():
        track = control(frames, name)
        assert np.abs(track).max() <= most
        assert track.std() > 0.05 * most
        assert np.abs(np.diff(track)).max() < 0.35 * most, name


@pytest.mark.parametrize("seed", [0, -3, 2**40])
def test_stillness_is_none(speech: NDArray[np.float32], seed: int) -> None:
    assert not Motion(speech, N, seed, liveliness=0.0).frames(0, 300).any()
    half, full = (Motion(speech, N, seed, x).frames(0, 3000) for x in (0.5, 1.0))
    assert len(blinks(half)) < len(blinks(full))
    assert control(half, "yaw") == pytest.approx(control(full, "yaw") / 2, abs=1e-6)


def test_a_video_may_be_shorter_than_a_blink() -> None:
    assert Motion(np.zeros(SAMPLES_PER_FRAME, np.float32), 1, 0).frames(0, 1).shape == (1, 8)
