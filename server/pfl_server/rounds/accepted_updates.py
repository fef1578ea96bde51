"""The accepted updates of a round, and what their merge tells of each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.federation.round import Answer
from pfl_mobile.merge.rules import anomaly_scores
from pfl_mobile.merge.update_rows import weighted_sum

if TYPE_CHECKING:
    from pfl_mobile.federation.round import MergeInput


@dataclass(frozen=True, kw_only=True)
class Accepted(Answer):
    """An accepted update of the round.

    Attributes:
        id: of its task.
        base: the version that it starts from.
        blob, offset: where its values are stored.
        norm: L2 norm of the values, measured when it came.
    """

    id: str
    base: int
    blob: str
    offset: int
    norm: float


def merged_weights(given: MergeInput, factors: np.ndarray) -> np.ndarray:
    """How much each update counted, float64 [n]: the parts of a mean, or weights by examples where there is none.

    Args:
        given: after the merge.
        factors: for staleness, float64 [n].
    """
    merged = given.updates.merged
    if merged is not None and merged.used is not None:
        return merged.used
    return np.asarray(given.updates.examples * factors, np.float64)


def merge_scores(given: MergeInput, weights: np.ndarray, *, threads: int) -> np.ndarray:
    """How unlike the merged change each update is, float64 [n].

    Args:
        given: after the merge.
        weights: from `merged_weights`.
        threads: for sums.
    """
    merged = given.updates.merged
    if merged is not None:
        return anomaly_scores(given.bounded, merged.values)
    if not (weights > 0).any():
        return np.zeros(len(weights))
    parts = weights / weights.sum()
    return anomaly_scores(given.bounded, weighted_sum(given.bounded, parts, threads=threads))


def summary(given: MergeInput, weights: np.ndarray, staleness: np.ndarray) -> dict[str, Any]:
    """Numbers of the merge, without a device."""
    if not len(weights) or given.norms is None:
        return {"updates": len(weights)}
    return {
        "updates": len(weights),
        "largest_part": float(weights.max() / weights.sum()) if weights.sum() > 0 else None,
        "median_norm": float(np.median(given.norms)),
        "largest_norm": float(given.norms.max()),
        "clipped": float((given.norms > given.bound).mean()),
        "mean_staleness": float(staleness.mean()),
    }
