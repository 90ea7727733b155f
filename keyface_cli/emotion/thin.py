"""Dense tracks of valence and arousal: smoothed, and thinned to the few keys that say the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.emotion.track import EmotionTrack, Key


def smooth(
    values: NDArray[np.float64], width: float, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Average a track with its neighbours in time.

    Args:
        values: (N, C).
        width: standard deviation of the Gaussian, in samples; 0 leaves the track as it is.
        weights: (N,) how much each sample counts, >= 0; where all nearby count nothing, the
            nearest that does is taken.

    Returns:
        (N, C).
    """
    if weights is None:
        weights = np.ones(len(values))
    if not weights.any():
        return np.zeros_like(values)
    kernel = np.ones(1)
    if width > 0:
        reach = min(int(4 * width) + 1, max(1, len(values) - 1))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = _convolve(weights, kernel)
    sums = [_convolve(column * weights, kernel) for column in values.T]
    known = total > 1e-6 * kernel.sum()
    averages = np.stack(sums, axis=1)[known] / total[known, None]
    places = np.arange(len(values))
    columns = [np.interp(places, places[known], column) for column in averages.T]
    return np.stack(columns, axis=1)


def _convolve(track: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    reach = len(kernel) // 2
    return np.convolve(track, kernel)[reach : reach + len(track)]


def resample(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a track of times (N,) and values (N, 2) at every video frame up to its end."""
    frames = np.arange(int(times[-1] * FPS + 1e-6) + 1) / FPS
    columns = [np.interp(frames, times, column) for column in values.T]
    return frames, np.stack(columns, axis=1)


def thin(times: NDArray[np.float64], values: NDArray[np.float64], tolerance: float) -> EmotionTrack:
    """Return the curve of few keys that stays within a tolerance of a dense one.

    Keys are put where straight lines between the others are furthest off, until none is further
    than the tolerance (Ramer, Douglas and Peucker, with distances in value).

    Args:
        times: (N,) seconds, rising, N >= 1.
        values: (N, 2) valence and arousal; clipped to [-1, 1].
        tolerance: the furthest that a value may be off, >= 0.
    """
    values = np.clip(values, -1.0, 1.0)
    kept = {0, len(times) - 1}
    open_spans = [(0, len(times) - 1)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        share = (times[first : last + 1] - times[first]) / (times[last] - times[first])
        line = values[first] + share[:, None] * (values[last] - values[first])
        off = np.abs(values[first : last + 1] - line).max(axis=1)
        worst = int(off.argmax())
        if off[worst] > tolerance:
            kept.add(first + worst)
            open_spans += [(first, first + worst), (first + worst, last)]
    if len(kept) == 2 and np.abs(values[0] - values[-1]).max() <= tolerance:
        kept = {0}
    places = sorted(kept)
    return every(times[places], values[places])


def every(times: NDArray[np.float64], values: NDArray[np.float64]) -> EmotionTrack:
    """Return the curve with a key at each of the times (N,), in thousandths; values are (N, 2)."""
    moments = np.round(times, 3).tolist()
    pairs = np.round(np.clip(values, -1.0, 1.0), 3).tolist()
    return EmotionTrack(tuple(Key(t, *pair) for t, pair in zip(moments, pairs, strict=True)))
