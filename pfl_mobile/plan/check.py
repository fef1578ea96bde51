"""Whether a plan fits a model and the values that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.plan.phases import (
    AssignSlotsPhase,
    ChoosePhase,
    CombinePhase,
    Lookahead,
    MeasurePhase,
    MemorizePhase,
    Mix,
    MovePhase,
    Phase,
    RepeatPhase,
    TrainPhase,
)
from pfl_mobile.plan.schema import Plan, ServeMix
from pfl_mobile.plan.select import select, uploaded

if TYPE_CHECKING:
    from pfl_mobile.plan.select import TensorEntry


Set = Mapping[str, np.ndarray]


def named_sets(plan: Plan) -> list[str]:
    """Every set that the plan reads, copies and ``theta`` among them, in order of first use."""
    named = [start.of for start in plan.copies.values()]
    named += [plan.serve.one, plan.serve.other] if isinstance(plan.serve, ServeMix) else [plan.serve]
    for phase in dict.fromkeys(plan.steps()):
        if isinstance(phase, MovePhase):
            named += [phase.moves, phase.toward]
        elif isinstance(phase, CombinePhase):
            named += [term.of for term in phase.terms]
        elif isinstance(phase, MeasurePhase):
            named.append(phase.at)
        elif isinstance(phase, ChoosePhase):
            named += phase.among
        elif isinstance(phase, TrainPhase):
            named += [n for n in (phase.start_from, phase.anchor, phase.control, phase.mask) if n is not None]
            named += [phase.mu] if isinstance(phase.mu, str) else []
            named += [phase.evaluate_at.other] if isinstance(phase.evaluate_at, Mix) else []
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
    for phase in set(plan.steps()):
        if isinstance(phase, AssignSlotsPhase):
            _check_module(phase, {"assign"}, table)
        elif isinstance(phase, MemorizePhase):
            _check_module(phase, {"memorize"}, table)
            memory_tensors(phase, table)
    known = {"theta", "start", "zero", *sets, *copies, *plan.made()}
    for name in named_sets(plan):
        if name not in known:
            raise UnknownNameError(f"the plan names a set {name!r} that is not there", mend=near(name, known))
    _Reads(table, [*sets, *copies]).plan(plan)


def _check_module(
    phase: AssignSlotsPhase | MemorizePhase, updates: set[str], table: Sequence[TensorEntry]
) -> None:
    if not any(t.module == phase.module and t.update in updates for t in table):
        raise UnknownNameError(
            f"the plan has a {phase.kind} phase for module {phase.module!r}, which has no such tensors",
            mend=near(phase.module, [t.module for t in table if t.module and t.update in updates]),
        )


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
        self._phases(plan.phases)

    def _phases(self, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if isinstance(phase, RepeatPhase):
                self._phases(phase.phases)  # what is there the first time is there every time
            elif isinstance(phase, TrainPhase):
                self._train(phase)
            elif isinstance(phase, MovePhase):
                self._need("move phase", phase.moves, set(select(phase.group, self.table)))
                self._need("move phase", phase.toward, set(select(phase.group, self.table)))
            elif isinstance(phase, CombinePhase):
                group = set(select(phase.group, self.table))
                for term in phase.terms:
                    self._need("combine phase", term.of, group)
                self._made(phase.makes, group)
            elif isinstance(phase, ChoosePhase):
                for name in phase.among:
                    self._need("choose phase", name, set(select(phase.group, self.table)))
            elif isinstance(phase, MeasurePhase):
                self._need("measure phase", phase.at, set())

    def _train(self, phase: TrainPhase) -> None:
        group = set(select(phase.group, self.table))
        if phase.start_from is not None:
            self._need("train phase starts from", phase.start_from, group)
        self._made(phase.trains, group)
        self.there["start"] = group
        read = [phase.anchor, phase.control, phase.mask, phase.mu if isinstance(phase.mu, str) else None]
        read.append(phase.evaluate_at.other if isinstance(phase.evaluate_at, Mix) else None)
        for name in read:
            if name is not None:
                self._need("train phase", name, group)
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


def phase_steps(phase: TrainPhase, rows: int, batch: int) -> int:
    """Optimizer steps of one train phase; a lookahead step takes two helpings of batches (B1, B2)."""
    if phase.steps is not None:
        return phase.steps
    batches = -(-rows // batch)
    group = batches if phase.batches_per_step == "all" else phase.batches_per_step
    if isinstance(phase.evaluate_at, Lookahead):
        group *= 2
    steps = (phase.epochs or 0) * -(-batches // group)
    return steps if phase.max_steps is None else min(steps, phase.max_steps)


def memory_tensors(phase: MemorizePhase, table: Sequence[TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
    """The phase's tensors ``next`` and ``context`` (ConfigError: the module is no memory)."""
    names = [t for t in table if t.module == phase.module and t.update == "memorize"]
    following = next((t for t in names if t.name.endswith(".next")), None)
    before = next((t for t in names if t.name.endswith(".context")), None)
    if following is None or before is None:
        raise ConfigError(
            f"module {phase.module!r} has no tensors 'next' and 'context'",
            mend="use the memory module's name",
        )
    return following, before
