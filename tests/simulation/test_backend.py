from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, DataError, PflError, SimulationError, WorkerDiedError
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.process import raise_again, sent
from pfl_mobile.strategies import create
from tests.simulation.small import Users, rounds, same, setup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
PERSONAL = create("ditto")


@pytest.fixture(scope="module")
def expected():
    """What this process alone gives."""
    with LocalBackend(0) as backend, rounds(PERSONAL, setup(), backend) as study:
        return dict(study.run().values), study.evaluate(), study.states.mapping()[0]


def no_child_is_left() -> bool:
    """Neither zombies nor workers that run."""
    zombies = [pid for pid in children() if state(pid) == "Z"]
    return not zombies and not multiprocessing.active_children()


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as pids:
        return [int(pid) for pid in pids.read().split()]


def state(pid: int) -> str:
    """As the kernel calls it; Z for a zombie, empty for no process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_are_the_same_bits_for_any_number_of_processes(processes, expected):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with LocalBackend(processes) as backend, rounds(PERSONAL, setup(), backend) as study:
        assert same(study.run().values, expected[0])
        assert study.evaluate() == expected[1]
        assert len(backend._children) == processes
    assert no_child_is_left()
    if before:
        assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.slow
def test_spawned_processes_give_the_same_bits(expected):
    with LocalBackend(2, method="spawn") as backend, rounds(PERSONAL, setup(), backend) as study:
        assert study.effective()["backend"] == {"name": "local", "processes": 2, "start": "spawn"}
        assert same(study.run().values, expected[0])
        assert study.evaluate() == expected[1]


def test_a_setup_that_cannot_be_pickled_cannot_be_spawned():
    class Mine(Users):
        pass

    given = replace(setup(), population=Mine())
    with LocalBackend(1, method="spawn") as backend, pytest.raises(ConfigError, match="cannot be sent"):
        backend.start(given)


def test_a_killed_worker_is_replaced_and_its_job_repeated(tmp_path, expected):
    trouble = dict.fromkeys(range(0, 20, 3), "kill once")
    with (
        LocalBackend(2) as backend,
        rounds(PERSONAL, setup(trouble=trouble, marks=str(tmp_path)), backend) as study,
    ):
        values = study.run().values
        assert len(list(tmp_path.iterdir())) >= 3
        assert backend.restarts >= len(list(tmp_path.iterdir()))
        assert same(values, expected[0])
        assert all(record.failures == {} for record in study.history)


def test_a_worker_killed_between_rounds_is_replaced(expected):
    with LocalBackend(2) as backend, rounds(PERSONAL, setup(), backend) as study:
        study.step()
        for child in backend._children:
            os.kill(child.process.pid, signal.SIGKILL)
        assert same(study.run().values, expected[0])
        assert backend.restarts == 2


def test_a_job_whose_workers_always_die_ends_with_an_error_that_names_the_devices():
    with (
        LocalBackend(2) as backend,
        rounds(PERSONAL, setup(trouble={7: "kill"}), backend, cohort_size=20) as study,
    ):
        with pytest.raises(WorkerDiedError, match=r"4 processes died .* 7.*by signal 9") as caught:
            study.run()
        assert "memory" in caught.value.mend
        assert study.server.round == 0
    assert no_child_is_left()


def test_an_exception_in_a_worker_reaches_the_caller_and_the_backend_can_go_on(expected):
    with LocalBackend(2) as backend:
        bad = rounds(PERSONAL, setup(trouble=dict.fromkeys(range(20), "memory")), backend)
        with pytest.raises(MemoryError, match="no rows for") as caught:
            bad.run()
        assert "in train" in "".join(caught.value.__notes__)
        bad.setup.population.trouble.clear()
        backend.close()
        assert same(bad.run().values, expected[0])


class OddError(PflError):
    def __init__(self, number: int) -> None:
        super().__init__(f"odd {number}", mend="be even")


def test_errors_keep_type_message_and_mend_on_their_way():
    class LocalError(DataError):
        pass

    class Unpicklable(Exception):
        def __reduce__(self):
            raise RuntimeError

    for error, kind in (
        (OddError(3), OddError),
        (LocalError("m", mend="n"), DataError),
        (KeyError("k"), KeyError),
    ):
        with pytest.raises(kind) as caught:
            raise_again(sent(error))
        assert str(caught.value) == str(error)
    with pytest.raises(SimulationError, match="Unpicklable: why"):
        raise_again(sent(Unpicklable("why")))


@pytest.mark.parametrize("wrong", [{"processes": -1}, {"processes": True}, {"method": "thread"}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ConfigError):
        LocalBackend(**wrong)


def test_an_backend_that_was_not_started_says_so():
    study = rounds(PERSONAL, setup())
    with pytest.raises(ConfigError, match="not started"):
        LocalBackend(0).run(None, [], None, study.states)  # type: ignore[arg-type]


def parent(pipe: int) -> None:
    """A process that tells its workers' ids, trains for long, and tells what stopped it."""
    os.setsid()  # Ctrl-C goes to a whole group of processes
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with LocalBackend(2) as backend, rounds(PERSONAL, setup(pause=0.05), backend, rounds=1000) as study:
            backend.start(study.setup)
            study.step()
            os.write(pipe, (" ".join(str(child.process.pid) for child in backend._children) + "\n").encode())
            study.run()
    except KeyboardInterrupt:
        os.write(pipe, b"interrupted")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent_however_it_ends(how):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            parent(write)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        workers = [int(number) for number in pipe.readline().split()]
        assert len(workers) == 2
        assert all(state(worker) for worker in workers)
        time.sleep(0.1)
        if how == signal.SIGINT:
            os.killpg(pid, how)
        else:
            os.kill(pid, how)
        os.waitpid(pid, 0)
        until = time.monotonic() + 10
        while any(state(worker) not in ("", "Z") for worker in workers):
            assert time.monotonic() < until, "a worker is left"
            time.sleep(0.01)
        assert pipe.read() == ("interrupted" if how == signal.SIGINT else "")


def test_a_started_backend_serves_many_studies_of_one_setup():
    given = setup()
    with LocalBackend(1) as backend:
        found = []
        for name in ("fedavg", "ditto", "fedavg"):
            with rounds(create(name), given, backend) as study:
                found.append(dict(study.run().values))
            pids = [child.process.pid for child in backend._children]
        assert same(found[0], found[2])
        assert [child.process.pid for child in backend._children] == pids
        assert np.isfinite(found[1]["head.weight"]).all()
