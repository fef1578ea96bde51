"""Rounds from opening to a new version."""

from __future__ import annotations

import numpy as np
from sqlalchemy import select

from pfl_server.storage.models import AuditEntry, Federation
from tests.server.basics import ADMIN_TOKEN
from tests.server.testbed import ONE, federation_config, small


def test_a_round_of_updates_becomes_a_version(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        before = f.model()
        for device, value, examples in zip(f.devices, (0.1, 0.2, 0.4), (10, 20, 10), strict=True):
            f.send(device, value, examples=examples)
        f.step()
        after, version = f.model(), f.version()
        assert (version.number, version.round, version.parent) == (1, 0, 0)
        for name in ("a", "b"):
            np.testing.assert_allclose(after.values[name] - before.values[name], 0.225, rtol=1e-5)
        assert np.array_equal(after.values["p"], before.values["p"])
        assert after.round == 1
        merged = f.round(0)
        assert (merged.state, merged.result) == ("merged", 1)
        assert f.round().number == 1
        assert list(f.services.blobs.keys("updates/")) == []


#: A server whose steps overflow.
DIVERGING = {"name": "fedavgm", "parameters": {"lr": 1e38, "momentum": 0.0}}


def test_updates_count_by_their_examples_whatever_order_they_come_in(tmp_path):
    found = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        with small(tmp_path / str(number), federation_config(), devices=3) as f:
            values = np.random.default_rng(1).standard_normal((3, 10)).astype(np.float32)
            for i in order:
                f.send(f.devices[i], values[i], examples=i + 1)
            f.step()
            found.append({n: v.tobytes() for n, v in f.model().values.items()})
    assert found[0] == found[1]


def test_a_deadline_merges_what_is_there_if_it_is_enough(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        f.send(f.devices[0])
        f.send(f.devices[1])
        f.step()
        assert f.round().state == "open"
        f.clock.pass_time(101)
        f.step()
        assert (f.round(0).state, f.round(0).summary["updates"]) == ("merged", 2)


def test_a_round_with_too_few_updates_is_abandoned_and_its_updates_go(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        task, open_ = f.send(f.devices[0]), f.task(f.devices[1])
        f.clock.pass_time(101)
        f.step()
        assert f.round(0).state == "abandoned"
        assert "fewer than 2 updates" in f.round(0).error
        assert f.assignment(task).state == "discarded"
        assert f.assignment(open_).state == "expired"
        assert list(f.services.blobs.keys("updates/")) == []
        assert f.version().number == 0
        assert f.task(f.devices[0])["round"] == 1


def test_a_merge_that_fails_leaves_the_model_and_goes_on_with_the_next_round(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE, strategy=DIVERGING), devices=1) as f:
        task = f.send(f.devices[0], 1e5)
        f.step()
        failed = f.round(0)
        assert (failed.state, failed.result, f.version().number) == ("failed", None, 0)
        assert "NaN or infinite" in failed.error
        assert f.assignment(task).state == "discarded"
        assert list(f.services.blobs.keys("updates/")) == []
        assert f.task(f.devices[0])["round"] == 1
        assert f.federation().state == "running"
        status = f.client.get("/v1/admin/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()
        assert status["problems"] == [{"code": "merge-failed", "count": 1}]


def test_three_failures_in_a_row_pause_the_federation(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE, strategy=DIVERGING), devices=1) as f:
        for value in (1e5, 1e5, 0.0, 1e5, 1e5, 1e5):
            assert f.federation().state == "running"
            f.send(f.devices[0], value)
            f.step()
        assert f.federation().state == "paused"
        with f.services.database.read() as session:
            entry = session.scalars(select(AuditEntry)).one()
        assert (entry.actor, entry.action) == ("aggregator", "pause")
        assert "3 rounds in a row failed" in entry.detail["note"]


def test_an_update_whose_file_is_gone_or_damaged_fails_its_round(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        task = f.send(f.devices[0])
        f.services.blobs.delete(f.assignment(task).blob)
        f.step()
        assert (f.round(0).state, "nothing under" in f.round(0).error) == ("failed", True)
        task = f.send(f.devices[0])
        f.services.blobs.put(f.assignment(task).blob, b"short")
        f.step()
        assert (f.round(1).state, "5 bytes" in f.round(1).error) == ("failed", True)


def test_updates_are_clipped_whatever_devices_say(tmp_path):
    config = federation_config(rounds=ONE, privacy={"clip_norm": 0.5})
    with small(tmp_path, config, devices=1) as f:
        before = f.model().values
        task = f.send(f.devices[0], 100.0, clipped=True)
        assert task["privacy"]["clip_norm"] == 0.5
        f.step()
        after = f.model().values
        moved = np.concatenate([(after[n] - before[n]).reshape(-1) for n in ("a", "b")])
        assert 0.4999 < float(np.linalg.norm(moved.astype(np.float64))) <= 0.5 * (1 + 1e-6)
        assert f.round(0).summary["clipped"] == 1.0


def test_scores_tell_the_update_that_is_unlike_the_others(tmp_path):
    with small(tmp_path, federation_config(rounds={"cohort": 8}), devices=8) as f:
        values = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, -1.0]
        tasks = [f.send(device, value) for device, value in zip(f.devices, values, strict=True)]
        f.step()
        scores = [f.assignment(task).score for task in tasks]
        assert scores[-1] > 3 * max(scores[:-1])


def test_a_model_that_was_rolled_back_meanwhile_is_not_merged_into(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        f.send(f.devices[0])
        f.step()
        f.send(f.devices[0])
        with f.services.database.write() as session:
            session.get_one(Federation, 1).version = 0
        f.step()
        assert (f.round(1).state, f.federation().version) == ("abandoned", 0)
