"""Merge rules that a part of the devices cannot lead astray, whatever these send.

Each says how many attackers it bears. ``attackers`` is a part of the updates of a merge: a cohort drawn at random
may have more of them than the population, so assume more than there are. Weights count only where a rule says so:
a device names its number of examples itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import NonFiniteError, TooFewUpdatesError
from pfl_mobile.hyperparameters import Param
from pfl_mobile.merge.rules import Mean, MergeRule, parts_of, rule
from pfl_mobile.merge.update_rows import UpdateRows, by_columns, finite_gram, finite_norms, weighted_sum

Attackers = Annotated[
    float,
    Param("part of the updates that attackers may send; 0 assumes none", low=0.0, high=0.5, open=("high",)),
]


def assumed(attackers: float, count: int) -> int:
    """f: this part of ``count`` updates, rounded up."""
    # Less what lies in the last bits: 0.1 * 30 is 3.0000000000000004.
    return math.ceil(attackers * count - 1e-9)


def _enough(name: str, count: int, attackers: float, needed: int) -> None:
    """Refuse fewer updates than ``needed`` (TooFewUpdatesError)."""
    if count < needed:
        raise TooFewUpdatesError(
            f"{name} with {assumed(attackers, count)} attackers among {count} updates needs {needed} updates",
            mend="take larger cohorts, or assume fewer attackers",
        )


@rule(
    "norm_bound",
    title="The weighted mean of updates of bounded norm",
    paper="Sun, Kairouz, Suresh, McMahan 2019, Can you really backdoor federated learning? (arXiv 1911.07963)",
)
@dataclass(frozen=True, kw_only=True)
class NormBound(MergeRule):
    """sum_i w_i min(1, M / |x_i|) x_i / sum_i w_i, with L2 norms over all values together.

    An attacker moves the mean by at most M times its part of the weight, so scaled updates lose their scale; those
    of usual size count as any other. Without ``bound``, M is the median of the norms: less than half of the updates
    cannot raise it above what the others have.

    Limits: a bound above all norms is the weighted mean.
    """

    bound: Annotated[
        float | None, Param("largest norm M of an update; none: the median", low=0.0, open=("low",))
    ] = None

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """Reads the updates twice."""
        parts = parts_of(len(rows), weights)
        found = finite_norms(rows)
        most = float(np.median(found[parts > 0])) if self.bound is None else self.bound
        used = parts * np.divide(most, found, out=np.ones_like(found), where=found > most)
        return Mean(weighted_sum(rows, used, out_dtype=np.float32, threads=threads), used)


@dataclass(frozen=True, kw_only=True)
class _ByValue(MergeRule):
    """Base of the rules that take each value by itself, from the sorted values of all updates.

    Updates of weight 0 are left out and all others count the same.
    """

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """Reads the updates once, some columns of all of them at a time."""
        chosen = parts_of(len(rows), weights) > 0
        count = int(chosen.sum())
        cut = self._cut(count)
        values = np.empty(rows.width, np.float32)
        for columns, block in by_columns(rows):
            # Each value's n numbers side by side: sorting along the other axis is several times slower.
            ordered = np.sort(np.ascontiguousarray(block[chosen].T), axis=1)
            if not np.isfinite(ordered[:, [0, -1]]).all():  # NaN is sorted to the end
                raise NonFiniteError(
                    "an update has values that are NaN or infinite",
                    mend="refuse such updates before the merge",
                )
            values[columns] = ordered[:, cut : count - cut].mean(axis=1, dtype=np.float64)
        return Mean(values, None)

    def _cut(self, count: int) -> int:
        """How many numbers to leave out at each end, of ``count``."""
        raise NotImplementedError


@rule(
    "median",
    title="The median of each value",
    paper="Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-robust distributed learning: towards optimal statistical "
    "rates (arXiv 1803.01498)",
)
@dataclass(frozen=True, kw_only=True)
class Median(_ByValue):
    """The coordinate-wise median (the paper's definition 1); of an even number, the mean of the two in the middle.

    Fewer than half of the updates cannot move a value beyond those of the others. Where devices' data differ, the
    median is not the mean: it leaves out what only a minority learned.
    """

    @override
    def _cut(self, count: int) -> int:
        return (count - 1) // 2


@rule(
    "trimmed_mean",
    title="The mean of each value without the largest and smallest ones",
    paper="Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-robust distributed learning: towards optimal statistical "
    "rates (arXiv 1803.01498)",
)
@dataclass(frozen=True, kw_only=True)
class TrimmedMean(_ByValue):
    """The coordinate-wise beta-trimmed mean (the paper's definition 2) with beta = ``attackers``.

    Of each value, the f = ceil(beta n) largest and the f smallest are left out. Needs n > 2 f; then f attackers
    cannot move a value beyond those of the others.

    Limits: attackers = 0 is the plain mean; attackers toward 1/2 is the median.
    """

    attackers: Attackers = 0.2

    @override
    def check_count(self, count: int) -> None:
        """2 f + 1 are needed."""
        _enough("a trimmed mean", count, self.attackers, 2 * assumed(self.attackers, count) + 1)

    @override
    def _cut(self, count: int) -> int:
        self.check_count(count)
        return assumed(self.attackers, count)


@rule(
    "krum",
    title="The update that is nearest to its neighbours",
    paper="Blanchard, El Mhamdi, Guerraoui, Stainer 2017, Machine learning with adversaries: Byzantine tolerant "
    "gradient descent (NeurIPS)",
)
@dataclass(frozen=True, kw_only=True)
class Krum(MergeRule):
    """The update x_i with the least sum of squared distances to its n - f - 2 nearest others (the paper's section 4).

    f = ceil(attackers n), and n >= 2 f + 3 is needed. Of equal sums the first counts. Weights do not count, but
    updates of weight 0 are left out. Memory grows by n^2 numbers, time by n^2 P.
    """

    attackers: Attackers = 0.2

    @override
    def check_count(self, count: int) -> None:
        """2 f + 3 are needed."""
        _enough("Krum", count, self.attackers, 2 * assumed(self.attackers, count) + 3)

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """Reads the updates once, and what it chose once more."""
        parts = parts_of(len(rows), weights)
        used = np.zeros(len(rows))
        chosen = self._ranked(rows, parts)[: self._kept(int((parts > 0).sum()))]
        used[chosen] = parts[chosen] / parts[chosen].sum()
        return Mean(weighted_sum(rows, used, out_dtype=np.float32, threads=threads), used)

    def _kept(self, count: int) -> int:
        """How many updates are merged, of ``count``."""
        return 1

    def _most(self, count: int) -> int:
        """n - f - 2."""
        return count - assumed(self.attackers, count) - 2

    def _ranked(self, rows: UpdateRows, parts: np.ndarray) -> np.ndarray:
        """Indexes of the updates with a weight, those nearest to their neighbours first."""
        among = np.flatnonzero(parts > 0)
        count = len(among)
        self.check_count(count)
        squares = squared_distances(finite_gram(rows)[np.ix_(among, among)])
        np.fill_diagonal(squares, np.inf)
        nearest = np.sort(squares, axis=1)[:, : self._most(count)]
        return among[np.argsort(nearest.sum(axis=1), kind="stable")]


@rule(
    "multi_krum",
    title="The mean of the updates that are nearest to their neighbours",
    paper="Blanchard, El Mhamdi, Guerraoui, Stainer 2017, Machine learning with adversaries: Byzantine tolerant "
    "gradient descent (NeurIPS)",
)
@dataclass(frozen=True, kw_only=True)
class MultiKrum(Krum):
    """The mean by weight of the m updates that ``Krum`` ranks first.

    m is n - f - 2 by default, the largest number for which El Mhamdi, Guerraoui and Rouault (2018, arXiv 1802.07927)
    show that it bears f attackers. Weights count among these m.

    Limits: keep = 1 is Krum.
    """

    keep: Annotated[int | None, Param("how many updates m are merged; none: n - f - 2", low=1)] = None

    @override
    def check_count(self, count: int) -> None:
        """As Krum, and as many as are kept."""
        super().check_count(count)
        most = self._most(count)
        if self.keep is not None and self.keep > most:
            raise TooFewUpdatesError(
                f"multi-Krum keeps {self.keep} updates, and of {count} may keep {most}",
                mend="take larger cohorts, keep fewer, or assume fewer attackers",
            )

    @override
    def _kept(self, count: int) -> int:
        return self.keep or self._most(count)


@rule(
    "geometric_median",
    title="The point with the least sum of distances",
    paper="Pillutla, Kakade, Harchaoui 2022, Robust aggregation for federated learning (arXiv 1912.13445)",
)
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(MergeRule):
    """argmin over v of sum_i w_i |v - x_i| by the smoothed Weiszfeld algorithm (RFA, the paper's algorithm 2):

        beta_i = w_i / max(smoothing, |v - x_i|),    v <- sum_i beta_i x_i / sum_i beta_i

    All v are means of the x_i, so their distances come from the inner products of the x_i: the updates are read
    twice, however many steps there are. Attackers with less than half of the weight move it a bounded way. The
    distances' last bits are lost where updates differ by less than 1e-7 of their norm.

    Differs from the paper: it starts at 0 and makes a few steps, as each is a round of communication for it. Here the
    start are the distances from the update with the least sum of distances, because from a mean that one huge update
    has taken far away many steps lead back; and the steps end when one is shorter than 1e-6 of the median distance.
    Memory grows by n^2 numbers, time by n^2 P.

    Limits: a large smoothing is the weighted mean.
    """

    smoothing: Annotated[float, Param("least distance that counts", low=0.0, open=("low",))] = 1e-6
    steps: Annotated[int, Param("at most so many steps", low=1)] = 100

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """Reads the updates twice."""
        parts = parts_of(len(rows), weights)
        products = finite_gram(rows)
        apart = np.sqrt(squared_distances(products))
        start = apart[np.argmin(apart @ parts)]
        # From the update itself, whose distance is 0, smoothed steps would hardly lead away.
        used = self._pulled(parts, np.maximum(start, np.median(start)))
        for _ in range(self.steps):
            along = products @ used
            squares = used @ along - 2 * along + np.diagonal(products)
            distances = np.sqrt(np.maximum(squares, 0))
            before, used = used, self._pulled(parts, distances)
            step = used - before
            if step @ products @ step <= (1e-6 * np.median(distances)) ** 2:
                break
        return Mean(weighted_sum(rows, used, out_dtype=np.float32, threads=threads), used)

    def _pulled(self, parts: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """The beta_i over their sum."""
        beta = parts / np.maximum(distances, self.smoothing)
        return np.asarray(beta / beta.sum(), np.float64)


def squared_distances(products: np.ndarray) -> np.ndarray:
    """|x_i - x_j|^2 from the inner products, float64 [n, n]."""
    squares = np.diagonal(products)
    return np.asarray(np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0), np.float64)
