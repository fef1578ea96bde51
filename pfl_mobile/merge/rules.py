"""How the updates of a round become one: the base of all merge rules, averaging, and the rules by name.

A rule takes the place of the mean that a strategy asks for; robust ones are in ``robust.py``. A new rule is a class
with one ``@rule`` in any file of this folder, or in another distribution (see :mod:`pfl_mobile.registry`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError, NonFiniteError, TooFewUpdatesError, UnknownNameError, near
from pfl_mobile.hyperparameters import check_ranges, described
from pfl_mobile.merge.update_rows import COLUMNS, GROUP, UpdateRows, weighted_sum
from pfl_mobile.registry import Registry

T = TypeVar("T", bound="type[MergeRule]")


@dataclass(frozen=True)
class Mean:
    """What a rule made of the updates.

    Attributes:
        values: float32 [P].
        used: how much each update counted, float64 [n] that sum to at most 1; None where a rule takes other updates
            for each value.
    """

    values: np.ndarray
    used: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """Makes one update of many."""

    #: Whether a sum of the updates is all that the rule needs, so that they can be added up where they arise.
    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside their range (ConfigError)."""
        check_ranges(type(self).__name__, type(self), vars(self))

    def check_count(self, count: int) -> None:
        """Refuse so many updates where the rule could not merge them (TooFewUpdatesError)."""

    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """One update of the size of a single one.

        Args:
            rows: the updates, float32 [n, P], streamed.
            weights: how much each counts, float64 [n], of any scale; a rule says what it does with them.
            threads: for sums; same bits for any number.

        Raises:
            TooFewUpdatesError: for what the rule assumes, or no weight is above 0.
            NonFiniteError: a weight is negative, or something is NaN or infinite.
            ConfigError: not one weight for each update.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RuleEntry:
    """A known merge rule.

    Attributes:
        name: as users type it.
        title: one line.
        paper: authors, year, title, arXiv number where there is one.
        make: builds it from hyper-parameters.
    """

    name: str
    title: str
    paper: str
    make: Callable[..., MergeRule]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "parameters": described(self.make),
        }


RULES: Registry[RuleEntry] = Registry("merge rule", "pfl_mobile.merge")


def rule(name: str, *, title: str, paper: str) -> Callable[[T], T]:
    """Make a subclass of ``MergeRule`` known by a name."""

    def known(make: T) -> T:
        RULES.add(name, RuleEntry(name, title, paper, make), home=make.__module__)
        return make

    return known


def rule_entries() -> list[RuleEntry]:
    """All merge rules: ours in order of name, then those of other distributions."""
    return list(RULES.all().values())


def create_rule(name: str, **values: Any) -> MergeRule:
    """Build a merge rule by name.

    Raises:
        UnknownNameError: no such rule, or it has no such hyper-parameter.
        ConfigError: a hyper-parameter is out of range.
    """
    make = RULES.find(name).make
    fields = inspect.signature(make).parameters
    for key in values:
        if key not in fields:
            raise UnknownNameError(
                f"merge rule {name!r} has no hyper-parameter {key!r}", mend=near(key, fields)
            )
    return make(**values)


def parts_of(count: int, weights: np.ndarray) -> np.ndarray:
    """The weights over their sum, float64 [n].

    Raises:
        TooFewUpdatesError: none is above 0.
        NonFiniteError: one is negative, NaN or infinite.
        ConfigError: not one for each update.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (count,):
        raise ConfigError(
            f"{weights.shape} weights for {count} updates", mend="give one weight for each update"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise NonFiniteError(
            "a weight of the merge is negative or not finite", mend="check the losses that devices report"
        )
    if not (weights > 0).any():
        raise TooFewUpdatesError(
            f"none of {count} updates has a weight above 0", mend="wait for more devices"
        )
    total = weights.sum()
    if not 1e-300 < total < np.inf:  # at the ends of float64
        weights = weights / weights.max()
        total = weights.sum()
    return np.asarray(weights / total, np.float64)


@rule(
    "average",
    title="The weighted mean",
    paper="McMahan and others 2017, Communication-efficient learning of deep networks from decentralized data "
    "(arXiv 1602.05629)",
)
@dataclass(frozen=True, kw_only=True)
class Average(MergeRule):
    """sum_i w_i x_i / sum_i w_i. One update can move it as far as it likes."""

    additive: ClassVar[bool] = True

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        """Reads the updates once; what is not finite shows in the values."""
        used = parts_of(len(rows), weights)
        return Mean(weighted_sum(rows, used, out_dtype=np.float32, threads=threads), used)


def anomaly_scores(rows: UpdateRows, values: np.ndarray) -> np.ndarray:
    """How unlike the merged value each update is, float64 [n], >= 0, in one more pass over them.

        score_i = |x_i - m| / median_j |x_j - m| * (1 + max(0, -cos(x_i, m)))

    1 is usual: as far from the merged value m as half of the updates. An update that points the other way counts up
    to double. When more than half of the updates are m itself, the distances are relative to their mean instead.
    Of a rule that is not robust, m may be the attackers'.

    Args:
        values: m, float [P].

    Raises:
        NonFiniteError: a value of m or of an update is not finite.
    """
    count = len(rows)
    apart, size, along = np.zeros(count), np.zeros(count), np.zeros(count)
    wide = np.asarray(values, np.float64)
    for first in range(0, count, GROUP):
        part = slice(first, min(first + GROUP, count))
        for start in range(0, rows.width, COLUMNS):
            columns = slice(start, min(start + COLUMNS, rows.width))
            block = rows.block(part.start, part.stop, columns).astype(np.float64)
            size[part] += np.einsum("np,np->n", block, block)
            along[part] += np.einsum("np,p->n", block, wide[columns])
            block -= wide[columns]
            apart[part] += np.einsum("np,np->n", block, block)
    norm = np.sqrt(size) * np.sqrt(np.einsum("p,p->", wide, wide))
    if not (np.isfinite(apart).all() and np.isfinite(norm).all()):
        raise NonFiniteError("an update or the merged value is NaN or infinite", mend="refuse such updates")
    cosine = np.divide(along, norm, out=np.zeros(count), where=norm > 0)
    far = np.sqrt(apart)
    usual = (float(np.median(far)) or float(far.mean())) if count else 0.0
    return far / usual * (1 + np.maximum(0, -cosine)) if usual else np.zeros(count)
