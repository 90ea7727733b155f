"""The Frechet distance between two sets of features, each taken for a Gaussian (Heusel 2017).

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), all in float64. The last trace is computed
as the sum of the singular values of A1 A2', where S = A'A: exact where a covariance is
rank-deficient, as with fewer samples than features, where a root of the product loses half of the
digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
RELIABLE_SAMPLES = 2048  # fewer make a covariance of Inception features rank-deficient


@dataclass(frozen=True)
class Gaussian:
    """What `count` features are taken for.

    Args:
        mean: (D,).
        factor: (r, D), whose product with itself, A'A, is the unbiased covariance.
        count: how many features.
    """

    mean: Matrix
    factor: Matrix
    count: float

    @property
    def covariance(self) -> Matrix:
        """(D, D)."""
        return np.asarray(self.factor.T @ self.factor)

    @property
    def spread(self) -> float:
        """The trace of the covariance."""
        return float((self.factor**2).sum())


def gaussian_of(features: NDArray[np.floating], weights: Matrix | None = None) -> Gaussian:
    """Return the Gaussian of features (n, D), row i counted `weights[i]` times; best for n <= D.

    Raises:
        ValueError: fewer than two features.
    """
    x = np.asarray(features, np.float64)
    w = np.ones(len(x)) if weights is None else weights
    count = float(w.sum())
    if count < 2:
        raise ValueError(f"{count:g} features have no covariance")
    mean = w @ x / count
    return Gaussian(mean, np.sqrt(w / (count - 1))[:, None] * (x - mean), count)


class FeatureStatistics:
    """Mean and covariance of features as they come, in memory that does not grow.

    Args:
        size: D, the width of a feature.
    """

    def __init__(self, size: int) -> None:
        self.count = 0.0
        self._origin: Matrix | None = None  # subtracted, so that no digits cancel
        self._sum = np.zeros(size)
        self._outer = np.zeros((size, size))

    def add(self, features: NDArray[np.floating], weight: float = 1.0) -> None:
        """Add features (n, D), each `weight` times."""
        if not len(features) or not weight:
            return
        x = np.asarray(features, np.float64)
        if self._origin is None:
            self._origin = x.mean(axis=0)
        x = x - self._origin
        self.count += weight * len(x)
        self._sum += weight * x.sum(axis=0)
        self._outer += weight * (x.T @ x)

    def gaussian(self) -> Gaussian:
        """Return what was seen.

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2 or self._origin is None:
            raise ValueError(f"{self.count:g} features have no covariance")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self._origin + mean, _factor(covariance), self.count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Frechet distance, which the field calls FID or FVD: >= 0."""
    difference = a.mean - b.mean
    overlap = a.factor @ b.factor.T
    root = float(np.linalg.svd(overlap, compute_uv=False).sum()) if overlap.size else 0.0
    return max(float(difference @ difference) + a.spread + b.spread - 2 * root, 0.0)


def _factor(covariance: Matrix) -> Matrix:
    """Return A (r, D) with A'A = covariance, r its numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return np.asarray((vectors[:, kept] * np.sqrt(values[kept])).T)
