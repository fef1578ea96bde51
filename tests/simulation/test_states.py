from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import CheckpointError, StorageFullError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import CombinePhase, MovePhase, Term, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan
from pfl_mobile.simulation.states import RowFormat, States, finite, kept_shapes
from tests.local.fake import Linear

TABLE = Linear.tensors
SGD = Sgd(lr=0.1)
SHARED = ("role:shared",)
TAKE_OVER = MovePhase(group=SHARED, toward="global", rate=1.0)
FORM = RowFormat({"a": (2, 3), "b": (), "copy:mine:a": (2, 3)})


def state(seed: float) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    a = np.full((2, 3), seed, np.float32) + np.arange(6, dtype=np.float32).reshape(2, 3)
    return {"a": a, "b": np.float32(seed)}, {"mine": {"a": -a}}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for here")
def test_a_full_disk_is_told_before_rows_are_written(tmp_path, monkeypatch):
    def full(_fd: int, _start: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    states = States(FORM, tmp_path / "states")
    states.take(3)
    size = (tmp_path / "states").stat().st_size
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFullError, match="states"):
        states.take(5000)
    assert (tmp_path / "states").stat().st_size == size
    states.close()


def test_a_device_keeps_what_the_plan_does_not_take_over_and_the_copies_in_keep():
    train = TrainPhase(epochs=1, optimizer=SGD)
    assert list(kept_shapes(Plan(phases=(TAKE_OVER, train)), TABLE)) == ["head.bias"]
    assert list(kept_shapes(Plan(phases=(train,)), TABLE)) == ["head.bias", "head.weight"]
    # taken over only after it was read
    assert list(kept_shapes(Plan(phases=(train, TAKE_OVER)), TABLE)) == ["head.bias", "head.weight"]
    half = MovePhase(group=SHARED, toward="global", rate=0.5)
    assert "head.weight" in kept_shapes(Plan(phases=(half, train)), TABLE)
    mine = TrainPhase(epochs=1, optimizer=SGD, trains="mine", group=SHARED)
    control = CombinePhase(group=("*",), makes="c", terms=(Term(of="theta"),))
    plan = Plan(phases=(TAKE_OVER, mine, control), copies={"old": CopyStart(group=SHARED)})
    assert list(kept_shapes(plan, TABLE)) == [
        "head.bias",
        "copy:c:head.bias",
        "copy:c:head.weight",
        "copy:mine:head.weight",
        "copy:old:head.weight",
    ]
    some = plan.model_copy(update={"keep": ("mine",)})
    assert list(kept_shapes(some, TABLE)) == ["head.bias", "copy:mine:head.weight"]
    assert kept_shapes(plan, TABLE)["head.bias"] == (3,)


def test_what_a_device_does_not_have_is_not_there_after_packing():
    row = np.zeros(FORM.stride, np.float32)
    tensors, copies = state(1.5)
    assert FORM.pack(row, tensors, copies) is None
    back = FORM.unpack(row)
    np.testing.assert_array_equal(back[0]["a"], tensors["a"])
    np.testing.assert_array_equal(back[1]["mine"]["a"], copies["mine"]["a"])
    assert FORM.pack(row, {"b": tensors["b"]}, {}) is None
    assert [FORM.unpack(row)[0].keys(), FORM.unpack(row)[1]] == [{"b"}, {}]
    assert FORM.pack(row, tensors, {"mine": {"a": np.full((2, 3), np.inf)}}) == "a of the copy mine"


def test_finite_values_whose_sum_overflows_are_finite():
    big = np.full(10, 3e38, np.float32)
    assert finite(big)
    big[3] = np.inf
    assert not finite(big)
    big.setflags(write=False)
    assert not finite(big)
    assert finite(np.zeros(0, np.float32))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 9), min_size=1, max_size=5), st.booleans(), st.booleans()),
        max_size=12,
    )
)
def test_a_crash_at_any_time_leaves_the_states_of_the_last_commit(history):
    """Rounds with failing devices; the file, and the mapping that the last checkpoint holds, are all that is left."""
    states, expected, committed = States(FORM), {}, {}
    saved = states.mapping()
    for number, (cohort, fails, keeps) in enumerate(history):
        clients = sorted(cohort)
        rows = states.take(len(clients))
        assert not set(rows) & set(saved[1].tolist()), "a row of the checkpoint would be overwritten"
        for client, row in zip(clients, rows, strict=True):
            FORM.pack(states.row(row), *state(100 * client + number))
        good = 1 if fails else len(clients)
        states.adopt(clients[:good], rows[:good])
        states.give_back(rows[good:])
        expected |= {client: 100 * client + number for client in clients[:good]}
        if keeps:
            saved, committed = states.mapping(), dict(expected)
            states.commit()
        for client, value in expected.items():
            np.testing.assert_array_equal(FORM.unpack(states.row(states.of([client])[0]))[0]["b"], value)
    states.restore(*saved)
    assert len(states) == len(committed)
    for client in range(10):
        row = states.of([client])[0]
        assert (row >= 0) == (client in committed)
        if row >= 0:
            np.testing.assert_array_equal(FORM.unpack(states.row(row))[0]["b"], committed[client])
    assert states._rows <= 64, "rows are not used again"


def test_memory_grows_with_the_devices_that_took_part():
    states = States(FORM)
    assert states.file.size == 0
    for first in range(0, 1000, 10):
        clients = [10**9 + c for c in range(first, first + 10)]
        states.adopt(clients, states.take(10))
        states.commit()
    assert states.file.size <= 4 * 1000 * FORM.stride * 4


def test_devices_that_keep_nothing_need_no_rows():
    states = States(RowFormat({}))
    states.adopt([1, 2], states.take(2))
    assert states.of([1]) == [-1]
    assert states.file.size == 0


def test_a_file_in_use_is_refused_and_free_when_its_user_is_gone(tmp_path):
    first = States(FORM, tmp_path / "states")
    with pytest.raises(CheckpointError, match="another process is using"):
        States(FORM, tmp_path / "states", wait=0.1)
    first.close()
    States(FORM, tmp_path / "states", wait=0.1).close()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = States(FORM, tmp_path / "states")
        os.write(write, b"x")
        signal.pause()
        held.close()
    os.read(read, 1)
    with pytest.raises(CheckpointError):
        States(FORM, tmp_path / "states", wait=0)
    os.kill(pid, signal.SIGKILL)
    States(FORM, tmp_path / "states", wait=5).close()
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)


def test_a_file_that_lost_rows_is_refused(tmp_path):
    states = States(FORM, tmp_path / "states")
    with pytest.raises(CheckpointError, match="has 0 rows, the checkpoint names 3"):
        states.restore(np.array([4]), np.array([2]))
