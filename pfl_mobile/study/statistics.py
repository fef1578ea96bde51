"""Means with their uncertainty, over users."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from typing_extensions import override

#: Resamples of a bootstrap interval.
RESAMPLES = 2000

#: From so many users on the bootstrap covers what it says; below, Student's t is used.
ENOUGH = 12


@dataclass(frozen=True)
class Interval:
    """A mean over users with its confidence interval.

    Attributes:
        mean: over the users.
        low, high: percentile bootstrap interval, users resampled (Efron and Tibshirani 1993, chapter 13), with the
            percentiles widened for small samples (Hesterberg 2015, arXiv 1411.5279, section 5.3); with fewer than
            ``ENOUGH`` users Student's t; NaN with one.
        level: its coverage, for instance 0.95.
        users: how many.
    """

    mean: float
    low: float
    high: float
    level: float
    users: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not known."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(self).items()}

    @override
    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.2f} (one user, so no interval)"
        digits = ".2f" if max(abs(self.low), abs(self.high)) >= 1 else ".4f"
        return (
            f"{self.mean:+{digits}} ({100 * self.level:.0f} %: {self.low:+{digits}} to {self.high:+{digits}})"
        )


def interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over users and its interval, see ``Interval``.

    Args:
        values: one number a user, float [n], n >= 1.
        level: coverage of the interval.
        seed: of the resampling; the same seed gives the same interval.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < ENOUGH:
        return student_interval(values, level=level)
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    # Some resamples at a time, so that memory does not grow with users times resamples.
    step = max(1, 2_000_000 // count)
    for at in range(0, RESAMPLES, step):
        chosen = generator.integers(count, size=(min(step, RESAMPLES - at), count))
        means[at : at + step] = values[chosen].mean(axis=1)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student(count - 1, level))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), level, count)


def student_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Mean and Student's t interval of a few values, float [n]; without bounds (NaN) for one."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, math.nan, math.nan, level, count)
    half = student(count - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, level, count)


@lru_cache(maxsize=1024)
def student(freedom: int, level: float = 0.95) -> float:
    """The t that a variable of Student's distribution exceeds in size with probability ``1 - level``.

    Exact (Abramowitz and Stegun 26.7.3 and 26.7.4, by bisection) up to 30 degrees of freedom, then to three digits
    by the expansion about the normal quantile (26.7.5).
    """
    if freedom > 30:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability that a variable of Student's distribution is in [-t, t]."""
    angle = math.atan2(t, math.sqrt(freedom))
    odd, square = freedom % 2, math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(odd, freedom - 1, 2):  # cos^i times products of odd over even numbers, or the reverse
        total += term
        term *= square * (i + 1) / (i + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


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
