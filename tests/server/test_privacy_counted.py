"""What the ledger must not miss, and what other users of the machine must not read."""

from __future__ import annotations

import hashlib
import json
import stat

import pytest

from pfl_mobile.errors import LedgerError, OtherSettingsError
from pfl_mobile.privacy import Ledger, checked_privacy
from pfl_server.federation.config import FederationConfig
from pfl_server.federation.defaults import no_privacy
from pfl_server.federation.restart import refuse_others
from pfl_server.storage.models import Federation, LedgerEntry
from pfl_server.storage.sets import get_state
from tests.server.basics import ADMIN_TOKEN
from tests.server.testbed import federation_config, small, update_of

LOCAL = {"mechanism": "local", "clip_norm": 0.3, "local_noise_multiplier": 2.0, "delta": 1e-5}
MATRIX = {
    "mechanism": "matrix",
    "noise_multiplier": 4.0,
    "clip_norm": 0.3,
    "participation": {"min_separation": 2},
}
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
    config = federation_config(privacy=LOCAL | {"participation": {"min_separation": 2}})
    with small(tmp_path, config, devices=2) as f:
        f.send(f.devices[0])
        abandoned_by_time(f)
        assert f.check_in(f.devices[0])["reason"] == "too_soon"
        f.send(f.devices[1])
        abandoned_by_time(f)
        assert f.check_in(f.devices[0])["status"] == "task"


def test_a_device_takes_part_no_more_often_than_configured_with_local_noise(tmp_path):
    config = federation_config(privacy=LOCAL | {"participation": {"max_participations": 1}})
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


@pytest.mark.parametrize("part", [0, 1, 40])
@pytest.mark.parametrize("goes", ["leaves", "declines"])
def test_an_upload_that_was_begun_is_spent_though_its_device_goes(tmp_path, goes, part):
    """The aggregator saw a part of it. Bytes are counted before they are read, so even none may have been sent."""
    config = federation_config(privacy=LOCAL)
    with small(tmp_path, config, devices=1) as f:
        task, device = f.task(f.devices[0]), f.devices[0]
        data = update_of(task)
        sent = f.put(device, task, data[:part], Upload_Length=str(len(data)))
        assert sent.status_code == 202, sent.text
        if goes == "leaves":
            assert f.client.delete("/v1/devices/me", headers=device).status_code == 204
        else:
            url = f"/v1/tasks/{task['id']}/decline"
            assert f.client.post(url, json={"reason": "cancelled"}, headers=device).status_code == 204
        abandoned_by_time(f)
        ledger = Ledger(config.privacy)
        ledger.record()
        assert [e.epsilon for e in entries(f)] == [pytest.approx(ledger.epsilon())]


@pytest.mark.parametrize("goes", ["leaves", "declines"])
def test_a_device_that_goes_before_it_sends_costs_nothing(tmp_path, goes):
    with small(tmp_path, federation_config(privacy=LOCAL), devices=1) as f:
        task, device = f.task(f.devices[0]), f.devices[0]
        if goes == "leaves":
            assert f.client.delete("/v1/devices/me", headers=device).status_code == 204
        else:
            url = f"/v1/tasks/{task['id']}/decline"
            assert f.client.post(url, json={"reason": "cancelled"}, headers=device).status_code == 204
        abandoned_by_time(f)
        assert entries(f) == []


# -- what was changed in the database


def _config(change):
    def edit(session):
        found = session.get_one(Federation, 1)
        config = json.loads(json.dumps(found.config))
        change(config)
        found.config = config

    return edit


def _no_ledger(session):
    session.query(LedgerEntry).delete()


def _cheaper(session):
    found = session.query(LedgerEntry).first()
    found.event = found.event | {"noise_multiplier": 400.0}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "edit",
    [
        _config(lambda c: c["privacy"].update(budget_epsilon=19.9)),
        _config(lambda c: c["privacy"].update(noise_multiplier=5.0)),
        _config(lambda c: c["privacy"].update(delta=1e-4)),
        _config(lambda c: c["privacy"].update(clip_norm=7.0)),
        _config(lambda c: c["privacy"]["participation"].update(min_separation=3)),
        _config(lambda c: c["rounds"].update(total=10_000)),
        _config(lambda c: c["rounds"].update(max_examples=10_000)),
        _no_ledger,
        _cheaper,
    ],
)
def test_what_was_changed_in_the_database_is_refused_at_the_start(tmp_path, monkeypatch, edit, sealed):
    config = federation_config(rounds={"cohort": 1, "minimum": 1, "min_separation": 2}, privacy=MATRIX)
    statement_only = edit not in (_no_ledger, _cheaper)
    if not sealed:  # as versions from before there were seals
        monkeypatch.setattr("pfl_server.federation.runtime.seal", lambda *_: {})
        monkeypatch.setattr("pfl_server.rounds.merge.seal", lambda *_: {})
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        f.step()
        assert f.version().number == 1
        said = f.version().privacy
        with f.services.database.write() as session:
            edit(session)
            now = session.get_one(Federation, 1).config["privacy"]
    in_statement = any(
        now[n] != said[n] for n in ("budget_epsilon", "noise_multiplier", "delta", "clip_norm")
    )
    if sealed or (statement_only and in_statement):
        with pytest.raises(LedgerError, match=r"changed|missing") as caught, small(tmp_path):
            pass
        assert "backup" in caught.value.mend
    else:
        with small(tmp_path):
            pass


def test_a_ledger_that_is_changed_while_the_server_runs_merges_nothing_more(tmp_path):
    config = federation_config(rounds={"cohort": 1, "minimum": 1}, privacy=MATRIX | {"participation": {}})
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        f.step()
        f.send(f.devices[0])
        with f.services.database.write() as session:
            _no_ledger(session)
        assert f.coordinator.attempt() > 0
        assert f.version().number == 1


#: What a version 1 of the privacy settings looked like in a database.
VERSION_1 = """{"version": 1, "mechanism": "matrix", "clip_norm": 0.3, "noise_multiplier": 4.0, "adaptive": null,
"sampling": "none", "population": null, "cohort": 1, "rounds": null, "min_separation": 2, "band": null,
"max_participations": null, "delta": 1e-06, "budget_epsilon": 20.0, "example_cap": null, "denominator": null,
"local_noise_multiplier": 0.0}"""


def test_a_federation_that_an_earlier_version_began_goes_on(tmp_path, monkeypatch):
    config = federation_config(rounds={"cohort": 1, "minimum": 1, "min_separation": 2}, privacy=MATRIX)
    plain = config.model_dump(mode="json") | {"privacy": json.loads(VERSION_1)}
    with monkeypatch.context() as patch:
        patch.setattr(FederationConfig, "model_dump", lambda self, **_: plain)
        with small(tmp_path, config, devices=1) as f:
            f.send(f.devices[0])
            f.step()
            assert f.federation().config["privacy"]["version"] == 1
    f.clock.pass_time(200)
    with small(tmp_path, clock=f.clock, devices=1) as f:
        assert f.services.runtime.config == config
        f.send(f.devices[0])
        f.step()
        assert f.version().number == 2
        with f.services.database.read() as session:
            assert f.services.runtime.ledger(session).epsilon() == Ledger.after(config.privacy, 2).epsilon()
    with small(tmp_path, config, clock=f.clock):  # the same, said in the words of this version
        pass
    stored = FederationConfig.load(json.dumps(plain))
    for privacy in (json.loads(VERSION_1), config.privacy.model_dump(mode="json")):
        text = json.dumps({"rounds": {"cohort": 1}, "privacy": privacy})
        refuse_others(stored, {}, file=("federation.json", text))
        refuse_others(stored, {}, privacy=checked_privacy(privacy))
        other = json.dumps({"privacy": privacy | {"noise_multiplier": 5.0}})
        with pytest.raises(OtherSettingsError, match=r"privacy.noise_multiplier 5.0"):
            refuse_others(stored, {}, file=("federation.json", other))
    silent = stored.model_copy(update={"privacy": no_privacy(cohort=1, base=stored.privacy)})
    refuse_others(
        silent, {}, file=("federation.json", json.dumps({"privacy": json.loads(VERSION_1)})), none=True
    )
    with pytest.raises(OtherSettingsError, match="--epsilon 4"):
        refuse_others(silent, {}, stated={"epsilon": 4.0})
