"""The updates of one round: one row for each device that answered, and the one place where their mean is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError, PrivacyError, near
from pfl_mobile.merge.bounds import bounded_parts, largest_part, lowered
from pfl_mobile.merge.private import PRIVATE_MEND, OwnWeight, PrivateRule
from pfl_mobile.merge.rules import Average, Mean, MergeRule, parts_of
from pfl_mobile.merge.update_rows import COLUMNS, GROUP, MatrixRows, UpdateRows, weighted_sum
from pfl_mobile.plan.upload import UpdateLayout


class Updates:
    """What the devices of a round sent; devices that failed are not among them.

    ``rule`` decides how a mean is taken. With a private one the mean is all that can be had: whatever else reads the
    changes, reports or steps of single devices raises PrivacyError, so a strategy that is not one bounded sum is
    refused. Numbers of examples can be read then, as weights in 0..1 that are capped (``PrivacyConfig.weights``), and
    what a device reports can become its own weight (``own_weights``); who took part can be read too, which the server
    knows: it must not get into what is released.

    Attributes:
        layout: of a row of changes.
        clients: index of each device in the population.
        groups: name of each device's group; empty where there are no groups.
        population: devices in all.
        rule: how a mean is taken.
        most: how many equal shares of a mean one device may have (``bounds.py``), as what devices say of themselves
            cannot be checked; None: as many as its weight gives it, as in a simulation, where nobody says anything.
        merged: the mean that was taken last, in full; None before, and with a private rule.

    Args:
        layout: as above.
        changes: float32 [n, P] or rows that stream, after minus before (``local.upload.change``).
        clients: as above.
        examples: how many training examples each has, int64 [n].
        steps: optimizer steps of each, int64 [n].
        reports: what the plan measured, by name, float64 [n].
        groups: as above.
        population: as above.
        rule: as above.
        threads: for sums over rows that stream.
        most: as above.
    """

    def __init__(
        self,
        layout: UpdateLayout,
        changes: np.ndarray | UpdateRows,
        clients: Sequence[int],
        examples: np.ndarray,
        steps: np.ndarray,
        reports: Mapping[str, np.ndarray],
        groups: Sequence[str],
        population: int,
        *,
        rule: MergeRule | PrivateRule | None = None,
        threads: int = 1,
        most: float | None = None,
    ) -> None:
        self.layout, self.clients, self.groups, self.population = layout, clients, groups, population
        self.most = most
        self.rule: MergeRule | PrivateRule = Average() if rule is None else rule
        self.merged: Mean | None = None
        self._rows: UpdateRows = MatrixRows(changes) if isinstance(changes, np.ndarray) else changes
        self._examples, self._steps, self._reports = examples, steps, reports
        self._threads, self._released = threads, False

    def __len__(self) -> int:
        """How many devices answered."""
        return len(self.clients)

    # -- what may be read whatever the rule

    @property
    def private(self) -> bool:
        """Whether the rule is private."""
        return isinstance(self.rule, PrivateRule)

    @property
    def examples(self) -> np.ndarray:
        """How many training examples each has, int64 [n]; with a private rule their weights in 0..1, float64 [n]."""
        return (
            self.rule.config.weights(self._examples) if isinstance(self.rule, PrivateRule) else self._examples
        )

    @property
    def expected(self) -> float:
        """How many devices a round has: fixed in advance with a private rule, else those that answered."""
        if isinstance(self.rule, PrivateRule):
            return float(self.rule.config.cohort)
        return float(len(self))

    def own_weights(self, weight: OwnWeight, names: Sequence[str]) -> np.ndarray:
        """Weights for a private mean, each of what one device reports, float64 [n] in 0..1.

        Args:
            weight: see ``PrivateRule.own_weights``.
            names: of the reports that it reads.

        Raises:
            ConfigError: the plan reports nothing of such a name, or the rule is not private.
        """
        if not isinstance(self.rule, PrivateRule):
            raise ConfigError(
                "weights of single reports are for private rules", mend="call weights() instead"
            )
        if not len(self):  # nobody answered, so not even the names are known
            return np.zeros(0)
        return self.rule.own_weights(weight, {name: self._report(name) for name in names}, self._examples)

    def bounded(self, weights: np.ndarray) -> np.ndarray:
        """Weights as they count: no device above its largest part of their sum, float64 [n]; see ``most``.

        Args:
            weights: not negative and finite, [n].
        """
        found = np.asarray(weights, np.float64)
        if self.private or self.most is None or not (found > 0).any():
            return found
        parts = parts_of(len(found), found)
        # as they are where nothing is bounded: so the bound has no effect on the last bits either
        return (
            found if parts.max() <= largest_part(len(found), self.most) else bounded_parts(parts, self.most)
        )

    def lowered(self, terms: np.ndarray) -> np.ndarray:
        """Terms of a sum, lowered so far that no device has more than its largest part of it, float64 [n].

        Args:
            terms: not negative and finite, [n].
        """
        found = np.asarray(terms, np.float64)
        return found if self.private or self.most is None else lowered(found, self.most)

    def mean(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The mean of the changes by the rule, float32 by name.

        A private rule divides by a number that is fixed in advance, not by the sum of the weights, and can be
        asked once.

        Args:
            weights: not negative, float [n]; what they do is the rule's matter.

        Raises:
            TooFewUpdatesError, NonFiniteError: by the rule.
            PrivacyError: a second mean of a private rule.
        """
        if isinstance(self.rule, PrivateRule):
            if self._released:
                raise PrivacyError(
                    "the strategy takes a second mean of the same updates; a private merge releases one",
                    mend=PRIVATE_MEND,
                )
            self._released = True
            return self.layout.unpack(self.rule.merge(self._rows, np.asarray(weights, np.float64)))
        if type(self.rule) is Average:
            used = parts_of(len(self), weights)
            if self.most is not None:
                used = bounded_parts(used, self.most)
            summed = self._sum(used)
            self.merged = Mean(summed, used)
        else:
            self.merged = self.rule.mean(self._rows, self.bounded(weights), threads=self._threads)
        return self.layout.unpack(self.merged.values)

    # -- what reads single updates

    @property
    def rows(self) -> UpdateRows:
        """The changes as rows that stream (PrivacyError: the rule is private)."""
        self._allow("the changes")
        return self._rows

    @property
    def changes(self) -> np.ndarray:
        """All changes in memory, float32 [n, P], so not for a merge (PrivacyError: the rule is private)."""
        self._allow("the changes")
        if isinstance(self._rows, MatrixRows):
            return self._rows.matrix
        return self._rows.block(0, len(self), slice(0, self.layout.size)).copy()

    @property
    def steps(self) -> np.ndarray:
        """Optimizer steps of each device, int64 [n] (PrivacyError: the rule is private)."""
        self._allow("numbers of steps", changes=False)
        return self._steps

    @property
    def reports(self) -> Mapping[str, np.ndarray]:
        """What the plan measured, by name, float64 [n] (PrivacyError: the rule is private)."""
        self._allow("reports", changes=False)
        return self._reports

    def report(self, name: str) -> np.ndarray:
        """What each device reported under a name, float64 [n].

        Raises:
            ConfigError: the plan reports nothing of this name.
            PrivacyError: the rule is private.
        """
        self._allow(f"the report {name!r}", changes=False)
        return self._report(name)

    def _report(self, name: str) -> np.ndarray:
        if name not in self._reports:
            raise ConfigError(
                f"the devices' plan reports no {name!r}",
                mend=f"add a measure phase to it; {near(name, self._reports)}",
            )
        return self._reports[name]

    def one(self, row: int) -> dict[str, np.ndarray]:
        """The changes of one device by name, float32, until the next is read (PrivacyError: the rule is private)."""
        self._allow("the changes of a device")
        return self.layout.unpack(self._rows.block(row, row + 1, slice(0, self.layout.size))[0])

    def squares(self, names: Sequence[str]) -> np.ndarray:
        """Squared L2 norm of each device's change of these tensors together, float64 [n], streamed.

        Raises:
            PrivacyError: the rule is private.
        """
        self._allow("the norms of changes")
        found = np.zeros(len(self))
        places = [place for name, place, _ in self.layout.items() if name in names]
        for first in range(0, len(self), GROUP):
            last = min(first + GROUP, len(self))
            for place in places:
                for start in range(place.start, place.stop, COLUMNS):
                    block = self._rows.block(first, last, slice(start, min(start + COLUMNS, place.stop)))
                    wide = block.astype(np.float64)
                    found[first:last] += np.einsum("np,np->n", wide, wide)
        return found

    def weighted_sum(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """sum_i weights_i * change_i by name, float32; what is not finite passes through.

        Args:
            weights: float [n].

        Raises:
            PrivacyError: the rule is private.
            ConfigError: the rule is a robust one, which a sum would go around.
        """
        self._allow("a sum of its own", changes=False)
        if not self.rule.additive:  # type: ignore[union-attr]
            raise ConfigError(
                f"the strategy adds updates up itself, so {type(self.rule).__name__} cannot merge them",
                mend="leave the robust rule out, or choose a strategy that takes a mean",
            )
        return self.layout.unpack(self._sum(np.asarray(weights, np.float64)))

    def select(self, rows: np.ndarray) -> Updates:
        """Only some of the devices, merged by the same rule.

        Args:
            rows: indexes or a mask over the rows.

        Raises:
            PrivacyError: the rule is private.
        """
        self._allow("the updates of some devices alone")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        chosen = [int(i) for i in rows]
        return self.replaced(
            changes=self._rows.pick(chosen),
            clients=[self.clients[i] for i in chosen],
            examples=self._examples[rows],
            steps=self._steps[rows],
            reports={name: values[rows] for name, values in self._reports.items()},
            groups=[self.groups[i] for i in chosen] if self.groups else [],
        )

    # -- made from these

    def under(self, rule: MergeRule | PrivateRule) -> Updates:
        """The same updates, merged by another rule (PrivacyError: this one is private)."""
        return self.replaced(rule=rule)

    def replaced(self, **changes: Any) -> Updates:
        """The same updates with other arguments, named as in the constructor (PrivacyError: the rule is private)."""
        self._allow("the updates in another form")
        now: dict[str, Any] = {
            "layout": self.layout,
            "changes": self._rows,
            "clients": self.clients,
            "examples": self._examples,
            "steps": self._steps,
            "reports": self._reports,
            "groups": self.groups,
            "population": self.population,
            "rule": self.rule,
            "threads": self._threads,
            "most": self.most,
        }
        return Updates(**(now | changes))

    def _allow(self, use: str, *, changes: bool = True) -> None:
        """Refuse with a private rule (PrivacyError).

        Args:
            use: what the strategy wants.
            changes: whether that takes the changes of single devices.
        """
        if self.private:
            raise PrivacyError(
                f"the strategy reads {use} to merge; a private merge lets out one mean and nothing else",
                mend=PRIVATE_MEND,
            )

    def _sum(self, weights: np.ndarray) -> np.ndarray:
        return weighted_sum(self._rows, weights, out_dtype=np.float32, threads=self._threads)


class Sums(Updates):
    """Updates whose changes were added up where the devices trained: there are none of single devices.

    Args:
        layout, clients, examples, steps, reports, groups, population: as of other updates.
        changes: float32 [jobs, P], the sums of weight * change over the devices of a job.
        weights: of each device in them, float64 [n].
    """

    def __init__(
        self,
        layout: UpdateLayout,
        changes: np.ndarray,
        clients: Sequence[int],
        examples: np.ndarray,
        steps: np.ndarray,
        reports: Mapping[str, np.ndarray],
        groups: Sequence[str],
        population: int,
        weights: np.ndarray,
    ) -> None:
        super().__init__(layout, changes, clients, examples, steps, reports, groups, population)
        self.weights, self._sums = weights, changes

    @override
    def _allow(self, use: str, *, changes: bool = True) -> None:
        """Refuse what takes the changes of single devices (ConfigError)."""
        if changes:
            raise ConfigError(
                f"the changes of single devices are not there, for {use}: they were added up where the devices trained",
                mend="let summed_by() of the strategy return None",
            )

    @override
    def _sum(self, weights: np.ndarray) -> np.ndarray:
        """For weights in proportion to those of the sums; others are refused (ConfigError)."""
        factor = float(np.sum(weights)) / float(np.sum(self.weights))
        if not np.allclose(weights, self.weights * factor):
            self._allow("a mean with other weights")
        return np.asarray(self._sums.sum(axis=0) * np.float32(factor))
