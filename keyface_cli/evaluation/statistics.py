"""Means over clips and their 95 % intervals by bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyface_cli.evaluation.measures import Column
from keyface_cli.evaluation.runner import MethodResult

RESAMPLES = 1000
_NORMAL = 1.96  # standard deviations to each side of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Args:
        value: the mean over clips, or the figure of the set.
        low: end of the interval; NaN where there are too few clips.
        high: the other end.
        clips: how many were scored.
    """

    value: float
    low: float
    high: float
    clips: int


def bootstrap_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean; NaN of fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def estimate(result: MethodResult, column: Column) -> Estimate | None:
    """Return a column's figure of a method; None where nothing was scored.

    Of a mean over clips the interval is of percentiles; of a whole set, as FID, it is normal
    with the bootstrap's standard error, because few resamples are drawn and they are biased.
    """
    if column.key in result.overall:
        value = result.overall[column.key]
        error = _NORMAL * result.spread.get(column.key, float("nan"))
        return Estimate(value, max(value - error, 0.0), value + error, len(result.clips))
    values = np.array([c.values[column.key] for c in result.clips if column.key in c.values])
    if not len(values):
        return None
    return Estimate(float(values.mean()), *bootstrap_mean(values), len(values))
