from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest

from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.errors import NonFiniteError, StateError, StorageFullError
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer
from tests.local.fake import Linear, Tensor, linear_rows, plan, sgd

MODEL = ModelId.of("m", "1", Linear.tensors)


def state(value, **rest):
    tensors = {"head.weight": np.full((3, 4), value, np.float32), "memory.next": np.arange(4)}
    return PersonalState(tensors, **rest)


def value(loaded):
    return float(loaded.state.tensors["head.weight"][0, 0])


@pytest.fixture
def store(tmp_path):
    return PersonalStateStore(tmp_path / "state", MODEL)


def test_fresh_store_serves_the_shipped_values(store):
    loaded = store.load()
    assert (loaded.state, loaded.version, loaded.warnings) == (None, 0, ())
    assert store.versions() == []
    with pytest.raises(StateError, match="shipped"):
        store.revert()


def test_everything_comes_back(store):
    saved = state(1, copies={"mine": {"head.weight": np.ones((3, 4), np.float32)}}, words=("zoe", "tïm"))
    saved = PersonalState(saved.tensors, saved.copies, saved.words, {"loss": 0.25, "top1": float("nan")})
    assert store.save(saved) == 1
    loaded = PersonalStateStore(store.directory, MODEL).load().state
    assert loaded.words == ("zoe", "tïm")
    assert loaded.metrics == {"loss": 0.25}
    assert loaded.tensors["memory.next"].dtype == np.int64
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert np.array_equal(loaded.copies["mine"]["head.weight"], saved.copies["mine"]["head.weight"])


def test_revert_goes_along_the_parents(store):
    for v in (1, 2, 3):
        store.save(state(v))
    assert store.revert() == 2
    assert value(store.load()) == 2
    assert store.save(state(4)) == 4
    assert [(i.version, i.parent, i.current) for i in store.versions()] == [
        (1, 0, False),
        (2, 1, False),
        (3, 2, False),
        (4, 2, True),
    ]
    assert [store.revert(), store.revert(), store.revert()] == [2, 1, 0]
    assert store.load().state is None
    assert store.revert(3) == 3
    with pytest.raises(StateError, match="no version 9"):
        store.revert(9)
    store.reset()
    assert store.load().version == 0


def test_old_versions_are_pruned_but_not_what_serves(tmp_path):
    store = PersonalStateStore(tmp_path, MODEL, keep=2)
    for v in (1, 2, 3):
        store.save(state(v))
    assert [i.version for i in store.versions()] == [2, 3]
    store.revert(2)
    store.save(state(4))
    store.save(state(5))
    assert [i.version for i in store.versions()] == [4, 5]


def test_state_of_another_model_is_refused(store):
    store.save(state(1))
    others = [
        ModelId("other", "1", MODEL.fingerprint),
        ModelId("m", "2", MODEL.fingerprint),
        ModelId.of("m", "1", [Tensor("head.weight", "shared", (9, 9))]),
    ]
    for other in others:
        with pytest.raises(StateError, match="belongs to model m 1"):
            PersonalStateStore(store.directory, other).load()


def test_fingerprint_sees_every_column_but_not_the_order():
    a, b = Tensor("a", "shared", (2, 3)), Tensor("b", "personal", (1,))
    same = ModelId.of("m", "1", [b, a])
    assert same == ModelId.of("m", "1", [a, b])
    assert ModelId.of("m", "1", [a, b], frozen_sha256="0" * 64) != same
    for other in (
        Tensor("a2", "shared", (2, 3)),
        Tensor("a", "group", (2, 3)),
        Tensor("a", "shared", (6,)),
        Tensor("a", "shared", (2, 3), "float16"),
        Tensor("a", "shared", (2, 3), update="assign"),
    ):
        assert ModelId.of("m", "1", [other, b]) != same


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "a bit of a tensor":
        data[-1] ^= 1
    else:
        data[data.index(b"parent") + 11] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "a bit of a tensor", "a bit of the header"])
def test_damaged_newest_version_falls_back_and_says_so(store, how):
    store.save(state(1))
    store.save(state(2))
    damage(store.directory / "000002.safetensors", how)
    loaded = store.load()
    assert (value(loaded), loaded.version) == (1, 1)
    (warning,) = loaded.warnings
    assert (warning.version, warning.used) == (2, 1)
    assert "000002" in warning.message
    if how != "missing":
        assert "000002" in store.versions()[1].problem
        with pytest.raises(StateError):
            store.revert(2)
    assert store.save(state(3)) == 3
    assert store.load().warnings == ()


def test_when_nothing_is_good_it_is_an_error_with_a_way_out(store):
    store.save(state(1))
    damage(store.directory / "000001.safetensors", "empty")
    with pytest.raises(StateError, match=r"reset\(\)"):
        store.load()
    store.reset()
    assert store.load().state is None


def test_damaged_pointer_is_an_error_with_a_way_out(store):
    store.save(state(1))
    for bad in (b"", b"-1\n", b"one\n", b"\xff\xfe"):
        (store.directory / "CURRENT").write_bytes(bad)
        with pytest.raises(StateError, match="CURRENT"):
            store.load()
        assert [i.version for i in store.versions()] == [1]
    store.revert(1)
    assert value(store.load()) == 1


def test_newer_schema_is_refused(store, monkeypatch):
    monkeypatch.setattr("pfl_mobile.local.state.SCHEMA_VERSION", 2)
    store.save(state(1))
    monkeypatch.undo()
    with pytest.raises(StateError, match="newer"):
        store.load()


def test_nan_is_never_written(store):
    store.save(state(1))
    with pytest.raises(NonFiniteError):
        store.save(state(np.nan))
    assert [i.version for i in store.versions()] == [1]


def test_full_disk_keeps_the_old_state(store, monkeypatch):
    store.save(state(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFullError):
        store.save(state(2))
    monkeypatch.undo()
    assert value(store.load()) == 1
    assert sorted(p.name for p in store.directory.iterdir()) == ["000001.safetensors", "CURRENT"]


def test_erase_leaves_nothing(store):
    store.save(state(1))
    store.checkpoint_path().write_bytes(b"x")
    store.erase()
    assert list(store.directory.iterdir()) == []
    assert store.load().state is None


def test_only_the_owner_may_read(store):
    store.save(state(1))
    assert all(p.stat().st_mode & 0o077 == 0 for p in [store.directory, *store.directory.iterdir()])


# -- whose it is


def test_the_state_of_another_user_is_refused(tmp_path):
    PersonalStateStore(tmp_path / "s", MODEL, user="ann").save(state(1))
    for _ in range(2):
        with pytest.raises(StateError, match="'ann', not of 'bob'"):
            PersonalStateStore(tmp_path / "s", MODEL, user="bob")
    assert value(PersonalStateStore(tmp_path / "s", MODEL, user="ann").load()) == 1
    assert (
        value(PersonalStateStore(tmp_path / "s", MODEL).load()) == 1
    )  # where there is one user, as on a phone


def test_a_state_of_before_becomes_the_users_with_a_warning(store):
    store.save(state(1))
    with pytest.warns(UserWarning, match="whose"):
        PersonalStateStore(store.directory, MODEL, user="ann")
    with pytest.raises(StateError):
        PersonalStateStore(store.directory, MODEL, user="bob")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "ann"}', b"\xff"])
def test_a_damaged_note_of_the_user_is_told(store, content):
    (store.directory / "user.json").write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        PersonalStateStore(store.directory, MODEL, user="ann")


def test_the_folder_of_a_device_is_told_from_its_personal_state(tmp_path):
    with DeviceFolder(tmp_path / "ann", MODEL, "ann") as folder:
        folder.personal.save(state(1))
    with pytest.raises(StateError, match="folder of a device") as error:
        PersonalStateStore(tmp_path / "ann", MODEL, user="ann")
    assert str(tmp_path / "ann" / "personal") in error.value.mend
    with pytest.raises(StateError, match="'ann', not of 'bob'"):
        PersonalStateStore(tmp_path / "ann" / "personal", MODEL, user="bob")
    assert value(PersonalStateStore(tmp_path / "ann" / "personal", MODEL, user="ann").load()) == 1


# -- two processes


@contextlib.contextmanager
def another_process_holds(folder):
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()

    def hold():
        with PersonalStateStore(folder, MODEL).hold():
            begun.set()
            end.wait(20)

    process = context.Process(target=hold)
    process.start()
    assert begun.wait(20)
    try:
        yield
    finally:
        end.set()
        process.join()


CHANGES = {
    "save": lambda s: s.save(state(2)),
    "write": lambda s: s.write(state(2)),
    "adopt": lambda s: s.adopt(1),
    "revert": lambda s: s.revert(0),
    "reset": lambda s: s.reset(),
    "erase": lambda s: s.erase(),
    "train": lambda s: trainer().personalize(linear_rows(12), linear_rows(4), s),
}


def trainer():
    return LocalTrainer(Linear(), plan(sgd(lr=0.1, steps=2)), Linear.tensors, Linear().initial())


@pytest.mark.parametrize("name", CHANGES)
def test_two_processes_do_not_change_one_state_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr("pfl_mobile.local.state._WAIT_S", 0.05)
    store = PersonalStateStore(tmp_path / "s", MODEL)
    store.save(state(1))
    with another_process_holds(store.directory):
        assert value(store.load()) == 1  # reading needs no lock
        with pytest.raises(StateError, match="in use by another process"):
            CHANGES[name](store)
        assert value(store.load()) == 1
    CHANGES[name](store)


def test_what_an_older_version_of_the_bundle_learned_is_carried_over(store):
    store.save(state(1))
    store.save(state(2, words=("zoe",)))
    old = [(v.version, v.parent, v.created) for v in store.versions()]
    newer = PersonalStateStore(store.directory, replace(MODEL, version="2"))
    newer.carry_over(same_weights=False)
    with pytest.raises(StateError, match="belongs to"):
        newer.load()
    newer.carry_over(same_weights=True)
    assert (value(newer.load()), newer.load().state.words) == (2, ("zoe",))
    assert [(v.version, v.parent, v.created) for v in newer.versions()] == old


def test_what_does_not_fit_is_removed_only_where_that_is_asked_for(store):
    store.save(state(1))
    store.checkpoint_path().write_bytes(b"x")
    store.block(["zorp"])
    other = PersonalStateStore(store.directory, replace(MODEL, fingerprint="0" * 64))
    other.carry_over(same_weights=True)
    with pytest.raises(StateError, match="belongs to"):
        other.load()
    other.carry_over(same_weights=True, discard=True)
    assert (other.load().version, other.versions()) == (0, [])
    assert not other.checkpoint_path().exists()
    assert "zorp" in other.blocked


def test_a_process_that_is_killed_while_it_carries_over_leaves_the_rest_to_the_next(store, monkeypatch):
    store.save(state(1))
    store.save(state(2))
    newer = PersonalStateStore(store.directory, replace(MODEL, version="2"))
    encode = newer._encode

    def killed(what, parent, created):
        if parent:
            raise KeyboardInterrupt
        return encode(what, parent, created)

    with monkeypatch.context() as patch:
        patch.setattr(newer, "_encode", killed)
        with pytest.raises(KeyboardInterrupt):
            newer.carry_over(same_weights=True)
    newer.carry_over(same_weights=True)
    assert value(newer.load()) == 2
    assert value(PersonalStateStore(store.directory, newer.model).load()) == 2
