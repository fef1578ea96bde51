"""Whether a plan fits a model and the values that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.plan.schema import ServeMix
from pfl_mobile.plan.select import select, uploaded

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.select import TensorEntry


Set = Mapping[str, np.ndarray]


def named_sets(plan: Plan) -> list[str]:
    """Every set that the plan reads, copies and ``theta`` among them, in order of first use."""
    named = [start.of for start in plan.copies.values()]
    named += [plan.serve.one, plan.serve.other] if isinstance(plan.serve, ServeMix) else [plan.serve]
    for phase in plan.distinct_steps():
        named += [*phase.reads, *phase.step_reads]
    return list(dict.fromkeys(named))


def check_plan(
    plan: Plan, table: Sequence[TensorEntry], sets: Mapping[str, Set], copies: Sequence[str]
) -> None:
    """Find what would fail later: groups without tensors, sets that are unknown, not made yet or too small, modules
    of another kind.

    Raises:
        ConfigError, UnknownNameError: naming it.
    """
    uploaded(plan.upload, table)
    for phase in plan.distinct_steps():
        phase.check(table)
    known = {"theta", "start", "zero", *sets, *copies, *plan.made()}
    for name in named_sets(plan):
        if name not in known:
            raise UnknownNameError(f"the plan names a set {name!r} that is not there", mend=near(name, known))
    _Reads(table, [*sets, *copies]).plan(plan)


class _Reads:
    """Which sets are there when a phase reads them, on a device that runs the plan for the first time."""

    def __init__(self, table: Sequence[TensorEntry], given: Sequence[str]) -> None:
        self.table = table
        #: Set -> its tensors; None where it has all that a plan may ask of it, or only the host knows.
        self.there: dict[str, set[str] | None] = dict.fromkeys(("theta", "zero", *given))

    def plan(self, plan: Plan) -> None:
        for name, start in plan.copies.items():
            group = set(select(start.group, self.table))
            self._need(f"copy {name!r}", start.of, group)
            self._made(name, group)
        for phase in plan.distinct_steps():  # what is there the first time is there every time
            tensors, who = set(phase.tensors(self.table)), f"{phase.kind} phase"
            for name in phase.reads:
                self._need(who, name, tensors)
            if phase.makes_copy is not None:
                self._made(phase.makes_copy, tensors)
            self.there["start"] = tensors
            for name in phase.step_reads:
                self._need(who, name, tensors)
            del self.there["start"]

    def _made(self, name: str, group: set[str]) -> None:
        before = self.there.get(name, set())
        self.there[name] = None if before is None else before | group

    def _need(self, who: str, name: str, group: set[str]) -> None:
        if name not in self.there:
            what = "which only a train phase has" if name == "start" else "before any phase makes it"
            raise ConfigError(
                f"the plan's {who} reads the set {name!r} {what}",
                mend="let an earlier phase make it, or start it in the plan's copies",
            )
        held = self.there[name]
        missing = sorted(group - held) if held is not None else []
        if missing:
            raise ConfigError(
                f"the plan's {who} reads {missing[0]!r} of the set {name!r}, which holds other tensors only",
                mend="make the set from a group with all tensors that are read of it",
            )
