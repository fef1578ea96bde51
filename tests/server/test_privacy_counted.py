"""What the ledger must not miss, and what other users of the machine must not read."""

from __future__ import annotations

import hashlib
import stat

import pytest

from pfl_mobile.privacy import Ledger
from pfl_server.state_file import get_state
from pfl_server.storage.models import LedgerEntry
from tests.server.basics import ADMIN_TOKEN
from tests.server.federation import federation_config, small

LOCAL = {"mechanism": "local", "clip_norm": 0.3, "local_noise_multiplier": 2.0, "delta": 1e-5}
MATRIX = {"mechanism": "matrix", "noise_multiplier": 4.0, "clip_norm": 0.3, "min_separation": 2}
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


def entries(f):
    with f.services.database.read() as session:
        return list(session.query(LedgerEntry).order_by(LedgerEntry.id))


def abandoned_by_time(f):
    f.clock.pass_time(101)
    f.step()


def abandoned_by_an_admin(f):
    number = f.round().number
    answer = f.client.post(f"/v1/admin/rounds/{number}/abandon", json={}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    f.step()


@pytest.mark.parametrize("end", [abandoned_by_time, abandoned_by_an_admin])
def test_updates_that_devices_hide_themselves_are_spent_when_sent(tmp_path, end):
    """The aggregator is not trusted and saw them, whether the round was merged or not."""
    config = federation_config(privacy=LOCAL)
    ledger = Ledger(config.privacy)
    with small(tmp_path, config, devices=1) as f:
        for times in (1, 2):
            f.send(f.devices[0])
            end(f)
            ledger.record()
            assert f.round(times - 1).state == "abandoned"
            assert len(entries(f)) == times
            assert entries(f)[-1].epsilon == pytest.approx(ledger.epsilon())
            assert f.version().number == 0
            assert f.version().privacy == ledger.statement()


def test_a_roll_back_keeps_what_the_round_it_ends_has_spent(tmp_path):
    config = federation_config(rounds={"minimum": 1}, privacy=LOCAL)
    ledger = Ledger(config.privacy)
    ledger.record(2)
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        abandoned_by_time(f)
        assert f.version().number == 1  # one update was enough
        f.send(f.devices[0])
        answer = f.client.post("/v1/admin/rollback", json={"version": 0}, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        assert f.version().number == 2
        assert len(entries(f)) == 2
        assert f.version().privacy == ledger.statement()


def test_a_round_that_nobody_sent_to_costs_nothing_with_local_noise(tmp_path):
    with small(tmp_path, federation_config(privacy=LOCAL), devices=1) as f:
        task = f.task(f.devices[0])
        declined = f.client.post(
            f"/v1/tasks/{task['id']}/decline", json={"reason": "no_examples"}, headers=f.devices[0]
        )
        assert declined.status_code == 204
        abandoned_by_time(f)
        assert f.round(0).state == "abandoned"
        assert entries(f) == []


def test_a_budget_of_local_noise_is_spent_by_rounds_that_were_not_merged(tmp_path):
    one = Ledger(federation_config(privacy=LOCAL).privacy)
    one.record()
    config = federation_config(privacy=LOCAL | {"budget_epsilon": one.epsilon() + 1e-6})
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        abandoned_by_time(f)
        assert f.federation().state == "spent"


def test_a_device_rests_after_an_update_with_local_noise_that_was_not_merged(tmp_path):
    config = federation_config(privacy=LOCAL | {"min_separation": 2})
    with small(tmp_path, config, devices=2) as f:
        f.send(f.devices[0])
        abandoned_by_time(f)
        assert f.check_in(f.devices[0])["reason"] == "too_soon"
        f.send(f.devices[1])
        abandoned_by_time(f)
        assert f.check_in(f.devices[0])["status"] == "task"


def test_a_device_takes_part_no_more_often_than_configured_with_local_noise(tmp_path):
    config = federation_config(privacy=LOCAL | {"max_participations": 1})
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        abandoned_by_time(f)
        assert f.check_in(f.devices[0])["reason"] == "too_soon"


def test_what_the_aggregator_stores_is_for_its_owner_alone(tmp_path):
    """States hold the noise of past rounds: who has it can take it off the published models."""
    config = federation_config(rounds={"cohort": 1, "minimum": 1}, privacy=MATRIX)
    with small(tmp_path, config, devices=2) as f:
        f.send(f.devices[0])
        f.step()
        f.send(f.devices[1])
        data = tmp_path / "data"
        files = [p for p in data.rglob("*") if p.is_file()]
        assert {p.parent.name for p in files} >= {"states", "sets", "updates", "data"}
        assert [p for p in files if stat.S_IMODE(p.stat().st_mode) & 0o077] == []


def test_a_roll_back_goes_on_with_the_noise_that_was_published_last(tmp_path):
    """To begin the correlated noise anew would publish the same part of it twice."""

    def noise():
        _, state = get_state(f.services.blobs, f.version().state_blob, f.services.runtime.table, 1)
        return int(state["mechanism.rounds"][0]), state["mechanism.noise"].tobytes()

    config = federation_config(rounds={"cohort": 1, "minimum": 1}, privacy=MATRIX)
    with small(tmp_path, config, devices=3) as f:
        for device in f.devices[:2]:
            f.send(device)
            f.step()
        before = noise()
        answer = f.client.post("/v1/admin/rollback", json={"version": 0}, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        assert noise() == before
        f.step()
        f.send(f.devices[2])
        f.step()
        assert noise()[0] == 3
        assert len(entries(f)) == 3


def test_states_cannot_be_downloaded(tmp_path):
    """They hold the noise."""
    config = federation_config(rounds={"cohort": 1, "minimum": 1}, privacy=MATRIX)
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        f.step()
        key = f.version().state_blob
        digest = hashlib.sha256(f.services.blobs.get(key)).hexdigest()
        for name in (digest, key, key.removeprefix("states/"), f"..%2F{key}", f"../{key}"):
            for headers in (f.devices[0], ADMIN):
                answer = f.client.get(f"/v1/sets/{name}", headers=headers)
                assert answer.status_code in (404, 422), name
