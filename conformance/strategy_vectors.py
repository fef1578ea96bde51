"""Rounds of every strategy's plans on the toy model, as one device runs them. See generate.py."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from toy import Toy, array, arrays, draw, f64, tensor

from pfl_mobile import rows as batches
from pfl_mobile.local.state import PersonalState
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan import upload
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive
from pfl_mobile.strategies import Local, RoundContext, Server, create, entry, names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfl_mobile.local.report import TrainReport

    Sets = Mapping[str, Mapping[str, np.ndarray]]

ROUNDS = 3
LOCAL = Local(epochs=2, optimizer=Sgd(lr=0.05))
INITIAL = {"a": draw(4, (2,)), "b": draw(5, (3,))}
ROWS: batches.Rows = {
    "x": draw(61, (14, 2)) + np.float32(1),
    "y": draw(62, (14, 3)),
    "weight": np.abs(draw(63, (14,))),
}


def strategy_vectors() -> Any:
    """strategies.json: every strategy's plans, round by round, and its plan for a device of its own at the end."""
    train, holdout = batches.split_rows(ROWS, 0.3)
    ours = [
        name for name in names() if entry(name).make.__module__.startswith("pfl_mobile.")
    ]  # no user's own
    cases = [strategy_case(name) for name in ours]
    return {"train": arrays(train), "holdout": arrays(holdout), "initial": arrays(INITIAL), "cases": cases}


def strategy_case(name: str) -> dict[str, Any]:
    """What one device does in some rounds, each from the state that the round before left."""
    strategy = create(name)
    table = (
        tensor("a", "shared", (2,)),
        tensor("b", "personal" if entry(name).split else "shared", (3,)),
    )
    server = Server(table, 2, dict(INITIAL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EWC without values of the user's own says what it does instead
        strategy.begin(server)
    state: PersonalState | None = None
    runs = []
    for number in range(ROUNDS + 1):
        at = RoundContext(table, LOCAL, number, derive(7, number))
        plan = strategy.plan(at) if number < ROUNDS else strategy.personal_plan(at)
        if plan is None:
            continue
        given = {**strategy.sets(server), **strategy.sets_for(server, 0, "north")}
        sets = drawn(given, plan, 100 * (number + 1))
        report = LocalTrainer(Toy(), plan, table, INITIAL, sets=sets).personalize(
            *batches.split_rows(ROWS, 0.3), state
        )
        runs.append(_run(plan, table, sets, state, report))
        state = report.state
    return {"strategy": name, "roles": {t.name: t.role for t in table}, "runs": runs}


def drawn(sets: Sets, plan: Plan, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Sets of the same names and shapes with other values, as a merge would give.

    A real merge adds in an order of the machine's own, so that its last bits are not the same everywhere.
    """
    trained = [phase for phase in plan.distinct_steps() if isinstance(phase, TrainPhase)]
    strengths = {name for phase in trained for name in (phase.mask, phase.mu)}
    found: dict[str, dict[str, np.ndarray]] = {}
    for i, name in enumerate(sorted(sets)):
        values = {n: draw(seed + 10 * i + j, sets[name][n].shape) for j, n in enumerate(sorted(sets[name]))}
        found[name] = {n: np.abs(v) if name in strengths else v for n, v in values.items()}
    return found


def _run(
    plan: Plan, table: Any, sets: Sets, old: PersonalState | None, report: TrainReport
) -> dict[str, Any]:
    trained = report.trained
    assert trained is not None
    before = ({**INITIAL, **sets.get("global", {})}, trained.copies_before)
    sent = upload.change(plan, table, before, (trained.tensors, trained.copies))
    state = old or PersonalState({})
    return {
        "plan": json.loads(plan.dump()),
        "sets": {name: arrays(sets[name]) for name in sorted(sets)},
        "state": {
            "tensors": arrays(state.tensors),
            "copies": {c: arrays(v) for c, v in sorted(state.copies.items())},
        },
        "status": report.status,
        "losses": [f64(x) for x in report.losses],
        "tensors": arrays(trained.tensors),
        "copies": {c: arrays(v) for c, v in sorted(trained.copies.items())},
        "kept": sorted(report.state.copies) if report.adopted and report.state else None,
        "reports": {n: f64(x) for n, x in report.reports.items()},
        "before": f64(report.before["loss"]),
        "after": f64(report.after["loss"]),
        "sent": {n: array(v) for n, v in sent.items()},
    }
