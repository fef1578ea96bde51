"""What a strategy merges: the accepted updates of a round as rows that stream, each bounded, under the right rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.merge.bounds import bounded_losses
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.rows import Rows, finite_norms, toward_zero, weighted_sum
from pfl_mobile.merge.rules import anomaly_scores
from pfl_mobile.merge.updates import Updates
from pfl_mobile.privacy.clipping import clip_factors
from pfl_mobile.strategies.maxfl import OWN_LOSS
from pfl_mobile.strategies.weighting import SENT_LOSS, Weighting

if TYPE_CHECKING:
    from pfl_mobile.privacy import PrivateRounds
    from pfl_mobile.strategies.state import Server
    from pfl_server.federation.runtime import RoundPlan, Runtime

#: Reports that become weights.
LOSSES = frozenset({SENT_LOSS, OWN_LOSS})
#: That split the columns of sums.
_THREADS = 2


@dataclass(frozen=True)
class Accepted:
    """An accepted update of the round."""

    id: str
    index: int
    group: str
    base: int
    blob: str
    offset: int
    examples: int
    steps: int
    reports: dict[str, float]
    norm: float


@dataclass(frozen=True, kw_only=True)
class Stale(Weighting):
    """Another weighting's weights, times a factor for each update that is at most 1.

    Attributes:
        inner: the other one.
        factors: for staleness, float64 [n].
    """

    inner: Weighting
    factors: np.ndarray

    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Those of ``inner``, made smaller."""
        return np.asarray(self.inner.weights(updates, server) * self.factors, np.float64)


@dataclass(frozen=True)
class Input:
    """What a strategy merges.

    Attributes:
        updates: under the federation's rule.
        bounded: their changes, each no longer than ``bound``.
        norms: L2 norms of the changes as they came, float64 [n].
        bound: on them.
    """

    updates: Updates
    bounded: Rows
    norms: np.ndarray
    bound: float

    def weights(self, factors: np.ndarray) -> np.ndarray:
        """How much each update counted, float64 [n]: the parts of a mean, or weights by examples where there is none.

        Args:
            factors: for staleness, float64 [n].
        """
        merged = self.updates.merged
        if merged is not None and merged.used is not None:
            return merged.used
        return np.asarray(self.updates.examples * factors, np.float64)

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """How unlike the merged change each update is, float64 [n]."""
        merged = self.updates.merged
        if merged is not None:
            return anomaly_scores(self.bounded, merged.values)
        if not (weights > 0).any():
            return np.zeros(len(weights))
        parts = weights / weights.sum()
        return anomaly_scores(self.bounded, weighted_sum(self.bounded, parts, threads=_THREADS))

    def summary(self, weights: np.ndarray, staleness: np.ndarray) -> dict[str, Any]:
        """Numbers of the merge, without a device."""
        if not len(weights):
            return {"updates": 0}
        return {
            "updates": len(weights),
            "largest_part": float(weights.max() / weights.sum()) if weights.sum() > 0 else None,
            "median_norm": float(np.median(self.norms)),
            "largest_norm": float(self.norms.max()),
            "clipped": float((self.norms > self.bound).mean()),
            "mean_staleness": float(staleness.mean()),
        }


def merge_input(
    runtime: Runtime,
    private: PrivateRounds,
    known: RoundPlan,
    stored: Rows,
    rows: Sequence[Accepted],
    population: int,
) -> Input:
    """The updates as a strategy merges them.

    Where the aggregator adds noise, the private rule measures norms anew and clips, as the guarantee rests on them.
    Else those measured when the updates came are good enough.
    """
    config = runtime.config.privacy
    bound = config.accepted_norm(known.layout.size, private.clip_norm)
    norms = finite_norms(stored) if runtime.central else np.array([row.norm for row in rows], np.float64)
    bounded = Scaled.within(stored, norms, bound)
    updates = Updates(
        known.layout,
        stored if runtime.central else bounded,
        [row.index for row in rows],
        _examples(runtime, rows),
        np.array([row.steps for row in rows], np.int64),
        {name: _reports(runtime, rows, name) for name in sorted(known.reports)},
        [row.group for row in rows] if runtime.config.groups else [],
        population,
        rule=PrivateRule(config, partial(private.merge, row_norms=norms))
        if runtime.central
        else runtime.rule,
        threads=_THREADS,
        most=runtime.config.rounds.max_part,
    )
    return Input(updates, bounded, norms, bound)


def _examples(runtime: Runtime, rows: Sequence[Accepted]) -> np.ndarray:
    """Numbers of examples that devices count by, int64 [n].

    A device names its own number, so it is bounded. Where a robust rule is chosen one that lies must not outweigh the
    others, so all count the same unless the configuration has a bound for private rounds.
    """
    claimed = np.array([row.examples for row in rows], np.int64)
    cap = runtime.config.privacy.example_cap
    if cap is None:
        cap = runtime.config.rounds.max_examples if runtime.rule.additive else 1
    return np.minimum(claimed, cap)


def _reports(runtime: Runtime, rows: Sequence[Accepted], name: str) -> np.ndarray:
    """What devices reported under a name, float64 [n].

    Losses become weights, so those that are far from all others are bounded; where the aggregator adds noise a bound
    that depends on other devices would leak them, and each weight is clamped by itself.
    """
    found = np.array([row.reports.get(name, np.nan) for row in rows], np.float64)
    return found if runtime.central or name not in LOSSES else bounded_losses(found)


class Scaled:
    """Rows times a factor each.

    Args:
        rows: float32 [n, P].
        factors: float64 [n].
    """

    def __init__(self, rows: Rows, factors: np.ndarray) -> None:
        self.rows, self.factors = rows, toward_zero(factors)

    @classmethod
    def within(cls, rows: Rows, found: np.ndarray, bound: float) -> Rows:
        """The rows, those of a larger norm than ``bound`` made shorter.

        Args:
            rows: float32 [n, P].
            found: their norms, float64 [n].
            bound: above 0.
        """
        return cls(rows, clip_factors(found, bound)) if (found > bound).any() else rows

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Values of each row."""
        return self.rows.width

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        """A copy."""
        return np.asarray(self.rows.block(first, last, columns) * self.factors[first:last, None], np.float32)

    def pick(self, chosen: Sequence[int]) -> Scaled:
        """Some of the rows."""
        picked = Scaled(self.rows.pick(chosen), np.empty(0))
        picked.factors = self.factors[list(chosen)]
        return picked
