"""Rounds of any strategy in plain Python: devices run the reference phases one by one, the server merges.

What the simulator does at speed, in the fewest lines, so that a strategy is tested without it.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import TrainingError
from pfl_mobile.local import phases
from pfl_mobile.local.session import Programs
from pfl_mobile.merge.update_rows import FileRows, RowFile
from pfl_mobile.plan import upload
from pfl_mobile.plan.check import check_plan
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import MovePhase
from pfl_mobile.plan.select import select
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.random import derive
from pfl_mobile.strategies import Local, RoundContext, Server, Strategy, Updates
from tests.strategies.models import Location

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.rows import Rows
    from tests.strategies.models import Model

Tensors = dict[str, np.ndarray]


def full_batch(lr: float, steps: int = 1) -> Local:
    """Plain gradient descent; the model's batch must hold all rows of a device."""
    return Local(epochs=None, steps=steps, optimizer=Sgd(lr=lr))


@dataclass
class Federation:
    """A server, and devices with what they keep from round to round."""

    strategy: Strategy
    model: Model
    data: Sequence[Rows]
    local: Local = field(default_factory=lambda: Local(epochs=1, optimizer=Sgd(lr=0.1)))
    seed: int = 0
    groups: Sequence[str] = ()
    start: Tensors | None = None
    personal: dict[int, Tensors] = field(default_factory=dict)
    copies: dict[int, dict[str, Tensors]] = field(default_factory=dict)
    failures: int = 0

    def __post_init__(self) -> None:
        self.table = self.model.tensors
        self.shipped = self.model.initial() if self.start is None else self.start
        self.programs = Programs(self.model, [t.name for t in self.table])
        self.server = Server(self.table, len(self.data), dict(self.shipped))
        self.strategy.begin(self.server)

    def context(self) -> RoundContext:
        at = self.server.round
        return RoundContext(self.table, self.local, round=at, seed=derive(self.seed, at))

    def group(self, client: int) -> str:
        return self.groups[client] if self.groups else ""

    def sets(self, client: int) -> dict[str, Mapping[str, np.ndarray]]:
        common = {"initial": self.shipped, "global": self.server.values, **self.strategy.sets(self.server)}
        return common | self.strategy.sets_for(self.server, client, self.group(client))

    def train(self, plan: Plan, client: int) -> phases.Work:
        """One device, from what it keeps; keeps nothing yet."""
        sets = self.sets(client)
        work = phases.Work(
            {**self.server.values, **self.personal.get(client, {})},
            {name: dict(v) for name, v in self.copies.get(client, {}).items()},
        )
        check_plan(plan, self.table, sets, list(work.copies))
        context = phases.PhaseContext(
            self.programs, self.table, sets, derive(plan.seed, client), lambda *_: True, self.data[client]
        )
        assert phases.run_phases(plan, work, context)
        return work

    def collect(self, cohort: Sequence[int] | None = None) -> Updates:
        """Train a cohort (all by default) and stack what it sends; a device that fails is left out."""
        plan = self.strategy.plan(self.context())
        layout = UpdateLayout(upload.update_shapes(plan, self.table))
        changes, clients, steps, reports = [], [], [], []
        for client in range(len(self.data)) if cohort is None else cohort:
            before = {**self.shipped, **self.sets(client)["global"]}
            try:
                work = self.train(plan, client)
            except TrainingError:
                self.failures += 1
                continue
            change = upload.change(
                plan, self.table, (before, self.copies.get(client, {})), (work.tensors, work.copies)
            )
            changes.append(np.zeros(layout.size, np.float32))
            layout.pack(change, changes[-1])
            clients.append(client)
            steps.append(work.done)
            reports.append({"loss": float(np.mean(work.losses or [0.0])), **work.reports})
            self.copies[client] = phases.kept_copies(plan, work)
            self.personal[client] = {
                n: v for n, v in work.tensors.items() if n not in taken_over(plan, self.table)
            }
        return Updates(
            layout,
            np.array(changes, np.float32).reshape(len(clients), layout.size),
            clients,
            np.array([len(self.data[c]["weight"]) for c in clients], np.int64),
            np.array(steps, np.int64),
            {name: np.array([r[name] for r in reports]) for name in (reports[0] if reports else {})},
            [self.group(c) for c in clients] if self.groups else [],
            len(self.data),
        )

    def round(self, cohort: Sequence[int] | None = None) -> Updates:
        updates = self.collect(cohort)
        self.strategy.merge(self.server, updates)
        self.server.round += 1
        return updates

    def run(self, rounds: int, cohort: int | None = None) -> Federation:
        for _ in range(rounds):
            rng = np.random.default_rng((self.seed, self.server.round))
            size = len(self.data) if cohort is None else cohort
            self.round(sorted(int(i) for i in rng.permutation(len(self.data))[:size]))
        return self

    def served(self, client: int) -> Tensors:
        """What a device predicts with once the rounds are over."""
        plan = self.strategy.personal_plan(self.context())
        if plan is None:
            return {**self.server.values, **self.sets(client)["global"], **self.personal.get(client, {})}
        assert not plan.upload
        assert not plan.upload_copies
        return phases.served(plan, self.train(plan, client), self.sets(client))

    def loss(self, client: int, tensors: Mapping[str, np.ndarray]) -> float:
        return self.programs.evaluate(self.data[client], tensors)["loss"]

    def mean_loss(self) -> float:
        """Over the users, of what each predicts with."""
        return float(np.mean([self.loss(c, self.served(c)) for c in range(len(self.data))]))

    def mean_loss_at(self, tensors: Mapping[str, np.ndarray]) -> float:
        return float(np.mean([self.loss(c, tensors) for c in range(len(self.data))]))


def merge_peak(strategy: Strategy, folder: Path, count: int, width: int) -> int:
    """Bytes that the first merge of so many updates takes at most; they lie in files."""
    files = [RowFile(folder / f"{i}.update") for i in range(8)]
    for i, file in enumerate(files):
        file.path.write_bytes(np.random.default_rng(i).standard_normal(width, np.float32).tobytes())
    model = Location(width, 1)
    server = Server(model.tensors, count, model.initial())
    strategy.begin(server)
    with FileRows([files[i % len(files)] for i in range(count)], width) as rows:
        ones, zeros = np.ones(count, np.int64), np.zeros(count)
        reports = {"loss": zeros, "cluster": zeros}
        updates = Updates(UpdateLayout({"w": (width,)}), rows, range(count), ones, ones, reports, [], count)
        tracemalloc.start()
        strategy.merge(server, updates)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def taken_over(plan: Plan, table: Sequence[DeviceTensorInfo]) -> set[str]:
    """Tensors that a plan begins with the server's values of, so that a device need not keep its own."""
    first = plan.phases[0]
    return (
        set(select(first.group, table))
        if isinstance(first, MovePhase) and first.toward == "global"
        else set()
    )


def state(server: Server) -> dict[str, bytes]:
    """All arrays of a server by path, and its numbers, to compare bit for bit."""
    found = {f"values/{n}": v.tobytes() for n, v in server.values.items()}
    for kind, sets in (("groups", server.groups), ("sets", server.sets)):
        found |= {f"{kind}/{s}/{n}": np.asarray(v).tobytes() for s, t in sets.items() for n, v in t.items()}
    return found | {"numbers": repr(sorted(server.numbers.items())).encode()}


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """The same bits."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_near(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=tol, atol=tol, err_msg=name)
