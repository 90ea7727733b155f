"""The Frechet distance between two sets of features, each taken for a Gaussian (Heusel 2017).

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), all in float64. The last trace is computed
as the sum of the singular values of A1 A2', where S = A'A: exact where a covariance is
rank-deficient, as with fewer samples than features, where a root of the product loses half of the
digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
RELIABLE_SAMPLES = 2048  # fewer make a covariance of Inception features rank-deficient


@dataclass(frozen=True)
class Gaussian:
    """What features are taken for.

    Args:
        mean: (D,).
        factor: (r, D), whose product with itself, A'A, is the unbiased covariance.
    """

    mean: Matrix
    factor: Matrix

    @property
    def spread(self) -> float:
        """The trace of the covariance."""
        return float((self.factor**2).sum())


def gaussian_of(
    clips: Sequence[NDArray[np.floating]], weights: Sequence[float] | None = None
) -> Gaussian:
    """Return the Gaussian of the features of clips, each (n, D), clip i counted `weights[i]` times.

    Raises:
        ValueError: fewer than two features.
    """
    counted = [1.0] * len(clips) if weights is None else weights
    kept = [(w, x) for w, x in zip(counted, clips, strict=True) if len(x) and w]
    count = float(sum(w * len(x) for w, x in kept))
    if count < 2:
        raise ValueError(f"{count:g} features have no covariance")
    sums = [w * x.sum(axis=0, dtype=np.float64) for w, x in kept]
    mean = np.sum(sums, axis=0) / count
    rows = (np.sqrt(w / (count - 1)) * (x - mean) for w, x in kept)
    if sum(len(x) for _, x in kept) <= len(mean):  # smaller than a factor of the covariance
        return Gaussian(mean, np.concatenate(list(rows)))
    return Gaussian(mean, _factor(np.asarray(sum(x.T @ x for x in rows))))


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
