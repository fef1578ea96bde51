from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import (
    CheckpointError,
    CohortFailedError,
    ConfigError,
    NonFiniteError,
    OtherSettingsError,
    UnknownNameError,
)
from pfl_mobile.plan.optimizers import Momentum, Sgd
from pfl_mobile.plan.phases import CombinePhase, Term
from pfl_mobile.plan.schema import CopyStart
from pfl_mobile.random import derive
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.cohorts import balanced, sample
from pfl_mobile.simulation.rounds import Rounds, default_job_size
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import Local, Strategy, create
from pfl_mobile.strategies.strategy import mean_change
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.simulation.small import LOCAL, OneByOne, rounds, same, setup

FEDAVG, DITTO = create("fedavg"), create("ditto")


@pytest.fixture
def backend():
    with LocalBackend(0) as backend:
        yield backend


# -- cohorts


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**6), st.data())
@settings(deadline=None)
def test_a_cohort_has_different_members_of_the_population(seed, count, data):
    size = data.draw(st.integers(1, min(count, 300)))
    chosen = sample(seed, count, size)
    assert len(set(chosen.tolist())) == size == len(chosen)
    assert chosen.min() >= 0
    assert chosen.max() < count
    np.testing.assert_array_equal(chosen, sample(seed, count, size))


def test_a_cohort_costs_nothing_for_those_who_are_not_in_it():
    assert len(sample(1, 10**12, 1000)) == 1000  # neither memory nor time for 10**12


def test_every_device_is_chosen_as_often_as_any_other():
    counts = np.zeros(50)
    for seed in range(4000):
        counts[sample(derive(7, seed), 50, 5)] += 1
    spread = np.sqrt(4000 * 0.1 * 0.9)
    assert np.abs(counts - 400).max() < 5 * spread


# -- rounds


def test_a_round_of_fedavg_is_the_mean_of_what_the_devices_train(backend):
    given = setup()
    with rounds(FEDAVG, given, backend, rounds=1) as study:
        cohort, plan = study.cohort(0), FEDAVG.plan(study.context(0))
        start = given.values()
        total = {n: np.zeros(v.shape) for n, v in start.items()}
        for client in cohort:
            rows = given.population.train(client)
            seed = derive(5, 0, 2, client)
            work = OneByOne(given).one(
                plan, SimulatedClient(rows, seed, {}, {}, {}), start, {"global": start}
            )
            for name in total:
                total[name] += len(rows["weight"]) * (work.tensors[name] - start[name])
        study.run()
        examples = sum(6 + c % 7 for c in cohort)
        np.testing.assert_allclose(
            study.server.values["head.weight"],
            start["head.weight"] + total["head.weight"] / examples,
            atol=1e-6,
        )
        assert same({"b": study.server.values["head.bias"]}, {"b": start["head.bias"]})
        record = study.history[0]
        assert (record.clients, record.examples, record.failures) == (6, examples, {})
        assert record.bytes_up == record.bytes_down == 4 * 12
        assert len(study.states) == 6


def test_one_device_that_trains_alone_goes_on_from_its_own_state(backend):
    """What devices keep comes back to them and to nobody else."""
    given = setup()
    with rounds(FEDAVG, given, backend, rounds=4, choose=lambda number: [number % 2]) as study:
        study.run()
        plan, work, values = FEDAVG.plan(study.context(0)), {}, given.values()
        for number in range(4):
            client = number % 2
            own = {"head.bias": work[client].tensors["head.bias"]} if client in work else {}
            one = SimulatedClient(given.population.train(client), derive(5, number, 2, client), own, {}, {})
            work[client] = OneByOne(given).one(plan, one, values, {"global": values})
            values = {**values, "head.weight": work[client].tensors["head.weight"]}
        np.testing.assert_allclose(study.server.values["head.weight"], values["head.weight"], atol=1e-6)
        for client, row in zip(*study.states.mapping(), strict=True):
            np.testing.assert_allclose(
                study.states.form.unpack(study.states.row(row))[0]["head.bias"],
                work[client].tensors["head.bias"],
                atol=1e-5,
            )


def test_failed_devices_are_counted_and_never_averaged_in(backend):
    trouble = {1: "empty", 4: "nan", 6: "huge"}
    everyone = {"choose": lambda number: range(8), "rounds": 2, "cohort_size": 8, "job_size": 8}
    with rounds(DITTO, setup(trouble=trouble), backend, **everyone) as study:
        values = dict(study.run().values)
        record = study.history[0]
        assert record.failures == {"NoExamplesError": 1, "DataError": 1, "NonFiniteError": 1}
        assert [client for client, _ in record.failed] == [1, 4, 6]
        assert record.clients == 5
        assert len(study.states) == 5
    healthy = {**everyone, "choose": lambda number: [0, 2, 3, 5, 7]}
    with rounds(DITTO, setup(), backend, **healthy) as study:
        assert same(study.run().values, values)


def test_when_all_devices_fail_the_server_stays_as_it_was(backend):
    given = setup()
    with rounds(FEDAVG, given, backend, choose=lambda number: range(20)) as study:
        study.step()
        before, sets = dict(study.server.values), len(study.states)
        given.population.trouble = dict.fromkeys(range(20), "empty")
        with pytest.raises(
            CohortFailedError, match=r"all 20 devices of round 1 failed \(20 NoExamplesError\)"
        ):
            study.run()
        assert same(study.server.values, before)
        assert (study.server.round, len(study.states), len(study.history)) == (1, sets, 1)
        given.population.trouble = {}
        assert study.run().round == 3


def test_devices_that_do_not_answer_are_left_out(backend):
    with rounds(FEDAVG, setup(), backend, rounds=60, dropout=0.5) as study:
        study.run()
        dropped = [record.dropped for record in study.history]
        assert all(r.clients + r.dropped == 6 for r in study.history)
        assert 0.35 < np.mean(dropped) / 6 < 0.65
        assert len(set(dropped)) > 2


def test_a_round_in_which_nobody_answers_changes_nothing(backend):
    with rounds(FEDAVG, setup(), backend, rounds=1, dropout=0.999999) as study:
        before = dict(study.server.values)
        assert same(study.run().values, before)
        record = study.history[0]
        assert (record.clients, record.dropped, record.loss) == (0, 6, None)


def test_the_run_stops_when_asked_and_tells_of_every_round(backend):
    told = []
    with rounds(
        FEDAVG, setup(), backend, rounds=9, stop=lambda record: record.round == 3, progress=told.append
    ) as study:
        study.run()
        assert [record.round for record in told] == [0, 1, 2, 3]
        assert study.stopped
        assert told[3].loss < told[0].loss


@dataclass(frozen=True, kw_only=True)
class SendsACopy(Strategy):
    """Sends the change of a copy that devices do not keep: it was zero before, so all of it."""

    def copies(self, at):
        return {"double": CopyStart(group=("role:shared",))}

    def phases(self, at):
        double = CombinePhase(group=("role:shared",), makes="double", terms=(Term(of="theta", times=2.0),))
        return (at.local.train(), double)

    def upload_copies(self, at):
        return ("double",)

    def merge(self, server, updates):
        changes = updates.layout.unpack(updates.changes)
        twice = 2 * (server.values["head.weight"] + changes["head.weight"])
        np.testing.assert_allclose(changes["copy:double:head.weight"], twice, rtol=1e-4, atol=1e-6)
        super().merge(server, updates)


def test_a_copy_is_sent_even_where_devices_do_not_keep_it(backend):
    with rounds(SendsACopy(), setup(), backend) as study:
        study.run()
        assert study.effective()["kept_values_per_device"] == 3
        assert study.history[2].bytes_up == 2 * 48


def test_what_the_plan_does_not_read_is_not_sent(backend):
    with rounds(create("local"), setup(), backend) as study:
        study.run()
        assert (study.history[0].bytes_down, study.history[0].bytes_up) == (0, 0)
    with rounds(create("scaffold"), setup(), backend) as study:
        study.run()
        assert (study.history[0].bytes_down, study.history[0].bytes_up) == (96, 96)


@dataclass(frozen=True, kw_only=True)
class Groupwise(Strategy):
    """Keeps what it sees, in every kind of thing that a server may keep."""

    poison: int = -1

    def merge(self, server, updates):
        weights = self.weighting.weights(updates, server)
        change = mean_change(updates, weights, server.names("shared"))
        server.sets = {**server.sets, "last": change}
        seen = [updates.groups[updates.clients.index(c)] for c in sorted(updates.clients)]
        server.numbers = {
            **server.numbers,
            "groups": seen,
            "total": np.float64(server.numbers.get("total", 0)) + 1,
        }
        if server.round == self.poison:
            server.values = {}
            raise NonFiniteError("poison", mend="-")
        self.apply(server, change)
        for group in set(updates.groups):
            value = server.values["head.weight"] + np.float32(0.5 * (group == "odd"))
            server.groups = {**server.groups, group: {"head.weight": value}}


GROUPS = {"even": list(range(0, 20, 2)), "odd": list(range(1, 20, 2))}


def test_devices_get_the_values_of_their_group(backend):
    with rounds(Groupwise(), setup(groups=GROUPS), backend, rounds=2) as study:
        study.run()
        assert study.server.numbers["groups"] == ["odd" if c % 2 else "even" for c in sorted(study.cohort(1))]
        assert study.group(3) == "odd"
        found = study.evaluate([0, 1])
        for evaluation, group in zip(found, ("even", "odd"), strict=True):
            values = {**study.server.values, **study.server.groups[group]}
            rows = [study.setup.population.test(evaluation.client)]
            assert evaluation.shared == OneByOne(study.setup).evaluate(rows, [values], {})[0]


def test_groups_may_be_others_than_the_population_s(backend):
    with rounds(Groupwise(), setup(groups=GROUPS), backend, groups={"all": range(20)}) as study:
        assert study.group(3) == "all"


def test_a_merge_that_fails_is_undone(backend):
    with rounds(Groupwise(poison=1), setup(groups=GROUPS), backend) as study:
        study.step()
        before, sets, numbers = dict(study.server.values), dict(study.server.sets), dict(study.server.numbers)
        kept = study.states.mapping()
        with pytest.raises(NonFiniteError, match="poison"):
            study.step()
        assert same(study.server.values, before)
        assert (study.server.sets, study.server.numbers, study.server.round) == (sets, numbers, 1)
        for one, other in zip(study.states.mapping(), kept, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_no_number_cannot_be_kept_as_one(backend):
    class Keeps(Strategy):
        def begin(self, server):
            server.numbers["odd"] = object()

    with pytest.raises(ConfigError, match=r"Keeps keeps what is no number"):
        rounds(Keeps(), setup(), backend)


def test_evaluation_is_the_same_for_one_device_and_for_many(backend):
    with rounds(DITTO, setup(), backend) as study:
        study.run()
        everyone = study.evaluate()
        assert [e.client for e in everyone] == list(range(20))
        assert study.evaluate([7]) == everyone[7:8]
        assert study.evaluate() == everyone, "evaluation changed what devices keep"
        assert everyone[3].shared == {}  # it has no test rows
        assert all(e.personal is not None for e in everyone if e.client != 3)
        kept = study.evaluate(adapt=False)
        took_part = set(study.states.mapping()[0].tolist())
        assert {e.client for e in kept if e.personal} == took_part - {3}
        with pytest.raises(ConfigError, match="part"):
            study.evaluate(part="all")


# -- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cohort_size": 21}, "cohort_size is 21 of 20 users"),
        ({"cohort_size": 0}, "cohort_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"job_size": 0}, "job_size is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message, backend):
    with pytest.raises(ConfigError, match=message):
        rounds(FEDAVG, setup(), backend, **wrong)


@pytest.mark.parametrize("cohort", [[1, 1], [], [20], [-1]])
def test_a_cohort_that_cannot_be_is_refused(cohort, backend):
    with (
        rounds(FEDAVG, setup(), backend, choose=lambda number: cohort) as study,
        pytest.raises(ConfigError, match="choose gave"),
    ):
        study.run()


def test_a_strategy_that_names_an_unknown_set_is_refused_before_anything_runs(backend):
    class Lost(Strategy):
        def phases(self, at):
            return (at.local.train(mu=0.1, anchor="nowhere"),)

    with pytest.raises(UnknownNameError, match="nowhere"):
        rounds(Lost(), setup(), backend)


def test_the_effective_configuration_names_everything(backend):
    with rounds(DITTO, setup(), backend, job_size=None) as study:
        study.run()
        found = study.effective()
        assert found["strategy"]["kind"] == "Ditto"
        assert found["trained_values"] == {"personal": 3, "shared": 12}
        assert found["kept_values_per_device"] == 3 + 15
        assert found["bytes_up_per_device"] == 48
        assert (found["lanes"], found["job_size"], found["batch"]) == (1, 1, 8)
        assert found["backend"]["processes"] == 0
        json.dumps(found)


@given(st.integers(1, 5000), st.integers(1, 64))
def test_jobs_fill_the_lanes_and_are_many(cohort, lanes):
    size = default_job_size(cohort, lanes)
    jobs = -(-cohort // size)
    assert size >= 1
    assert jobs <= 64
    if cohort >= 64 and lanes == 1:
        assert jobs >= 16


# -- checkpoints


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(tmp_path, backend):
    given = setup(groups=GROUPS, trouble={7: "empty", 12: "nan"})
    with rounds(Groupwise(), given, backend, rounds=5) as study:
        study.run()
        assert any(record.failures for record in study.history)
        expected = study
        values, evaluated = dict(study.server.values), study.evaluate()
    for stop in range(1, 5):
        folder = tmp_path / str(stop)
        with rounds(Groupwise(), given, backend, rounds=stop, folder=folder, resume=True) as study:
            study.run()
        with rounds(Groupwise(), given, backend, rounds=5, folder=folder, resume=True) as study:
            assert (study.server.round, len(study.history)) == (stop, stop)
            study.run()
            assert same(study.server.values, values)
            assert study.evaluate() == evaluated
            assert study.server.numbers == expected.server.numbers
            assert list(study.server.groups) == list(expected.server.groups)
            assert same(study.server.sets["last"], expected.server.sets["last"])
            assert [{**vars(r), "seconds": 0} for r in study.history] == [
                {**vars(r), "seconds": 0} for r in expected.history
            ]
        lines = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(5))


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.parametrize(
    ("strategy", "processes"), [pytest.param("ditto", 2, marks=pytest.mark.slow), ("scaffold", 0)]
)
def test_runs_killed_at_random_moments_end_with_the_same_bits(tmp_path, strategy, processes):
    command = [
        sys.executable,
        "-m",
        "tests.simulation.kill_rounds",
        str(tmp_path),
        strategy,
        str(processes),
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["kills"] >= 3
    assert summary["resumed"] >= 1


def test_a_folder_with_a_run_is_not_written_over(tmp_path, backend):
    with rounds(FEDAVG, setup(), backend, folder=tmp_path) as study:
        study.run()
    with pytest.raises(ConfigError, match="holds a run of 3 rounds") as caught:
        rounds(FEDAVG, setup(), backend, folder=tmp_path)
    assert "resume=True" in caught.value.mend
    with rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True) as study:
        assert study.run().round == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed was 5 and is 6"),
        ({"cohort_size": 7}, "cohort_size was 6 and is 7"),
        ({"local": Local(epochs=2, optimizer=Sgd(lr=0.5))}, "local.epochs was 1 and is 2"),
        ({"local": Local(optimizer=Momentum(lr=0.5))}, "local.optimizer.kind was 'sgd' and is 'momentum'"),
        ({"dropout": 0.1}, "dropout"),
        ({"groups": {"all": range(20)}}, "groups.all"),
        ({"strategy": create("fedprox")}, "strategy.kind was 'FedAvg' and is 'FedProx'"),
        ({"given": {"count": 21}}, "data.users was 20 and is 21"),
        ({"lanes": 4}, "lanes was None and is 4"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_the_setting_named(tmp_path, change, named, backend):
    with rounds(FEDAVG, setup(), backend, rounds=1, folder=tmp_path) as study:
        study.run()
    users, strategy = change.get("given", {}), change.get("strategy", FEDAVG)
    rest = {key: value for key, value in change.items() if key not in ("given", "strategy", "lanes")}
    given = replace(setup(**users), lanes=change.get("lanes"))
    with pytest.raises(OtherSettingsError) as caught:
        rounds(strategy, given, backend, folder=tmp_path, resume=True, **rest)
    assert named in caught.value.message


def test_a_damaged_checkpoint_is_refused(tmp_path, backend):
    with rounds(FEDAVG, setup(), backend, folder=tmp_path) as study:
        study.run()
    path = tmp_path / "checkpoint"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="digest"):
        rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True)
    path.write_bytes(bytes(data[:40]))
    with pytest.raises(CheckpointError, match="not a valid safetensors"):
        rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True)


def test_lines_of_rounds_that_were_not_finished_are_cut_off(tmp_path, backend):
    with rounds(FEDAVG, setup(), backend, rounds=2, folder=tmp_path) as study:
        study.run()
    with open(tmp_path / "history.jsonl", "ab") as history:
        history.write(b'{"half a li')
    with rounds(FEDAVG, setup(), backend, rounds=3, folder=tmp_path, resume=True) as study:
        study.run()
    lines = (tmp_path / "history.jsonl").read_bytes()
    assert len(lines.splitlines()) == 3
    (tmp_path / "history.jsonl").write_bytes(b"\xff" + lines[1:])
    with pytest.raises(CheckpointError, match="damaged"):
        rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True)
    os.truncate(tmp_path / "history.jsonl", 10)
    with pytest.raises(CheckpointError, match="shorter"):
        rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True)


def test_a_run_that_stopped_early_stays_stopped(tmp_path, backend):
    early = {"rounds": 9, "folder": tmp_path, "stop": lambda record: record.round == 1}
    with rounds(FEDAVG, setup(), backend, **early) as study:
        study.run()
    with rounds(FEDAVG, setup(), backend, **early, resume=True) as study:
        assert study.run().round == 2


def test_a_hook_that_fails_loses_no_round(tmp_path, backend):
    def fails(record):
        if record.round == 1:
            raise RuntimeError("hook")

    with rounds(FEDAVG, setup(), backend) as study:
        expected = dict(study.run().values)
    with rounds(FEDAVG, setup(), backend, folder=tmp_path, stop=fails) as study:
        with pytest.raises(RuntimeError, match="hook"):
            study.run()
        study.run()
    with rounds(FEDAVG, setup(), backend, folder=tmp_path, resume=True) as study:
        assert same(study.server.values, expected)
        assert [record.round for record in study.history] == [0, 1, 2]


def test_checkpoints_are_written_as_often_as_asked_and_at_the_end(tmp_path, backend):
    written = []

    def look(record):
        path = Path(tmp_path) / "checkpoint"
        written.append(path.stat().st_mtime_ns if path.exists() else 0)

    with rounds(
        FEDAVG, setup(), backend, rounds=5, folder=tmp_path, checkpoint_every=2, progress=look
    ) as study:
        study.run()
    assert written[0] == 0
    assert 0 < written[1] == written[2] < written[3] < written[4]


# -- the real trainer


@pytest.mark.slow
def test_rounds_of_real_networks_give_what_the_reference_gives(backend):
    """The compiled cohort trainer in place of the reference interpreter."""
    from pfl_mobile.data.populations import ArrayPopulation
    from tests.simulation.alone import classifier
    from tests.simulation.alone import rows as examples

    model, task, batch = classifier()
    people = ArrayPopulation.of("people", {f"u{i}": examples(5 + i % 7, i) for i in range(12)})
    given = Setup(model, task, batch, people, lanes=4)
    found = []
    for processes in (0, 2):
        with (
            LocalBackend(processes) as own,
            Rounds(create("ditto"), given, own, local=LOCAL, rounds=2, cohort_size=6) as study,
        ):
            study.run()
            found.append((dict(study.server.values), study.evaluate()))
            assert study.history[1].failures == {}
            assert study.effective()["job_size"] == 3
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 12))
def test_pieces_of_a_cohort_are_balanced(sizes: list[int], piece: int) -> None:
    clients = [100 + i for i in range(len(sizes))]
    order = balanced(clients, sizes, piece)
    assert sorted(order) == clients


def test_no_piece_has_far_more_examples_than_the_others() -> None:
    sizes = [int(x) for x in np.random.default_rng(0).lognormal(4.4, 0.7, 50)]

    def spread(order: list[int]) -> float:
        loads = [sum(sizes[c] for c in order[i : i + 13]) for i in range(0, 39, 13)]
        return max(loads) / min(loads)

    assert spread(balanced(range(50), sizes, 13)) < 1.05 < 1.1 < spread(list(range(50)))
