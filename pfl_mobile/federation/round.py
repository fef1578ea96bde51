"""A round of federated learning, defined once: what a device is told, what travels, how updates become a model.

The simulator and the server are drivers of it. They bring what differs between them: users or HTTP, time, storage, the
source of noise.

    definition = RoundDefinition(strategy, local, table, cohort=50, privacy=config)
    server = definition.begin(population, values)
    plan = definition.round_plan(definition.plan(server, seed))  # devices train by it
    given = definition.merge_input(definition.received(plan, rows, answers, population), private)
    definition.merge(server, given.updates, private)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import PrivacyError
from pfl_mobile.federation.checks import check_cohort, check_groups, check_merge, check_own_noise
from pfl_mobile.merge.bounds import bounded_losses
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.rules import Average, MergeRule
from pfl_mobile.merge.update_rows import ScaledRows, UpdateRows, finite_norms
from pfl_mobile.merge.updates import Sums, Updates
from pfl_mobile.plan.check import check_plan, named_sets
from pfl_mobile.privacy.clipping import clip_factors
from pfl_mobile.protocol.update_file import layout_of
from pfl_mobile.strategies.maxfl import OWN_LOSS
from pfl_mobile.strategies.server_state_file import plain_numbers
from pfl_mobile.strategies.state import Local, RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy
from pfl_mobile.strategies.weighting import SENT_LOSS, SummedBy, Weighting, weights_of

if TYPE_CHECKING:
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.privacy import PrivacyConfig, PrivateRounds

#: Reports that become weights.
LOSSES = frozenset({SENT_LOSS, OWN_LOSS})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much one device may count where nobody can check what it says of itself; see ``merge.bounds``.

    Losses that devices report are bounded too, relative to the others of the round.

    Attributes:
        examples: that a device counts for at most, however many it names.
        part: how many equal shares of a mean it may have.
    """

    examples: int = 1000
    part: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes with a device's update.

    Attributes:
        client: index of the device.
        group: its group; empty where there are none.
        examples: training examples, as it says.
        steps: optimizer steps that it made.
        reports: what it measured, by name.
    """

    client: int
    group: str
    examples: int
    steps: int
    reports: Mapping[str, float]


@dataclass(frozen=True)
class RoundPlan:
    """What every update of a round is like.

    Attributes:
        plan: of the round's devices.
        layout: of their updates.
        reports: names of the numbers that come with an update.
    """

    plan: Plan
    layout: UpdateLayout
    reports: frozenset[str]


@dataclass(frozen=True)
class MergeInput:
    """What a strategy merges.

    Attributes:
        updates: under the rule.
        bounded: their changes, each no longer than ``bound``.
        norms: L2 norms of the changes as they came, float64 [n]; None where nothing bounds them.
        bound: on them; infinite without privacy.
    """

    updates: Updates
    bounded: UpdateRows
    norms: np.ndarray | None
    bound: float


@dataclass(frozen=True, kw_only=True)
class Discounted(Weighting):
    """Another weighting's weights, each times a factor of at most 1 that its device cannot change.

    Attributes:
        inner: the other one.
        factors: float64 [n].
    """

    inner: Weighting
    factors: np.ndarray

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        return np.asarray(self.inner.weights(updates, server) * self.factors, np.float64)


@dataclass(frozen=True)
class RoundDefinition:
    """What the devices and the aggregator of a federation compute in a round; checked when it is made.

    Attributes:
        strategy: plan and merge, with the weighting (fairness) in it.
        local: local training.
        table: the device tensors.
        cohort: devices in a round.
        rule: how means of updates are taken where the aggregator adds no noise; with noise it must be the average.
        privacy: how updates are clipped and what noise hides them; None: they are merged as they are, which only a
            simulation may do.
        groups: whether devices have groups.
        bounds: how much a device may count; None where all that is said is known to be true, as in a simulation.
        threads: for sums over updates that stream; same bits for any number.

    Raises:
        ConfigError: parts do not go together, or not with the tensors.
        PrivacyError: the aggregator's noise would not hide what the strategy or the rule reads.
    """

    strategy: Strategy
    local: Local
    table: Sequence[DeviceTensorInfo]
    cohort: int = field(kw_only=True)
    rule: MergeRule = field(default_factory=Average, kw_only=True)
    privacy: PrivacyConfig | None = field(default=None, kw_only=True)
    groups: bool = field(default=False, kw_only=True)
    bounds: Bounds | None = field(default=None, kw_only=True)
    threads: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        check_groups(self.strategy, self.table, groups=self.groups)
        check_merge(self.strategy, self.table, self.rule, self.privacy)
        check_cohort(self.rule, self.privacy, self.cohort)

    @property
    def central(self) -> bool:
        """Whether the aggregator adds noise."""
        return self.privacy is not None and self.privacy.central

    # -- before the first round

    def begin(self, population: int, initial: Values) -> Server:
        """The server before the first round.

        Args:
            population: devices in all.
            initial: shipped values of the tensors that gradients train, float32.
        """
        server = Server(self.table, population, dict(initial))
        self.strategy.begin(server)
        server.numbers = plain_numbers(server.numbers, self.strategy)
        return server

    def first_plan(self, server: Server, seed: int) -> Plan:
        """The plan of the first round, checked against what devices will have.

        Args:
            server: from ``begin``.
            seed: of the round.

        Raises:
            ConfigError, UnknownNameError: the strategy does not fit the model.
            PrivacyError: devices would report what their own noise does not hide.
        """
        plan = self.plan(server.round, seed)
        own = self.strategy.sets_for(server, 0, "")
        names = {"initial", "global", *self.strategy.sets(server), *own}
        check_plan(plan, self.table, {name: {} for name in names}, ())
        return plan

    # -- what a device is told

    def plan(self, number: int, seed: int) -> Plan:
        """What devices do in a round.

        Args:
            number: rounds merged before it.
            seed: for what the strategy draws; another one every round.

        Raises:
            ConfigError: the strategy does not fit the model.
            PrivacyError: devices would report what their own noise does not hide.
        """
        plan = self.strategy.plan(RoundContext(self.table, self.local, number, seed))
        if self.privacy is not None:
            check_own_noise(self.privacy, plan)
        return plan

    def round_plan(self, plan: Plan) -> RoundPlan:
        """What updates by a plan are like (ConfigError, UnknownNameError: it names tensors that there are not)."""
        return RoundPlan(plan, layout_of(plan, self.table), frozenset(plan.reports))

    def common_sets(self, server: Server, read: Collection[str]) -> dict[str, Values]:
        """The sets for every device: those that are read (`sets_read`), and ``global``.

        Changes are measured from ``global``, whether or not a plan reads it.
        """
        return _sent({"global": server.values, **self.strategy.sets(server)}, read)

    def own_sets(self, server: Server, read: Collection[str], client: int, group: str) -> dict[str, Values]:
        """The sets for one device alone, in place of common ones."""
        return _sent(self.strategy.sets_for(server, client, group), read)

    def on_wire(self, name: str, values: Values) -> Values:
        """What of a set is sent: of the global values only those that are merged, as a device has the others."""
        if name != "global":
            return values
        return {n: v for n, v in values.items() if n in self._merged}

    @cached_property
    def _merged(self) -> frozenset[str]:
        """Names of the tensors that are merged."""
        return frozenset(
            t.name for t in self.table if t.role in ("shared", "group") and t.update == "gradient"
        )

    @property
    def has_own_sets(self) -> bool:
        """Whether devices may get sets of their own."""
        return self.strategy.sends_own_sets or any(t.role == "group" for t in self.table)

    # -- how updates become a model

    def summed_by(self, server: Server, known: RoundPlan) -> SummedBy | None:
        """How devices count, where changes may be added up where they arise; None where each is needed."""
        needed = self.privacy is not None or self.bounds is not None or not self.rule.additive
        return None if needed or known.plan.upload_copies else self.strategy.summed_by(server)

    def sums(
        self, known: RoundPlan, sums: np.ndarray, answers: Sequence[Answer], population: int, by: SummedBy
    ) -> Sums:
        """Changes that were added up already, as a strategy merges them.

        Args:
            known: of the round.
            sums: of weight * change, float32 [jobs, P].
            answers: of all devices in them.
            population: devices in all.
            by: the weights, from ``summed_by``.
        """
        columns = self._columns(known, answers)
        return Sums(
            known.layout, sums, **columns, population=population, weights=weights_of(columns["examples"], by)
        )

    def received(
        self, known: RoundPlan, rows: np.ndarray | UpdateRows, answers: Sequence[Answer], population: int
    ) -> Updates:
        """The updates as they came.

        Args:
            known: of the round.
            rows: changes, float32 [n, P].
            answers: that came with them.
            population: devices in all.
        """
        return Updates(
            known.layout, rows, **self._columns(known, answers), population=population, threads=self.threads
        )

    def merge_input(
        self, received: Updates, private: PrivateRounds | None, norms: np.ndarray | None = None
    ) -> MergeInput:
        """The updates as a strategy merges them: each clipped, none counting too much, under the rule.

        Where the aggregator adds noise the private rule clips, as the guarantee rests on it.

        Args:
            received: as they came.
            private: clip norm, noise and ledger of the rounds so far; None without privacy.
            norms: L2 norms of the changes, float64 [n], where they are known. Those that a guarantee rests on are
                measured anew in any case.

        Raises:
            NonFiniteError: an update has NaN or infinite values, and norms are measured.
            PrivacyError: there is privacy and no ``private``.
        """
        self._check_accounted(private)
        rows = received.rows
        changes, bounded, bound = rows, rows, np.inf
        rule: MergeRule | PrivateRule = self.rule
        if self.privacy is None or private is None:
            norms = None
        else:
            bound = self.privacy.accepted_norm(rows.width, private.clip_norm)
            norms = finite_norms(rows) if norms is None or self.central else norms
            if (norms > bound).any():
                bounded = ScaledRows(rows, clip_factors(norms, bound))
            if self.central:
                rule = PrivateRule(self.privacy, partial(private.merge, row_norms=norms))
            else:
                changes = bounded
        updates = received.replaced(
            changes=changes,
            examples=self._counted(received.examples),
            reports={name: self._reported(name, values) for name, values in received.reports.items()},
            rule=rule,
            most=None if self.bounds is None else self.bounds.part,
        )
        return MergeInput(updates, bounded, norms, bound)

    def merge(
        self,
        server: Server,
        updates: Updates,
        private: PrivateRounds | None,
        factors: np.ndarray | None = None,
    ) -> None:
        """Merge a round into the server, and count it in the ledger; nothing is changed where it fails.

        Args:
            server: before; its number of rounds stays for the driver to count.
            updates: from ``merge_input`` or ``sums``, at least one unless the aggregator adds noise.
            private: as for ``merge_input``.
            factors: at most 1, for updates that are late, float64 [n].

        Raises:
            NonFiniteError: a merged value is NaN or infinite.
            TooFewUpdatesError: for what the rule assumes.
            ConfigError: the strategy keeps what cannot be saved.
            PrivacyError: there is privacy and no ``private``, or the updates are not from ``merge_input``.
        """
        self._check_accounted(private)
        if self.central and not updates.private:
            raise PrivacyError(
                "updates are merged without the noise that the privacy says",
                mend="merge what merge_input gives",
            )
        strategy = self.strategy
        if factors is not None:
            strategy = replace(strategy, weighting=Discounted(inner=strategy.weighting, factors=factors))
        # Overflow is found by the strategy, which refuses values that are not finite.
        with server.undo_on_error(), np.errstate(over="ignore", invalid="ignore"):
            strategy.merge(server, updates)
            server.numbers = plain_numbers(server.numbers, self.strategy)
        if private is not None and not self.central:  # else by its own merge
            private.ledger.record()

    @property
    def most_examples(self) -> int | None:
        """How many examples a device counts for at most; None for as many as it has.

        Where a robust rule is chosen a device that lies about them must not outweigh the others, so all count the same
        unless the privacy has a cap.
        """
        if self.privacy is not None and self.privacy.example_cap is not None:
            return self.privacy.example_cap
        if not self.rule.additive:
            return 1
        return None if self.bounds is None else self.bounds.examples

    def _check_accounted(self, private: PrivateRounds | None) -> None:
        """Refuse to merge without the noise and the ledger that the privacy says (PrivacyError)."""
        if self.privacy is not None and private is None:
            raise PrivacyError(
                "the rounds have privacy, and are merged without its noise and ledger",
                mend="give the PrivateRounds of the rounds so far",
            )

    def _counted(self, examples: np.ndarray) -> np.ndarray:
        most = self.most_examples
        return examples if most is None else np.minimum(examples, most)

    def _reported(self, name: str, values: np.ndarray) -> np.ndarray:
        """Losses become weights, so those that are far from all others are bounded.

        Where the aggregator adds noise a bound that depends on other devices would leak them, and each weight is
        clamped by itself.
        """
        bounded = name in LOSSES and self.bounds is not None and not self.central
        return bounded_losses(values) if bounded else values

    def _columns(self, known: RoundPlan, answers: Sequence[Answer]) -> _Columns:
        return {
            "clients": [a.client for a in answers],
            "examples": np.array([a.examples for a in answers], np.int64),
            "steps": np.array([a.steps for a in answers], np.int64),
            "reports": {
                name: np.array([a.reports.get(name, np.nan) for a in answers], np.float64)
                for name in sorted(known.reports)
            },
            "groups": [a.group for a in answers] if self.groups else [],
        }


class _Columns(TypedDict):
    """Answers by what they say."""

    clients: list[int]
    examples: np.ndarray
    steps: np.ndarray
    reports: dict[str, np.ndarray]
    groups: list[str]


def sets_read(plans: Iterable[Plan]) -> frozenset[str]:
    """Names of the sets that any of the plans reads; once a round, as cohorts may be large."""
    return frozenset(name for plan in plans for name in named_sets(plan))


def _sent(sets: Mapping[str, Values], read: Collection[str]) -> dict[str, Values]:
    """Those of the sets that are read, and ``global``."""
    return {name: values for name, values in sets.items() if name in read or name == "global"}
