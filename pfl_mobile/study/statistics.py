"""Means with their uncertainty, over users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Resamples of a bootstrap interval.
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over users with a bootstrap interval.

    Attributes:
        mean: over the users.
        low, high: percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13), users resampled.
        level: its coverage, for instance 0.95.
        users: how many.
    """

    mean: float
    low: float
    high: float
    level: float
    users: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self).copy()

    def __str__(self) -> str:
        digits = ".2f" if max(abs(self.low), abs(self.high)) >= 1 else ".4f"
        return (
            f"{self.mean:+{digits}} ({100 * self.level:.0f} %: {self.low:+{digits}} to {self.high:+{digits}})"
        )


def interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over users and its bootstrap interval.

    Args:
        values: one number a user, float [n], n >= 1.
        level: coverage of the interval.
        seed: of the resampling; the same seed gives the same interval.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    # Some resamples at a time, so that memory does not grow with users times resamples.
    step = max(1, 2_000_000 // count)
    for at in range(0, RESAMPLES, step):
        chosen = generator.integers(count, size=(min(step, RESAMPLES - at), count))
        means[at : at + step] = values[chosen].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, count)


def divergence(histograms: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each user's labels from everybody's, in bits: 0 the same, 1 disjoint.

    Small samples look more different than they are: n draws from everybody's L labels already show
    (L - 1) / (8 n ln 2) bits, to first order. That is subtracted, and the result is not below 0.

    Args:
        histograms: counts of each label for each user, [n, L]; every user has at least one.
    """
    counts = np.asarray(histograms, np.float64)
    sizes = counts.sum(axis=1, keepdims=True)
    own, pooled = counts / sizes, (counts / sizes).mean(axis=0, keepdims=True)
    middle = (own + pooled) / 2

    def relative(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms: np.ndarray = np.where(p > 0, p * np.log2(p / q), 0.0)
        return np.asarray(terms.sum(axis=1))

    found = relative(own, middle) / 2 + relative(np.broadcast_to(pooled, own.shape), middle) / 2
    labels = int((pooled > 0).sum())
    bias = (labels - 1) / (8 * np.log(2) * sizes[:, 0])
    return np.asarray(np.maximum(found - bias, 0.0), np.float64)
