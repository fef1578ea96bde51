"""A coordinator that fails again and again: what was accepted is kept, and the operator is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import select

from pfl_mobile.errors import StateError
from pfl_server.counting.backoff import NOT_READY, PAUSES
from pfl_server.errors import DatabaseError, MergeMemoryError
from pfl_server.reports.status import status
from pfl_server.storage.models import AuditEntry
from tests.server.testbed import federation_config, small

ONE = {"cohort": 1, "minimum": 1}
MATRIX = {"mechanism": "matrix", "noise_multiplier": 1.0, "clip_norm": 1.0, "rounds": 10, "band": 1}


def state_file(folder, f) -> Path:
    return folder / "data" / "blobs" / f.version().state_blob


def pause(f):
    """What an alarm is told of a pause."""
    admin = {"Authorization": f"Bearer {f.services.admin_token}"}
    return f.client.get("/v1/admin/status", headers=admin).json()["pause"]


def roll_back(f, version):
    """The answer to a roll-back."""
    admin = {"Authorization": f"Bearer {f.services.admin_token}"}
    return f.client.post("/v1/admin/rollback", json={"version": version}, headers=admin).json()


def why(f) -> str:
    with f.services.database.read() as session:
        return status(session, f.services.runtime.config, f.clock()).why


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_state_that_cannot_be_read_keeps_the_updates_and_pauses_with_the_reason(tmp_path, damage):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        task = f.send(f.devices[0])
        file = state_file(tmp_path, f)
        good = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(good[:-4] + b"\0\1\2\3")
        for n in range(PAUSES):
            assert f.client.get("/readyz").status_code == (200 if n < NOT_READY else 503)
            assert f.federation().state == "running"
            assert f.coordinator.attempt() == 2.0**n
        assert (f.round(0).state, f.assignment(task).state) == ("closing", "accepted")
        assert f.federation().state == "paused"
        assert file.name in why(f)
        assert "restore" in why(f)
        assert pause(f) == {"actor": "aggregator", "at": f.clock(), "note": why(f)}
        found = f.client.get("/readyz").json()
        assert found["code"] == "unavailable"
        assert f"{PAUSES} times in a row" in found["detail"]
        assert str(tmp_path) not in str(found)
        f.coordinator.attempt()
        with f.services.database.read() as session:
            assert len(session.scalars(select(AuditEntry)).all()) == 1
        file.write_bytes(good)
        assert f.coordinator.attempt() == 0
        assert (f.round(0).state, f.assignment(task).state) == ("merged", "merged")
        assert f.client.get("/readyz").status_code == 200


def test_too_little_memory_keeps_the_updates(tmp_path, monkeypatch):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        task = f.send(f.devices[0])

        def merge(*_):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(type(f.services.runtime.definition.strategy), "merge", merge)
            with pytest.raises(MergeMemoryError, match="round 0"):
                f.step()
            assert (f.round(0).state, f.assignment(task).state) == ("closing", "accepted")
            for _ in range(PAUSES):
                f.coordinator.attempt()
        assert f.federation().state == "paused"
        assert "not enough memory" in why(f)
        f.step()
        assert (f.round(0).state, f.version().number) == ("merged", 1)


def test_a_round_that_cannot_be_merged_can_be_ended(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        f.send(f.devices[0])
        state_file(tmp_path, f).unlink()
        f.coordinator.attempt()
        admin = {"Authorization": f"Bearer {f.services.admin_token}"}
        assert f.client.post("/v1/admin/rounds/0/abandon", json={}, headers=admin).status_code == 200
        assert f.round(0).state == "abandoned"


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short")])
@pytest.mark.parametrize("privacy", [{}, MATRIX])
def test_without_the_served_state_only_its_file_helps(tmp_path, damage, privacy):
    with small(tmp_path, federation_config(rounds=ONE, privacy=privacy), devices=4) as f:
        for device in f.devices[:2]:
            f.send(device)
            f.step()
        file = state_file(tmp_path, f)
        good = file.read_bytes()
        damage(file)
        for version in (0, 1):
            found = roll_back(f, version)
            assert found["code"] == "conflict"
            assert "version 2 cannot be used" in found["detail"]
            assert f"restore states/{file.name}" in found["mend"]
        f.send(f.devices[2])
        for _ in range(PAUSES):
            f.coordinator.attempt()
        assert "restore" in why(f)
        assert "roll back" not in why(f)
        file.write_bytes(good)
        f.coordinator.attempt()
        assert (f.round(2).state, f.version().number) == ("merged", 3)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short")])
def test_a_roll_back_to_a_state_that_cannot_be_read_says_to_choose_another(tmp_path, damage):
    with small(tmp_path, federation_config(rounds=ONE), devices=3) as f:
        files = []
        for device in f.devices:
            f.send(device)
            f.step()
            files.append(state_file(tmp_path, f))
        damage(files[0])
        found = roll_back(f, 1)
        assert (found["code"], found["detail"].split(":")[0]) == (
            "conflict",
            "the state of model version 1 cannot be used",
        )
        assert f"restore states/{files[0].name}" in found["mend"]
        assert "or choose another version" in found["mend"]
        assert roll_back(f, 2) == {"version": 4}


def test_a_start_on_a_state_that_cannot_be_read_is_refused(tmp_path):
    with small(tmp_path, federation_config()) as f:
        file = state_file(tmp_path, f)
    for damage in (lambda: file.write_bytes(b"short"), file.unlink):
        damage()
        with pytest.raises(StateError, match="version 0") as found, small(tmp_path):
            pass
        assert file.name in found.value.mend
        assert "--data" in found.value.mend


def test_the_same_failure_is_logged_less_and_less_often_with_its_mend(tmp_path, caplog):
    with small(tmp_path, federation_config()) as f, caplog.at_level(logging.ERROR, "pfl_server"):
        waits = [
            f.services.trouble.failed(DatabaseError("it is away", mend="bring it back")) for _ in range(16)
        ]
        assert len(caplog.records) == 5  # 1, 2, 4, 8, 16
        assert all("bring it back" in record.getMessage() for record in caplog.records)
        assert waits[:6] == [1, 2, 4, 8, 16, 30]
        f.services.trouble.failed(ValueError("another"))
        assert len(caplog.records) == 6
        assert f.federation().state == "running"


def test_a_failure_that_another_process_got_over_is_forgotten(tmp_path):
    with small(tmp_path, federation_config()) as f:
        for _ in range(NOT_READY):
            f.services.trouble.failed(DatabaseError("it is away", mend="bring it back"))
        assert f.client.get("/readyz").status_code == 503
        f.clock.pass_time(1000)
        assert f.client.get("/readyz").status_code == 200
