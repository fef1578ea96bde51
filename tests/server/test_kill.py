"""Processes that are killed at any point of a merge: no accepted update is lost, and none is merged twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from pfl_server.rounds.coordinator import LEASE_S
from pfl_server.rounds.garbage import Collector
from pfl_server.storage.models import Assignment, LedgerEntry, Version
from tests.server.kill_server import NOISE
from tests.server.testbed import federation_config, small

pytestmark = pytest.mark.slow

CONFIG = federation_config(
    strategy={"name": "fedadam"},
    privacy={"mechanism": "gaussian", "noise_multiplier": 8.0, "clip_norm": 0.2, "budget_epsilon": 20.0},
)
#: Points of a merge of three updates, see ``checkpoint`` in merging.py.
POINTS = [
    "claimed",
    "loaded",
    "computed",
    "state stored",
    "values stored",
    "in the transaction",
    "published",
    "deleted",
    "deleted",
    "deleted",
]


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> tuple[Path, float]:
    """A federation whose round has all its updates and is not merged yet, and the time in it."""
    folder = tmp_path_factory.mktemp("kill")
    with small(folder, CONFIG, devices=3, noise=NOISE) as f:
        values = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
        for device, value in zip(f.devices, values, strict=True):
            f.send(device, value)
        now = f.clock()
    return folder, now + LEASE_S + 1


def outcome(folder):
    """What a federation came to: tensors and everything that is counted."""
    with small(folder, noise=NOISE) as f, f.services.database.read() as session:
        model = f.model()
        tensors = {n: v.tobytes() for n, v in sorted(model.values.items())}
        tensors |= {f"{s}.{n}": v.tobytes() for s, values in model.sets.items() for n, v in values.items()}
        states = session.scalars(select(Assignment.state).where(Assignment.round == 0)).all()
        return {
            "tensors": tensors,
            "rounds": model.round,
            "states": sorted(states),
            "versions": session.scalar(select(func.count()).select_from(Version)),
            "ledger": [(e.round, e.epsilon) for e in session.scalars(select(LedgerEntry))],
            "round": (f.round(0).state, f.round(0).result),
        }


@pytest.fixture(scope="module")
def step():
    """``(folder, number, now)`` to the exit status and the point of a process of `kill_server`."""
    command = [sys.executable, "-m", "tests.server.kill_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as processes:

        def run(folder, number, now):
            processes.stdin.write(f"{number} {now} {folder}\n")
            processes.stdin.flush()
            status, point = processes.stdout.readline().rstrip("\n").split(" ", 1)
            return int(status), point

        yield run
        processes.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(closed, step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "copy"
    shutil.copytree(closed[0], folder)
    assert step(folder, -1, closed[1]) == (0, "")
    found = outcome(folder)
    assert found["states"] == ["merged"] * 3
    assert found["round"] == ("merged", 1)
    return found


@pytest.mark.parametrize("number", range(len(POINTS)))
def test_a_merge_that_was_killed_is_done_once(closed, undisturbed, step, tmp_path, number):
    folder, now = tmp_path / "copy", closed[1]
    shutil.copytree(closed[0], folder)
    assert step(folder, number, now) == (-signal.SIGKILL, POINTS[number])
    assert step(folder, -1, now + LEASE_S + 1) == (0, "")
    assert outcome(folder) == undisturbed


def test_a_merge_that_was_killed_again_and_again_is_done_once(closed, undisturbed, step, tmp_path):
    folder, now = tmp_path / "copy", closed[1]
    shutil.copytree(closed[0], folder)
    for number in (3, 0, 5, 4):
        assert step(folder, number, now)[0] == -signal.SIGKILL
        now += LEASE_S + 1
    assert step(folder, -1, now) == (0, "")
    assert outcome(folder) == undisturbed
    with small(folder) as f:
        collector = Collector(f.services, grace_s=1)
        collector.collect()
        f.clock.pass_time(1e6)
        collector.collect()
        states = sorted(key.split("-")[0] for key in f.services.blobs.keys("states/"))
        assert states == ["states/0", "states/1"]
        assert list(f.services.blobs.keys("updates/")) == []
