"""Admin actions and endpoints; those that lock rows on SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from pfl_server.app import create_app
from pfl_server.federation.config import FederationConfig
from pfl_server.problems import Conflict, InvalidRequest, NotFound
from pfl_server.rounds.admin_actions import Actions
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EnrolledDevice,
    EnrolmentToken,
    Federation,
    Round,
    Version,
)
from pfl_server.storage.sets import get_state, put_set, put_state, set_key
from tests.server.conftest import GENEROUS, Server, device_of
from tests.server.filled import COHORT, fill, filled_config

HOUR = 3600.0
#: Version that `filled` serves; its open round has the same number.
SERVED = 12


@pytest.fixture
def federation_config() -> FederationConfig:
    return filled_config()


@pytest.fixture
def settings(tmp_path: Path, federated_folder: Path, database_url: str) -> ServerSettings:
    return ServerSettings(
        bundle=federated_folder,
        data=tmp_path / "data",
        database=database_url,
        enrolment="open",
        limits=GENEROUS,
    )


def on_both(data: Path, bundle: Path, url: str) -> ServerSettings:
    return ServerSettings(bundle=bundle, data=data / "data", database=url, enrolment="open", limits=GENEROUS)


@pytest.fixture
def filled(server: Server) -> Server:
    fill(server.services, rounds=12, devices=120, cohort=25)
    return server


def get(server: Server, path: str, **query: Any) -> Any:
    answer = server.client.get(f"/v1/admin/{path}", headers=server.admin, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(server: Server, path: str, status: int = 200, **body: Any) -> Any:
    answer = server.client.post(f"/v1/admin/{path}", headers=server.admin, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def audit(services: Services) -> list[tuple[str, dict[str, Any]]]:
    with services.database.read() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id))
        return [(e.action, e.detail) for e in entries if e.actor != "admin (dashboard)"]


def rows(services: Services, table: Any, *where: Any) -> list[Any]:
    with services.database.read() as session:
        return list(session.scalars(select(table).where(*where)))


class TestLooking:
    def test_every_endpoint_needs_the_admin_token(self, server: Server) -> None:
        document = server.client.get("/openapi.json").json()
        paths = {p: m for p, m in document["paths"].items() if p.startswith("/v1/admin/")}
        assert len(paths) > 15
        device = server.enrol()
        for path, methods in paths.items():
            there = path.format(number=0, device_id="0" * 32, token_id="0" * 32)
            for method in methods:
                for headers in ({}, device, {"Authorization": "Bearer " + "x" * 64}):
                    answer = server.client.request(method, there, headers=headers, json={})
                    expected = (403, "admin-required") if headers else (401, "unauthorized")
                    assert (answer.status_code, answer.json()["code"]) == expected, there

    def test_without_a_token_nobody_is_admin(self, opened: Services) -> None:
        opened.admin_token = None
        with TestClient(create_app(opened, coordinate=False)) as client:
            answer = client.get("/v1/admin/status", headers={"Authorization": "Bearer "})
            assert answer.json()["code"] == "admin-disabled"

    def test_status_says_what_goes_on(self, filled: Server) -> None:
        found = get(filled, "status")
        assert (found["state"], found["pause"]) == ("running", None)
        assert found["summary"] == "Round 12 is open: 15 of 25 updates, 4 min left."
        assert found["round"]["number"] == 12
        assert found["round"]["states"]["accepted"] == 15
        assert found["devices"]["total"] == 120
        assert 0 < found["spent"] < found["budget"] == 8.0
        assert {"code": "rate-limited", "count": 112} in found["problems"]

    def test_status_says_who_paused_and_why(self, filled: Server) -> None:
        post(filled, "pause", note="the bundle changes")
        at = filled.clock()
        assert get(filled, "status")["pause"] == {"actor": "admin", "at": at, "note": "the bundle changes"}
        post(filled, "resume")
        assert get(filled, "status")["pause"] is None

    def test_pages_of_rounds_hold_each_round_once(self, filled: Server) -> None:
        seen: list[int] = []
        page = get(filled, "rounds", limit=5)
        while True:
            seen += [r["number"] for r in page["rounds"]]
            if page["next"] is None:
                break
            page = get(filled, "rounds", limit=5, before=page["next"])
        assert seen == list(range(12, -1, -1))

    def test_a_round_tells_why_devices_gave_no_update(self, filled: Server) -> None:
        found = get(filled, "rounds/7")
        assert found["state"] == "abandoned"
        assert "14 updates" in found["error"]
        funnel = found["funnel"]
        others = sum(r["count"] for r in (*funnel["refused"], *funnel["declined"]))
        assert funnel["invited"] == funnel["uploaded"] + others + funnel["expired"] + funnel["working"]
        assert funnel["discarded"] == 14
        assert funnel["invited"] >= funnel["downloaded"] >= funnel["uploaded"]

    def test_numbers_of_a_merge_of_few_devices_are_not_told(self, server: Server) -> None:
        fill(server.services, rounds=1, devices=40, cohort=2)
        assert get(server, "rounds/0")["summary"] == {}

    def test_the_tensors_of_a_version_can_be_downloaded(self, filled: Server) -> None:
        found = get(filled, "versions/3")
        there = "/v1/admin/versions/3/tensors"
        answer = filled.client.get(there, headers=filled.admin)
        assert hashlib.sha256(answer.content).hexdigest() == found["sha256"]
        assert len(answer.content) == found["bytes"]
        again = filled.client.get(there, headers=filled.admin | {"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert filled.client.get("/v1/admin/versions/99/tensors", headers=filled.admin).status_code == 404

    def test_the_privacy_ledger_has_a_row_for_each_published_round(self, filled: Server) -> None:
        found = get(filled, "privacy", limit=200)
        assert [e["round"] for e in found["ledger"]] == [11, 10, 9, 8, 6, 5, 4, 3, 2, 1, 0]
        assert found["spent"] == found["ledger"][0]["epsilon"]
        assert found["left"] == pytest.approx(8.0 - found["spent"])
        assert found["statement"]["assumptions"]

    @pytest.mark.parametrize(
        "path",
        ["rounds/99", "versions/99", "devices/" + "0" * 32, "versions/99/tensors", "rounds/-1", "devices/x"],
    )
    def test_what_is_not_there_is_a_problem(self, filled: Server, path: str) -> None:
        answer = filled.client.get(f"/v1/admin/{path}", headers=filled.admin)
        assert answer.status_code in (404, 422)
        assert answer.headers["content-type"] == "application/problem+json"


class TestPausing:
    def test_pause_and_resume_are_logged(self, server: Server) -> None:
        assert post(server, "pause", note="lunch")["state"] == "paused"
        assert post(server, "resume")["state"] == "running"
        assert audit(server.services) == [("pause", {"note": "lunch"}), ("resume", {})]

    def test_no_task_is_given_while_paused(self, server: Server) -> None:
        headers = server.enrol()
        post(server, "pause")
        answer = server.client.post(
            "/v1/check-in", headers=headers, json={"bundle": server.bundle_id, "examples": 50}
        )
        assert (answer.json()["status"], answer.json()["reason"]) == ("wait", "paused")

    @pytest.mark.parametrize(
        ("state", "action"), [("running", "resume"), ("paused", "pause"), ("spent", "resume")]
    )
    def test_an_action_that_does_not_fit_the_state_changes_and_logs_nothing(
        self, server: Server, state: str, action: str
    ) -> None:
        with server.services.database.write() as session:
            session.get_one(Federation, 1).state = state
        assert post(server, action, 409)["code"] == "conflict"
        assert get(server, "status")["state"] == state
        assert audit(server.services) == []

    def test_notes_keep_no_control_characters(self, server: Server) -> None:
        post(server, "pause", note="a\x00b\nc\x1b[31m")
        assert audit(server.services) == [("pause", {"note": "a b c [31m"})]


class TestAbandoning:
    @pytest.fixture
    def settings(self, tmp_path: Path, federated_folder: Path, database_url: str) -> ServerSettings:
        return on_both(tmp_path, federated_folder, database_url)

    def test_its_tasks_and_updates_end_and_nothing_is_published(self, filled: Server) -> None:
        task = _accepted(filled, 12)
        post(filled, "rounds/12/abandon", note="wrong plan")
        found = get(filled, "rounds/12")
        assert (found["state"], found["error"]) == ("abandoned", "ended by an admin: wrong plan")
        assert set(found["states"]) <= {"discarded", "expired", "refused", "declined"}
        assert filled.services.blobs.size(task) is None
        assert get(filled, "versions")["versions"][0]["number"] == SERVED
        assert audit(filled.services)[-1] == ("abandon-round", {"round": 12, "note": "wrong plan"})

    def test_a_round_that_is_over_stays_what_it_is(self, filled: Server) -> None:
        assert post(filled, "rounds/3/abandon", 409)["code"] == "conflict"
        assert post(filled, "rounds/99/abandon", 404)["code"] == "not-found"

    def test_a_round_that_is_being_merged_is_left_alone_until_the_lease_lapses(self, filled: Server) -> None:
        _merging(filled)
        assert post(filled, "rounds/12/abandon", 409)["code"] == "conflict"
        filled.clock.pass_time(61)
        post(filled, "rounds/12/abandon")


class TestRollingBack:
    @pytest.fixture
    def settings(self, tmp_path: Path, federated_folder: Path, database_url: str) -> ServerSettings:
        return on_both(tmp_path, federated_folder, database_url)

    def test_it_makes_a_new_version_of_the_old_tensors_and_keeps_what_was_spent(self, filled: Server) -> None:
        before = get(filled, "versions", limit=100)["versions"]
        made = post(filled, "rollback", version=4, note="got worse")["version"]
        after = get(filled, "versions", limit=100)["versions"]
        new, old = after[0], get(filled, "versions/4")
        assert after[1:] == [v | {"served": False} for v in before]
        assert new["number"] == made == before[0]["number"] + 1
        assert (new["sha256"], new["parent"], new["round"]) == (old["sha256"], 4, None)
        assert new["note"] == "rolled back to version 4: got worse"
        assert new["privacy"] == before[0]["privacy"] != old["privacy"]
        assert new["served"]
        assert get(filled, "status")["version"] == made

    def test_it_restores_the_strategy_and_goes_on_with_the_noise(self, server: Server) -> None:
        services = server.services
        with services.database.read() as session:
            first = session.get_one(Version, 0)
        state, noise = get_state(services.blobs, first.state_blob, services.runtime.table, 10)
        name = next(iter(state.values))
        old = state.values[name]
        state.values[name] = old + 1
        later = {key: value + 7 for key, value in noise.items()}
        assert later, "matrix noise has a state"
        values = put_set(services.blobs, {name: state.values[name]})
        with services.database.write() as session:
            session.add(
                Version(
                    number=1,
                    round=None,
                    parent=0,
                    state_blob=put_state(services.blobs, 1, state, later),
                    values_sha256=values["sha256"],
                    values_bytes=values["bytes"],
                    privacy=first.privacy,
                    created=services.clock(),
                )
            )
            session.flush()
            session.get_one(Federation, 1).version = 1
        made = Actions(services, "test").roll_back(0)
        with services.database.read() as session:
            found = session.get_one(Version, made)
        back, kept = get_state(services.blobs, found.state_blob, services.runtime.table, 10)
        np.testing.assert_array_equal(back.values[name], old)
        for key, value in later.items():
            np.testing.assert_array_equal(kept[key], value)

    def test_an_open_round_is_abandoned_and_its_updates_are_deleted(self, filled: Server) -> None:
        blob = _accepted(filled, 12)
        made = post(filled, "rollback", version=4)["version"]
        found = get(filled, "rounds/12")
        assert (found["state"], found["error"]) == ("abandoned", "rolled back to version 4")
        assert filled.services.blobs.size(blob) is None
        assert audit(filled.services)[-1] == (
            "roll-back",
            {"to": 4, "version": made, "abandoned_rounds": [12]},
        )
        left = rows(filled.services, Assignment, Assignment.state.in_(("assigned", "accepted")))
        assert left == []

    @pytest.mark.parametrize(("version", "code"), [(99, "not-found"), (SERVED, "conflict")])
    def test_there_must_be_such_a_version_and_another_must_be_served(
        self, filled: Server, version: int, code: str
    ) -> None:
        assert post(filled, "rollback", 409 if code == "conflict" else 404, version=version)["code"] == code
        assert get(filled, "rounds/12")["state"] == "open"
        assert audit(filled.services) == []

    def test_versions_whose_tensors_may_be_gone_are_refused(self, server: Server) -> None:
        fill(server.services, rounds=25, devices=60, cohort=5)
        newest = get(server, "versions")["versions"][0]["number"]
        answer = post(server, "rollback", 404, version=newest - 20)
        assert "no longer kept" in answer["detail"]
        post(server, "rollback", version=newest - 19)

    def test_nothing_changes_while_a_round_is_being_merged(self, filled: Server) -> None:
        _merging(filled)
        assert post(filled, "rollback", 409, version=4)["code"] == "conflict"
        assert get(filled, "status")["version"] == SERVED
        assert audit(filled.services) == []

    def test_two_at_once_make_two_versions_or_one_is_refused(self, filled: Server) -> None:
        made: list[object] = []
        start = threading.Barrier(2)

        def go(number: int) -> None:
            start.wait()
            try:
                made.append(Actions(filled.services, "test").roll_back(number))
            except Conflict as refused:
                made.append(refused)

        threads = [threading.Thread(target=go, args=(n,)) for n in (3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        numbers = sorted(n for n in made if isinstance(n, int))
        assert len(made) == 2
        assert numbers == list(range(SERVED + 1, SERVED + 1 + len(numbers)))
        assert numbers
        assert [a for a, _ in audit(filled.services)] == ["roll-back"] * len(numbers)


class TestRevoking:
    @pytest.fixture
    def settings(self, tmp_path: Path, federated_folder: Path, database_url: str) -> ServerSettings:
        return on_both(tmp_path, federated_folder, database_url)

    def test_the_credential_is_refused_from_then_on(self, server: Server) -> None:
        headers = server.enrol()
        there = f"devices/{device_of(headers)}"
        assert get(server, there)["state"] == "active"
        post(server, f"{there}/revoke", note="emulator")
        answer = server.client.post(
            "/v1/check-in", headers=headers, json={"bundle": server.bundle_id, "examples": 5}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "device-revoked")
        assert get(server, there)["state"] == "revoked"
        assert audit(server.services) == [
            ("revoke-device", {"device": device_of(headers), "note": "emulator"})
        ]

    def test_its_unmerged_update_is_thrown_away_and_merged_ones_stay(self, filled: Server) -> None:
        blob = _accepted(filled, 12)
        task = rows(filled.services, Assignment, Assignment.blob == blob)[0]
        before = {t.id: t.state for t in rows(filled.services, Assignment, Assignment.device == task.device)}
        post(filled, f"devices/{task.device}/revoke")
        after = {t.id: t for t in rows(filled.services, Assignment, Assignment.device == task.device)}
        assert (after[task.id].state, after[task.id].blob) == ("discarded", None)
        assert {i: t.state for i, t in after.items() if i != task.id} == {
            i: state for i, state in before.items() if i != task.id
        }
        assert filled.services.blobs.size(blob) is None

    def test_only_active_devices_can_be_revoked(self, server: Server) -> None:
        headers = server.enrol()
        post(server, f"devices/{device_of(headers)}/revoke")
        assert post(server, f"devices/{device_of(headers)}/revoke", 409)["code"] == "conflict"
        assert post(server, f"devices/{'0' * 32}/revoke", 404)["code"] == "not-found"


class TestTokens:
    @pytest.fixture
    def settings(self, tmp_path: Path, federated_folder: Path) -> ServerSettings:
        return ServerSettings(bundle=federated_folder, data=tmp_path / "data", limits=GENEROUS)

    def test_a_token_lets_as_many_devices_enrol_as_it_says(self, server: Server) -> None:
        made = post(server, "tokens", 201, note="beta", group="deutsch", uses=2, valid_s=HOUR)
        for _ in range(2):
            found = device_of(server.enrol(token=made["token"]))
            assert rows(server.services, EnrolledDevice, EnrolledDevice.id == found)[0].group == "deutsch"
        answer = server.client.post("/v1/devices", json={"bundle": server.bundle_id, "token": made["token"]})
        assert answer.json()["code"] == "enrolment-refused"

    def test_it_is_shown_once_and_kept_as_a_digest(self, server: Server) -> None:
        made = post(server, "tokens", 201)
        kept = rows(server.services, EnrolmentToken)[0]
        assert kept.sha256 == hashlib.sha256(made["token"].encode()).hexdigest()
        assert made["token"] not in server.client.get("/v1/admin/tokens", headers=server.admin).text
        assert made["token"] not in str(audit(server.services))

    def test_a_deleted_token_enrols_nobody(self, server: Server) -> None:
        made = post(server, "tokens", 201)
        there = f"/v1/admin/tokens/{made['id']}"
        assert server.client.delete(there, headers=server.admin).status_code == 204
        assert server.client.delete(there, headers=server.admin).status_code == 404
        answer = server.client.post("/v1/devices", json={"bundle": server.bundle_id, "token": made["token"]})
        assert answer.json()["code"] == "enrolment-refused"
        assert [action for action, _ in audit(server.services)] == ["create-token", "delete-token"]

    def test_groups_must_be_known_and_numbers_positive(self, opened: Services) -> None:
        actions = Actions(opened, "test")
        with pytest.raises(InvalidRequest, match="no group"):
            actions.create_token(group="klingon")
        for numbers in ({"uses": 0}, {"valid_s": 0.0}):
            with pytest.raises(InvalidRequest):
                actions.create_token(**numbers)
        assert audit(opened) == []

    def test_pages_of_tokens_hold_each_once(self, server: Server) -> None:
        made = {post(server, "tokens", 201)["id"] for _ in range(5)}
        first = get(server, "tokens", limit=3)
        second = get(server, "tokens", limit=3, offset=first["next_offset"])
        assert second["next_offset"] is None
        assert {t["id"] for t in (*first["tokens"], *second["tokens"])} == made


def test_an_action_that_fails_at_its_end_changes_nothing(
    filled: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Actions, "_log", fail)
    actions = Actions(filled.services, "test")
    for act in (
        lambda: actions.roll_back(4),
        lambda: actions.abandon(12),
        actions.pause,
        actions.create_token,
    ):
        with pytest.raises(RuntimeError):
            act()
    assert get(filled, "status")["state"] == "running"
    assert get(filled, "status")["version"] == SERVED
    assert get(filled, "rounds/12")["state"] == "open"
    assert len(get(filled, "tokens")["tokens"]) == 3


def test_unknown_things_are_named_in_the_error(opened: Services) -> None:
    with pytest.raises(NotFound, match="no version 5"):
        Actions(opened, "test").roll_back(5)


def _accepted(server: Server, number: int) -> str:
    """Give an accepted update of a round a blob; its key."""
    services = server.services
    with services.database.write() as session:
        task = session.scalars(
            select(Assignment).where(Assignment.round == number, Assignment.state == "accepted").limit(1)
        ).one()
        task.blob = f"updates/{task.id}-00000000"
        services.blobs.put(task.blob, b"update")
        return task.blob


def _merging(server: Server) -> None:
    with server.services.database.write() as session:
        found = session.get_one(Round, 12)
        found.state, found.lease_owner, found.lease_until = "merging", "other", server.clock() + 60


def test_the_example_is_as_large_as_it_says(filled: Server) -> None:
    assert COHORT == 50
    with filled.services.database.read() as session:
        served = session.get_one(Version, SERVED)
    assert filled.services.blobs.size(set_key(served.values_sha256)) == served.values_bytes
