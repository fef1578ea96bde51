"""Rounds with differential privacy: what is added, accounted for, and refused."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, PrivacyError
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.privacy import Gaussian, Ledger, PrivateRounds, SecureNoise, SimulatedNoise
from pfl_mobile.strategies import Server, Updates, create
from pfl_server.storage.models import LedgerEntry
from tests.server.basics import ADMIN_TOKEN, RepeatingNoise
from tests.server.testbed import federation_config, layout, small, update_of

GAUSSIAN = {"mechanism": "gaussian", "noise_multiplier": 4.0, "clip_norm": 0.3, "delta": 1e-5}
MATRIX = {
    "mechanism": "matrix",
    "noise_multiplier": 4.0,
    "clip_norm": 0.3,
    "participation": {"min_separation": 2},
    "delta": 1e-5,
}
ONE = {"cohort": 1, "minimum": 1}


def entries(f):
    with f.services.database.read() as session:
        return list(session.query(LedgerEntry).order_by(LedgerEntry.id))


def flat(values):
    return np.concatenate([values[name].reshape(-1) for name in ("a", "b")])


def test_the_merge_is_the_private_mean_and_nothing_else(tmp_path):
    config = federation_config(privacy=GAUSSIAN)
    with small(tmp_path, config, devices=3, noise=RepeatingNoise(5)) as f:
        before = flat(f.model().values)
        values = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
        for device, value in zip(f.devices, values, strict=True):
            task = f.send(device, value, examples=1000)
        assert task["privacy"]["mechanism"] == "gaussian"
        assert task["privacy"]["clip_norm"] == 0.3
        assert task["privacy"]["noise_multiplier"] == 4.0
        f.step()
        assert f.round(0).state == "merged", f.round(0).error
        private = PrivateRounds(config.privacy, SimulatedNoise(5))
        expected = private.merge(MatrixRows(values), np.ones(3))
        np.testing.assert_allclose(flat(f.model().values) - before, expected, rtol=1e-5, atol=1e-6)
        assert f.round(0).summary["clipped"] == 1.0


def test_an_admin_gets_the_ledger_that_says_what_was_spent(tmp_path):
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    with small(tmp_path / "a", federation_config(privacy=GAUSSIAN, rounds=ONE), devices=2) as f:
        for device in f.devices:
            f.send(device)
            f.step()
        answer = f.client.get("/v1/admin/privacy/ledger", headers=admin)
        found = Ledger.from_json(answer.text)
        with f.services.database.read() as session:
            assert found.entries == f.services.runtime.ledger(session).entries
        assert found.rounds == 2
        assert found.epsilon() == f.client.get("/v1/admin/privacy", headers=admin).json()["spent"]
        assert f.client.get("/v1/admin/privacy/ledger", headers=f.devices[0]).status_code == 403
    with small(tmp_path / "b", federation_config()) as f:
        assert f.client.get("/v1/admin/privacy/ledger", headers=admin).status_code == 409


@pytest.mark.parametrize(
    ("name", "parameters"), [("term", {"t": 0.7, "loss_cap": 2.0}), ("maxfl", {}), ("term", {"t": -1.0})]
)
def test_weights_by_reports_are_those_of_the_simulator(tmp_path, name, parameters):
    config = federation_config(
        strategy={"name": name, "parameters": parameters}, privacy=GAUSSIAN | {"example_cap": 30}
    )
    rng = np.random.default_rng(0)
    with small(tmp_path, config, devices=3, noise=RepeatingNoise(5)) as f:
        strategy, runtime = create(name, **parameters), f.services.runtime
        server = Server(runtime.table, 3, dict(runtime.initial))
        values = rng.standard_normal((3, 10)).astype(np.float32)
        examples, reports = np.array([7, 1000, 20]), []
        for device, value, count in zip(f.devices, values, examples, strict=True):
            task = f.task(device)
            reports.append({r: float(rng.uniform(0.1, 3)) for r in task["reports"]})
            data = update_of(task, value, examples=int(count), reports=reports[-1])
            assert f.put(device, task, data).status_code == 200
        f.step()
        assert f.round(0).state == "merged", f.round(0).error
        columns = {r: np.array([found[r] for found in reports]) for r in reports[0]}
        rule = PrivateRule(config.privacy, PrivateRounds(config.privacy, SimulatedNoise(5)).merge)
        strategy.merge(
            server,
            Updates(layout(task), values, range(3), examples, np.ones(3), columns, [], 3, rule=rule),
        )
        assert columns
        np.testing.assert_allclose(flat(f.model().values), flat(server.values), rtol=1e-5, atol=1e-6)
        assert f.model().numbers == server.numbers == {}


def test_noise_is_secure_unless_a_test_says_otherwise(tmp_path):
    with small(tmp_path, federation_config(privacy=GAUSSIAN)) as f:
        assert isinstance(f.services.runtime.noise, SecureNoise)


def test_every_version_says_what_it_cost(tmp_path):
    config = federation_config(rounds=ONE, privacy=GAUSSIAN)
    with small(tmp_path, config, devices=1) as f:
        ledger = Ledger(config.privacy)
        assert f.version().privacy["epsilon"] == 0
        for number in range(3):
            f.send(f.devices[0])
            f.step()
            ledger.record()
            assert f.version().privacy == ledger.statement()
            assert entries(f)[number].epsilon == pytest.approx(ledger.epsilon())
        assert [e.round for e in entries(f)] == [0, 1, 2]
        info = f.client.get("/v1/federation").json()
        assert info["privacy"]["epsilon"] == pytest.approx(ledger.epsilon())


def test_noise_that_could_be_predicted_merges_nothing(tmp_path):
    with small(tmp_path, federation_config(privacy=GAUSSIAN), devices=3) as f:
        before = flat(f.model().values)
        for device in f.devices:
            f.send(device)
        f.services.runtime.noise = SimulatedNoise(1)
        with pytest.raises(ConfigError, match="SimulatedNoise"):
            f.step()
        assert f.round(0).state == "failed"
        np.testing.assert_array_equal(flat(f.model().values), before)
        assert entries(f) == []


def test_a_task_says_what_is_spent_once_its_update_is_in_a_model(tmp_path):
    config = federation_config(rounds=ONE, privacy=GAUSSIAN)
    with small(tmp_path, config, devices=1) as f:
        for number in range(3):
            ledger = Ledger(config.privacy)
            ledger.record(number + 1)
            found = f.send(f.devices[0])["privacy"]
            assert found["epsilon_after"] == pytest.approx(ledger.epsilon())
            assert (found["statement"]["epsilon"] or 0.0) < found["epsilon_after"]
            f.step()
            assert f.version().privacy["epsilon"] == pytest.approx(found["epsilon_after"])
            f.step()


def test_a_buffered_task_says_what_is_spent_when_it_is_merged_as_late_as_it_may_be(tmp_path):
    for name, more, rounds in (
        ("late", {"max_staleness": 4}, 5),
        ("end", {"max_staleness": 4, "total": 3}, 3),
        ("budget", {"max_staleness": 4}, None),
    ):
        privacy = GAUSSIAN | ({} if rounds else {"budget_epsilon": 2.0})
        config = federation_config(rounds=ONE | {"mode": "buffered"} | more, privacy=privacy)
        ledger = Ledger(config.privacy)
        ledger.record(rounds or 0)
        with small(tmp_path / name, config, devices=1) as f:
            found = f.task(f.devices[0])["privacy"]["epsilon_after"]
            assert found == pytest.approx(ledger.epsilon() if rounds else 2.0)


def test_training_stops_before_a_round_that_would_exceed_the_budget(tmp_path):
    ledger = Ledger(Gaussian(**GAUSSIAN, cohort=1))
    ledger.record(2)
    config = federation_config(rounds=ONE, privacy=GAUSSIAN | {"budget_epsilon": ledger.epsilon() + 1e-6})
    with small(tmp_path, config, devices=1) as f:
        for _ in range(2):
            f.send(f.devices[0])
            f.step()
        assert f.federation().state == "spent"
        assert f.check_in(f.devices[0])["reason"] == "spent"
        f.step()
        assert f.round().number == 1


def test_a_round_that_is_abandoned_costs_nothing(tmp_path):
    with small(tmp_path, federation_config(privacy=GAUSSIAN), devices=1) as f:
        f.send(f.devices[0])
        f.clock.pass_time(101)
        f.step()
        assert f.round(0).state == "abandoned"
        assert entries(f) == []


def test_correlated_noise_goes_on_after_a_restart(tmp_path):
    """Three rounds in one process, and in three: the noise of a round takes back a part of the one before."""
    found = []
    for restart in (False, True):
        folder = tmp_path / str(restart)
        config = federation_config(rounds=ONE, privacy=MATRIX)
        with small(folder, config, devices=3, noise=RepeatingNoise(0)) as f:
            devices, clock = f.devices, f.clock
            if not restart:
                for number, device in enumerate(devices):
                    f.services.runtime.noise = RepeatingNoise(number)
                    f.send(device, 0.0)
                    f.step()
        for number, device in enumerate(devices if restart else []):
            clock.pass_time(60)
            with small(folder, clock=clock, noise=RepeatingNoise(number)) as f:
                f.send(device, 0.0)
                f.step()
        with small(folder, clock=clock) as f:
            found.append(flat(f.model().values))
            state = f.services.runtime
            assert f.version().number == 3
            with f.services.database.read() as session:
                assert state.private_rounds(session).ledger.rounds == 3
    np.testing.assert_array_equal(found[0], found[1])


def test_an_adaptive_clip_norm_moves_and_devices_are_told(tmp_path):
    adaptive = {"quantile": 0.5, "rate": 1.0, "noise_multiplier": 4.0}
    config = federation_config(rounds=ONE, privacy=GAUSSIAN | {"adaptive": adaptive})
    with small(tmp_path, config, devices=1, noise=RepeatingNoise(3)) as f:
        first = f.send(f.devices[0], 5.0)
        f.step()
        clip = f.federation().clip_norm
        assert clip != 0.3
        assert f.round().clip_norm == clip
        again = f.task(f.devices[0])
        assert again["privacy"]["clip_norm"] / clip == pytest.approx(first["privacy"]["clip_norm"] / 0.3)


def test_strategies_that_read_single_updates_are_refused(tmp_path):
    for name in ("ifca", "term", "pfedhn"):
        config = federation_config(strategy={"name": name}, privacy=GAUSSIAN)
        with pytest.raises(PrivacyError), small(tmp_path / name, config):
            pass


def test_reports_beside_updates_with_the_devices_own_noise_are_refused(tmp_path):
    own = {"clip_norm": 0.3, "local_noise_multiplier": 2.0, "delta": 1e-5}
    for kind, privacy in (("local", own | {"mechanism": "local"}), ("both", GAUSSIAN | own)):
        config = federation_config(strategy={"name": "maxfl"}, privacy=privacy)
        with pytest.raises(PrivacyError, match="own_loss, sent_loss"), small(tmp_path / kind, config):
            pass


def test_local_noise_is_told_to_devices_and_accounted(tmp_path):
    privacy = {"mechanism": "local", "clip_norm": 0.3, "local_noise_multiplier": 2.0, "delta": 1e-5}
    config = federation_config(rounds=ONE, privacy=privacy)
    with small(tmp_path, config, devices=1) as f:
        before = flat(f.model().values)
        task = f.send(f.devices[0], 0.5)
        assert task["privacy"]["local_noise_multiplier"] == 2.0
        f.step()
        # Longer than the clip norm, as noise is: what an honest device may send is not cut.
        np.testing.assert_allclose(flat(f.model().values) - before, 0.5, rtol=1e-5)
        ledger = Ledger(config.privacy)
        ledger.record()
        assert f.version().privacy["epsilon"] == pytest.approx(ledger.epsilon())
        assert len(entries(f)) == 1


def test_robust_rules_bear_an_attacker(tmp_path):
    for rule in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound"):
        config = federation_config(
            rounds={"cohort": 9, "minimum": 7}, rule={"name": rule}, strategy={"name": "fedavg"}
        )
        with small(tmp_path / rule, config, devices=9) as f:
            before = flat(f.model().values)
            values = 0.1 + 0.01 * np.random.default_rng(0).standard_normal((9, 10))
            values[4] = -1e5
            for i, (device, value) in enumerate(zip(f.devices, values, strict=True)):
                f.send(device, value, examples=2**31 - 1 if i == 4 else 10)  # it also lies about its data
            f.step()
            assert f.round(0).state == "merged", f.round(0).error
            assert np.abs(flat(f.model().values) - before - 0.1).max() < 0.1, rule


def test_example_cap_bounds_what_a_device_counts_without_noise_too(tmp_path):
    config = federation_config(privacy={"example_cap": 20})
    with small(tmp_path, config, devices=3) as f:
        before = flat(f.model().values)
        for device, value, examples in zip(f.devices, (0.1, 0.2, 0.4), (10, 10, 2**31 - 1), strict=True):
            f.send(device, value, examples=examples)
        f.step()
        np.testing.assert_allclose(flat(f.model().values) - before, (0.1 + 0.2 + 2 * 0.4) / 4, rtol=1e-5)
