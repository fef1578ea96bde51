from __future__ import annotations

import re

import numpy as np
import pytest

from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import CombinePhase, MovePhase, Term, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan, ServeMix
from pfl_mobile.plan.upload import UpdateLayout, change, update_shapes
from pfl_mobile.simulation.pool import Pool
from pfl_mobile.simulation.states import RowFormat, kept_shapes
from pfl_mobile.simulation.worker import EvaluateTask, Job, JobArrays, TrainTask, Worker, spread
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.local.fake import Linear
from tests.simulation.small import OneByOne, setup

TABLE = Linear.tensors
TAKE_OVER = MovePhase(group=("role:shared",), toward="global", rate=1.0)
TRAIN = TrainPhase(epochs=1, optimizer=Sgd(lr=0.5))
FEDAVG = Plan(phases=(TAKE_OVER, TRAIN), upload=("role:shared",), keep=())
#: Keeps and sends a copy, as control variates do.
CONTROL = Plan(
    phases=(
        TAKE_OVER,
        TRAIN,
        CombinePhase(group=("role:shared",), makes="c", terms=(Term(of="theta"), Term(of="c"))),
    ),
    copies={"c": CopyStart(group=("role:shared",))},
    keep=("c",),
    upload=("role:shared",),
    upload_copies=("c",),
)


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=v.shape).astype(np.float32) for n, v in Linear().initial().items()}


class Bench:
    """One job on a worker, with buffers of its own."""

    def __init__(
        self, plan: Plan, clients: tuple[int, ...], own: tuple[dict, ...] = (), **users: object
    ) -> None:
        self.plan, self.worker = plan, Worker(setup(**users))
        self.layout = UpdateLayout(update_shapes(plan, TABLE))
        self.shapes = kept_shapes(plan, TABLE)
        self.form = RowFormat(self.shapes)
        self.start = values()
        self.pool = Pool()
        self.refs = self.pool.add_set(self.start)
        sets = tuple({n: self.pool.add_set(v) for n, v in one.items()} for one in own)
        n = len(clients)
        seeds = tuple(100 + c for c in clients)
        self.job = Job(0, clients, seeds, sets, (-1,) * n, tuple(range(n)) if self.form.size else (-1,) * n)
        self.data = np.zeros(self.pool.size, np.uint8)
        self.pool.write(self.data)
        self.after = np.zeros((n, self.form.size), np.float32)
        self.changes = np.full((n, self.layout.size), 7, np.float32)

    def train(self, before=None):
        task = TrainTask(self.plan, self.layout, self.shapes, self.refs, {"global": self.refs})
        return self.worker.train(task, self.job, self.memory(before))

    def evaluate(self, personal=None, part="test", before=None):
        task = EvaluateTask(
            self.plan, personal, part, self.refs, self.shapes, self.refs, {"global": self.refs}
        )
        return self.worker.evaluate(task, self.job, self.memory(before))

    def memory(self, before):
        before = [None] * len(self.job.clients) if before is None else list(before)
        return JobArrays(self.data, before, list(self.after), self.changes)

    def alone(self, i, tensors=None, copies=None):
        """What the client gets through local.phases."""
        index, seed = self.job.clients[i], self.job.seeds[i]
        client = SimulatedClient(
            self.worker.setup.population.train(index), seed, tensors or {}, copies or {}, {}
        )
        return OneByOne(self.worker.setup).one(self.plan, client, self.start, {"global": self.start})


@pytest.mark.parametrize("plan", [FEDAVG, CONTROL], ids=["fedavg", "control"])
def test_changes_and_states_are_those_of_a_device(plan):
    bench = Bench(plan, (4, 2, 9))
    before = None
    for _ in range(2):
        records = bench.train(before)
        for i, record in enumerate(records):
            tensors, copies = bench.form.unpack(before[i]) if before is not None else ({}, {})
            alone = bench.alone(i, tensors, copies)
            sent = change(plan, TABLE, (bench.start, copies), (alone.tensors, alone.copies))
            got = bench.layout.unpack(bench.changes[i])
            assert got.keys() == sent.keys()
            for name, value in sent.items():
                np.testing.assert_array_equal(got[name], value)
            kept, kept_copies = bench.form.unpack(bench.after[i])
            np.testing.assert_array_equal(kept["head.bias"], alone.tensors["head.bias"])
            assert kept_copies.keys() == alone.copies.keys()
            assert (record.client, record.failure, record.steps) == (bench.job.clients[i], None, alone.steps)
            assert record.examples == 6 + record.client % 7
            assert record.reports["loss"] == alone.reports["loss"]
        before = bench.after.copy()


def test_a_client_that_cannot_train_is_told_and_leaves_the_others_alone():
    trouble = {5: "empty", 6: "nan", 7: "huge", 8: "typed"}
    bench, quiet = Bench(FEDAVG, (1, 5, 6, 2, 7, 8), trouble=trouble), Bench(FEDAVG, (1, 2))
    records = bench.train()
    quiet.train()
    kinds = [(r.failure or "").split(":")[0] for r in records]
    assert kinds == ["", "NoExamplesError", "DataError", "", "NonFiniteError", "DataError"]
    assert "'x' has NaN" in records[2].failure
    assert "the file of 8 is damaged" in records[5].failure
    np.testing.assert_array_equal(bench.changes[[0, 3]], quiet.changes)


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("wide", r"float32 \[10, 5\], those of the first user float32 \[rows, 4\]"),
        ("double", "float64"),
        ("class", "class 3, the model has the classes 0..2"),
        ("negative", "class -1"),
        ("unlabelled", "no 'labels'"),
        ("list", "'x' of the training rows is a list"),
        ("error", r"cannot be read: TypeError: no rows for 4 \(small.py, line \d+\)"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_their_client_s_failure(trouble, text):
    bench, quiet = Bench(FEDAVG, (1, 4, 2), trouble={4: trouble}), Bench(FEDAVG, (1, 2))
    records = bench.train()
    quiet.train()
    assert records[0].failure is None
    assert records[1].failure.startswith(("DataError: ", "UnusableRowsError: "))
    assert re.search(text, records[1].failure)
    np.testing.assert_array_equal(bench.changes[[0, 2]], quiet.changes)


def test_a_client_that_cannot_be_measured_is_told_and_leaves_the_others_alone():
    found = Bench(FEDAVG, (1, 4, 2), trouble={4: "test nan"}).evaluate(FEDAVG)
    quiet = Bench(FEDAVG, (1, 2)).evaluate(FEDAVG)
    assert (found[1].shared, found[1].personal, found[1].examples) == ({}, None, 0)
    assert "'x' has NaN" in found[1].failure
    assert [found[0], found[2]] == quiet


def test_memory_that_ran_out_is_no_client_s_failure():
    with pytest.raises(MemoryError, match="no rows for 3"):
        Bench(FEDAVG, (1, 3), trouble={3: "memory"}).train()


class Picky(OneByOne):
    """A trainer that some rows make raise, as a token that a model's table does not have does."""

    def run(self, plan, clients, start, sets):
        self.look([client.rows for client in clients])
        return super().run(plan, clients, start, sets)

    def evaluate(self, rows, tensors, start):
        self.look(rows)
        return super().evaluate(rows, tensors, start)

    def look(self, rows):
        if any(len(one["x"]) == 6 + 11 % 7 for one in rows):
            raise IndexError("index out of range in self")


def test_rows_that_make_the_model_raise_are_their_client_s_failure():
    bench, quiet = Bench(FEDAVG, (1, 11, 2)), Bench(FEDAVG, (1, 2))
    bench.worker.trainer = Picky(bench.worker.setup)
    records, found = bench.train(), bench.evaluate(FEDAVG)
    quiet.train()
    assert [r.failure and r.failure.split(":")[0] for r in records] == [None, "UnusableRowsError", None]
    assert "IndexError: index out of range" in records[1].failure
    np.testing.assert_array_equal(bench.changes[[0, 2]], quiet.changes)
    assert "IndexError" in found[1].failure
    assert [found[0], found[2]] == quiet.evaluate(FEDAVG)


def test_a_plan_that_starts_afresh_does_not_read_the_state():
    plan = FEDAVG.model_copy(update={"start": "initial"})
    bench = Bench(plan, (4,))
    bench.train()
    first, state = bench.changes.copy(), bench.after.copy()
    bench.train(state)
    np.testing.assert_array_equal(bench.changes, first)


def test_a_client_trains_from_its_own_sets_and_the_change_is_against_them():
    other = values(9)
    bench = Bench(FEDAVG, (1, 1), own=({"global": other}, {}))
    bench.train()
    client = SimulatedClient(bench.worker.setup.population.train(1), 101, {}, {}, {})
    alone = OneByOne(bench.worker.setup).one(FEDAVG, client, bench.start, {"global": other})
    np.testing.assert_array_equal(
        bench.layout.unpack(bench.changes[0])["head.weight"],
        alone.tensors["head.weight"] - other["head.weight"],
    )
    assert (bench.changes[0] != bench.changes[1]).any()


def test_evaluate_measures_the_server_s_values_and_the_device_s_state():
    bench = Bench(FEDAVG, (1, 2, 3))
    bench.train()
    found = bench.evaluate(before=[None, bench.after[1], bench.after[2]])
    trainer, population = OneByOne(bench.worker.setup), bench.worker.setup.population
    rows = [population.test(c) for c in (1, 2, 3)]
    assert [e.shared for e in found] == trainer.evaluate(rows, [{}, {}, {}], bench.start)
    own, _ = bench.form.unpack(bench.after[1])
    assert found[0].personal is None
    assert found[1].personal == trainer.evaluate(rows[1:2], [own], bench.start)[0] != found[1].shared
    assert (found[2].shared, found[2].personal, found[2].examples) == ({}, {}, 0)
    assert bench.evaluate(part="train")[0].examples == 7


def test_evaluate_trains_by_the_personal_plan_first_and_serves_what_it_says():
    personal = Plan(
        phases=(TAKE_OVER, TrainPhase(epochs=2, optimizer=Sgd(lr=0.5), trains="mine")),
        serve=ServeMix(one="mine", other="global", alpha=0.25),
    )
    bench = Bench(FEDAVG, (1, 5, 2), trouble={5: "empty"})
    found = bench.evaluate(personal)
    bench.plan = personal
    work = bench.alone(0)
    mixed = {
        n: np.float32(0.25) * work.copies["mine"][n] + np.float32(0.75) * bench.start[n] for n in bench.start
    }
    rows = [bench.worker.setup.population.test(1)]
    expected = OneByOne(bench.worker.setup).evaluate(rows, [mixed], bench.start)[0]
    assert found[0].personal == pytest.approx(expected, rel=1e-5)
    assert found[1].personal is None
    assert found[1].failure.startswith("NoExamplesError: ")
    assert found[1].shared
    assert found[2].failure is None


def test_the_same_array_is_in_the_pool_once():
    shared, pool = np.arange(5, dtype=np.float32), Pool()
    refs = [pool.add(shared), pool.add(shared), pool.add(shared.copy())]
    assert refs[0] == refs[1] != refs[2]
    assert pool.size == 2 * 64


def test_some_of_many_rows_are_spread_over_those_that_count() -> None:
    weight = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [0, 1], [1, 1]], np.float32)
    rows = {"x": np.arange(6), "weight": weight}
    assert spread(rows, 2)["x"].tolist() == [1, 4]
    assert spread(rows, 3)["x"].tolist() == [1, 2, 4]
    np.testing.assert_array_equal(spread(rows, 3)["weight"], weight[[1, 2, 4]])
    assert spread(rows, 4) is rows
