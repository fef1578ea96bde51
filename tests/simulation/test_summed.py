"""Jobs that add up the changes of their clients: the same bits everywhere, and nobody in who must not be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pfl_mobile import ClassificationTask, Head, personalize
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.updates import Sums, Updates
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.ray_backend import RayBackend
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.worker import Setup, TrainTask
from pfl_mobile.strategies import Local, Strategy, create
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.state import Server
from pfl_mobile.strategies.tilted import Tilted
from pfl_mobile.strategies.weighting import ByExamples, Equally
from tests.simulation.small import OneByOne, rounds, same, setup, shared_setup
from tests.vectorized.cases import Wide, images

FEDAVG = create("fedavg")


class Watched(LocalBackend):
    """Tells by what jobs added up."""

    def run(self, task: Any, jobs: Any, pool: Any, states: Any) -> Any:
        if isinstance(task, TrainTask):
            self.seen = task.summed_by
        return super().run(task, jobs, pool, states)


class Apart(FedAvg):
    """Federated averaging that is told of every device, as any strategy with a merge of its own."""

    def merge(self, server: Server, updates: Updates) -> None:
        assert not isinstance(updates, Sums)
        super().merge(server, updates)


def trained(strategy: Strategy, given: Setup, backend: Any = None, **options: Any) -> Any:
    with (
        backend or LocalBackend(0) as backend,
        rounds(strategy, given, backend, **options) as study,
    ):
        values = dict(study.run().values)
        return values, [(r.clients, r.examples, r.failures) for r in study.history]


@pytest.fixture(scope="module")
def expected() -> Any:
    return trained(FEDAVG, shared_setup())


def network() -> Setup:
    """A wide network on the real trainer."""
    torch.manual_seed(0)
    model = personalize(Wide().eval(), [Head("*")], roles={"*": "shared"})
    task, make = ClassificationTask(5), images((512,))
    batch = {k: torch.from_numpy(v) for k, v in make(4, 99).items()}
    people = ArrayPopulation.of("people", {f"u{i}": make(5 + 9 * (i % 7), i) for i in range(12)})
    return Setup(model, task, batch, people, lanes=4)


# -- the same bits


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_bits(processes: int, expected: Any) -> None:
    values, told = trained(FEDAVG, shared_setup(), LocalBackend(processes))
    assert same(values, expected[0])
    assert told == expected[1]


@pytest.mark.slow
def test_spawned_processes_and_ray_give_the_same_bits(expected: Any) -> None:
    assert same(trained(FEDAVG, shared_setup(), LocalBackend(2, method="spawn"))[0], expected[0])
    pytest.importorskip("ray")
    assert same(trained(FEDAVG, shared_setup(), RayBackend(init={"num_cpus": 2}))[0], expected[0])


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_workers_change_nothing(expected: Any, tmp_path: Any) -> None:
    given = shared_setup(trouble=dict.fromkeys(range(0, 20, 6), "kill once"), marks=str(tmp_path))
    with LocalBackend(2) as backend:
        assert same(trained(FEDAVG, given, backend)[0], expected[0])
        assert backend.restarts


def test_a_resumed_run_ends_with_the_same_bits(expected: Any, tmp_path: Any) -> None:
    trained(FEDAVG, shared_setup(), folder=tmp_path, stop=lambda record: record.round == 0)
    with rounds(FEDAVG, shared_setup(), LocalBackend(2), folder=tmp_path, resume=True) as study:
        study.stopped = False
        assert same(study.run().values, expected[0])


@pytest.mark.slow
def test_networks_give_the_same_bits_and_those_of_single_changes_but_for_rounding() -> None:
    found = {}
    local = Local(epochs=1, optimizer=Sgd(lr=0.05))
    for name, strategy, processes in (
        ("alone", Apart(), 0),
        ("here", FEDAVG, 0),
        ("one", FEDAVG, 1),
        ("two", FEDAVG, 2),
        ("three", FEDAVG, 3),
    ):
        with (
            Watched(processes) as backend,
            Rounds(strategy, network(), backend, local=local, rounds=2, cohort_size=9) as study,
        ):
            found[name] = dict(study.run().values)
            assert study.history[1].failures == {}
            assert backend.seen == (None if name == "alone" else "examples")
    assert all(same(found[name], found["here"]) for name in ("one", "two", "three"))
    for name, value in found["alone"].items():
        np.testing.assert_allclose(found["here"][name], value, atol=1e-6)


# -- who counts


@pytest.mark.parametrize("weighting", [ByExamples(), Equally()])
def test_sums_merge_as_single_changes_do(weighting: Any) -> None:
    trouble = {1: "empty", 4: "nan", 6: "huge", 12: "huge"}
    options = {"choose": lambda number: range(14), "cohort_size": 14, "job_size": 5}
    summed, told = trained(FedAvg(weighting=weighting), shared_setup(trouble=trouble), **options)
    alone, told_alone = trained(Apart(weighting=weighting), shared_setup(trouble=trouble), **options)
    assert told == told_alone
    assert told[0][0] == 10
    assert told[0][2] == {"NoExamplesError": 1, "DataError": 1, "NonFiniteError": 2}
    for name, value in alone.items():
        np.testing.assert_allclose(summed[name], value, atol=1e-6)


def test_a_job_of_nobody_who_is_well_adds_nothing() -> None:
    options = {"choose": lambda number: range(4), "cohort_size": 4, "rounds": 2}
    trouble = {0: "empty", 1: "nan"}
    values, told = trained(FEDAVG, shared_setup(trouble=trouble), job_size=1, **options)
    assert told[0][0] == 2
    options["choose"] = lambda number: range(2, 4)
    assert same(values, trained(FEDAVG, shared_setup(), job_size=1, **options | {"cohort_size": 2})[0])


class Overflowing(OneByOne):
    """Adds up to infinity where user 3 is among the clients, though its training is well."""

    def run_summed(self, plan: Any, clients: Any, start: Any, sets: Any, weights: Any) -> Any:
        outcomes, total = self.run(plan, clients, start, sets), {}
        for name, value in sets["global"].items():
            changes = [o.tensors[name] - value for o in outcomes]
            total[name] = sum(w * c for w, c in zip(weights, changes, strict=True))
            if any(len(c.rows["weight"]) == 9 for c in clients):
                total[name] = total[name] + np.inf
        return outcomes, total


def test_a_sum_that_overflows_is_made_again_one_by_one(expected: Any) -> None:
    given = shared_setup()
    object.__setattr__(given, "trainer", Overflowing)
    values, told = trained(FEDAVG, given)
    assert told == expected[1]
    for name, value in expected[0].items():
        np.testing.assert_allclose(values[name], value, atol=1e-6)


def test_a_network_that_diverges_is_in_no_sum() -> None:
    given, local = network(), Local(epochs=1, optimizer=Sgd(lr=0.05))
    bad = given.population.train(3)["x"]
    bad[:] = 1e30
    found = []
    for strategy in (FEDAVG, Apart()):
        with LocalBackend(0) as backend:
            study = Rounds(
                strategy,
                given,
                backend,
                local=local,
                rounds=1,
                cohort_size=12,
                choose=lambda number: range(12),
            )
            with study:
                found.append(dict(study.run().values))
                assert study.history[0].failures == {"NonFiniteError": 1}
                assert [client for client, _ in study.history[0].failed] == [3]
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=1e-6)


# -- when changes are added up


@dataclass(frozen=True, kw_only=True)
class Halved(ByExamples):
    """A weighting of its own."""

    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        return super().weights(updates, server) / np.arange(1, len(updates) + 1)


@pytest.mark.parametrize(
    ("strategy", "by"),
    [
        (FEDAVG, "examples"),
        (FedAvg(weighting=Equally()), "devices"),
        (create("fedprox", mu=0.1), "examples"),
        (FedAvg(weighting=Halved()), None),
        (FedAvg(weighting=Tilted(t=1.0)), None),
        (create("scaffold"), None),
        (create("qffl", q=1.0), None),
        (Apart(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_changes_are_added_up_only_where_nobody_needs_them(strategy: Strategy, by: str | None) -> None:
    backend = Watched(0)
    trained(strategy, shared_setup(), backend, rounds=1)
    assert backend.seen == by


def test_devices_that_keep_something_send_single_changes() -> None:
    backend = Watched(0)
    trained(FEDAVG, setup(), backend, rounds=1)
    assert backend.seen is None


def test_sums_refuse_what_they_cannot_answer() -> None:
    layout = UpdateLayout({"w": (2,)})
    changes = np.array([[2, 4], [6, 8]], np.float32)
    weights = np.array([1.0, 3.0, 4.0])
    sums = Sums(layout, changes, [5, 6, 7], np.array([1, 3, 4]), np.ones(3, int), {}, [], 9, weights)
    np.testing.assert_allclose(sums.weighted_sum(weights / 8)["w"], [1, 1.5])
    for refused in (
        lambda: sums.weighted_sum(np.ones(3)),
        lambda: sums.changes,
        lambda: sums.select(np.array([0])),
    ):
        with pytest.raises(ConfigError, match="single devices"):
            refused()
