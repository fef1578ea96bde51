from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, StateError, StorageFullError
from pfl_mobile.local import examples as module
from pfl_mobile.local.examples import ExampleStore, Retention
from pfl_mobile.rows import newest_part

FREE = Retention(None, None, None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "examples.db"


def texts(store):
    return [e.payload for e in store.examples()]


def test_examples_survive_and_come_back_oldest_first(path):
    with ExampleStore(path, clock=lambda: 5.0) as store:
        store.add("late", created=9.0)
        store.add("early", created=1.0, note={"app": "chat"})
        store.add({"x": np.arange(3, dtype=np.float32), "y": np.array([7])})
        assert store.payload_bytes() > 9
    with ExampleStore(path) as store:
        first, second, third = store.examples()
        assert (first.payload, first.note, first.kind) == ("early", {"app": "chat"}, "text")
        assert (second.created, second.kind) == (5.0, "arrays")
        assert second.payload["x"].tolist() == [0, 1, 2]
        assert second.payload["y"].dtype == np.int64
        assert third.payload == "late"
        assert [e.payload for e in store.examples(newest=1)] == ["late"]
        assert store.get(first.id) == first
        assert store.get(99) is None
        assert store.count() == 3
        train, held = newest_part(store.examples(), 0.3)
        assert (len(train), held[0].payload) == (2, "late")


def test_retention_by_count_bytes_and_age(path):
    now = [100.0]
    with ExampleStore(path, Retention(3, None, None), clock=lambda: now[0]) as store:
        assert store.add_all(["a", "b", "c", "d"]) == [None, 2, 3, 4]
        assert texts(store) == ["b", "c", "d"]
    with ExampleStore(path, Retention(None, None, 4), clock=lambda: now[0]) as store:
        store.add("12")
        assert texts(store) == ["c", "d", "12"]
        assert store.add("too long") is None
        assert texts(store) == ["c", "d", "12"]
    with ExampleStore(path, Retention(None, None, 1), clock=lambda: now[0]) as store:
        assert texts(store) == ["d"]
        store.erase_all()
    with ExampleStore(path, Retention(None, 10, None), clock=lambda: now[0]) as store:
        store.add("old")
        now[0] = 109.0
        store.add("new")
        now[0] = 111.0
        assert store.enforce() == 1
        assert texts(store) == ["new"]
    now[0] = 200.0
    with ExampleStore(path, Retention(None, 10, None), clock=lambda: now[0]) as store:
        assert store.count() == 0
    with pytest.raises(ConfigError, match="max_age"):
        Retention(max_age=0)


def everything_on_disk(path):
    return b"".join(p.read_bytes() for p in Path(path).parent.iterdir())


def test_erased_text_is_in_no_file(path):
    with ExampleStore(path, FREE) as store:
        store.add_all([f"keep {i} " + "x" * 300 for i in range(50)])
        secret = store.add("SECRET-ONE")
        store.add_all(["SECRET-TWO", "also SECRET-TWO", "SECRET-THREE"])
        assert b"SECRET" in everything_on_disk(path)
        assert store.erase(secret)
        assert not store.erase(secret)
        assert b"SECRET-ONE" not in everything_on_disk(path)
        assert store.erase_where(lambda e: "SECRET-TWO" in e.payload) == 2
        assert b"SECRET-TWO" not in everything_on_disk(path)
        assert store.count() == 51
        assert store.erase_all() == 51
        assert b"SECRET" not in everything_on_disk(path)
        assert b"keep" not in everything_on_disk(path)
        assert store.add("again") > secret + 3  # ids are never used twice


def test_what_retention_removes_is_in_no_file(path):
    with ExampleStore(path, Retention(1, None, None)) as store:
        store.add("SECRET")
        store.add("new")
        assert b"SECRET" not in everything_on_disk(path)


def test_only_the_owner_may_read(path):
    with ExampleStore(path) as store:
        store.add("mine")
        assert all(p.stat().st_mode & 0o077 == 0 for p in path.parent.iterdir())


def test_all_or_none(path):
    def payloads():
        yield "one"
        raise RuntimeError("the app failed")

    with ExampleStore(path) as store:
        with pytest.raises(RuntimeError):
            store.add_all(payloads())
        assert store.count() == 0


def test_migration_keeps_the_examples(path, monkeypatch):
    with ExampleStore(path) as store:
        store.add("kept")
    added = ("ALTER TABLE examples ADD COLUMN source TEXT NOT NULL DEFAULT ''",)
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, added))
    with ExampleStore(path) as store:
        assert texts(store) == ["kept"]
        assert store._db.execute("PRAGMA user_version").fetchone() == (2,)
    monkeypatch.undo()
    with pytest.raises(StateError, match="newer"):
        ExampleStore(path)


def test_failed_migration_changes_nothing(path, monkeypatch):
    with ExampleStore(path) as store:
        store.add("kept")
    broken = ("CREATE TABLE more (x)", "no sql")
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, broken))
    with pytest.raises(StateError):
        ExampleStore(path)
    monkeypatch.undo()
    with ExampleStore(path) as store:
        assert texts(store) == ["kept"]
        assert store._db.execute("SELECT name FROM sqlite_master WHERE name = 'more'").fetchall() == []


@pytest.mark.parametrize("content", [b"no database" * 500, None])
def test_damaged_database_is_a_state_error(path, content):
    if content is None:
        with ExampleStore(path, FREE) as store:
            store.add_all(["y" * 500] * 200)
        data = bytearray(path.read_bytes())
        data[4096:40960] = b"\x55" * 36864
        content = bytes(data)
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged") as caught:
        ExampleStore(path)
    assert "delete" in caught.value.mend


def test_damaged_payload_is_named_and_can_be_erased(path):
    with ExampleStore(path) as store:
        store.add({"x": np.ones(3)})
        store._db.execute("UPDATE examples SET payload = x'00'")
        with pytest.raises(StateError, match=r"erase\(1\)"):
            store.examples()
        assert store.erase(1)
        assert store.examples() == []


def test_full_disk_changes_nothing(path):
    with ExampleStore(path, FREE) as store:
        store.add("kept")
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageFullError):
            store.add_all(["z" * 4000] * 20)
        assert texts(store) == ["kept"]
        store.add("small")


def test_missing_folder_is_a_state_error(tmp_path):
    with pytest.raises(StateError, match="folder"):
        ExampleStore(tmp_path / "none" / "x.db")


def test_killed_while_adding_loses_no_finished_addition(path):
    code = (
        "import sys; from pfl_mobile.local.examples import ExampleStore\n"
        f"s = ExampleStore({str(path)!r})\n"
        "while True: print(s.add('x' * 50), flush=True)\n"
    )
    for delay in (0.0, 0.03):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        last = int(process.stdout.readline())
        time.sleep(delay)
        process.kill()
        last = max([last, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
        process.wait()
        process.stdout.close()
        with ExampleStore(path) as store:
            assert store.count() >= last
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
