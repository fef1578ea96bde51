"""Who gets a task, which one, and what the others are told."""

from __future__ import annotations

import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.schema import Plan
from pfl_server.storage.models import Federation
from tests.server.testbed import POISSON, federation_config, small


def test_a_task_says_all_that_a_device_needs(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        task = f.task(f.devices[0])
        assert (task["round"], task["version"], task["reports"]) == (0, 0, [])
        assert task["layout"] == [{"name": "a", "shape": [4]}, {"name": "b", "shape": [2, 3]}]
        assert Plan.model_validate(task["plan"]).seed == f.round().seed
        assert task["expires_in_s"] == 100
        assert task["update_url"] == f"/v1/tasks/{task['id']}/update"
        assert task["privacy"]["mechanism"] == "none"
        answer = f.client.get(task["sets"]["global"]["url"], headers=f.devices[0])
        assert len(answer.content) == task["sets"]["global"]["bytes"]


def test_who_asks_again_gets_the_same_task(tmp_path):
    with small(tmp_path, federation_config(), devices=2) as f:
        first = f.task(f.devices[0])
        f.clock.pass_time(10)
        again = f.task(f.devices[0])
        assert again.pop("expires_in_s") == first.pop("expires_in_s") - 10
        assert again == first
        assert f.task(f.devices[1])["id"] != first["id"]


def test_another_model_is_refused(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        bundle = f.services.runtime.bundle.model_dump() | {"version": "2"}
        answer = f.client.post("/v1/check-in", json={"bundle": bundle, "examples": 9}, headers=f.devices[0])
        assert (answer.status_code, answer.json()["code"]) == (409, "other-bundle")


def test_devices_that_cannot_train_now_wait(tmp_path):
    with small(tmp_path, federation_config(rounds={"min_examples": 5}), devices=1) as f:
        for answer in (f.check_in(f.devices[0], 4), f.check_in(f.devices[0], 9, charging=False)):
            assert (answer["status"], answer["reason"]) == ("wait", "not_eligible")
            assert 48 <= answer["retry_after_s"] <= 72
        assert f.check_in(f.devices[0], 9)["status"] == "task"


def test_a_round_takes_so_many_devices_and_a_place_that_is_given_up_is_given_on(tmp_path):
    with small(tmp_path, federation_config(rounds={"over_selection": 1.3}), devices=6) as f:
        tasks = [f.task(device) for device in f.devices[:4]]  # ceil(3 * 1.3)
        assert f.check_in(f.devices[4])["reason"] == "full"
        url = f"/v1/tasks/{tasks[0]['id']}/decline"
        for _ in range(2):
            assert f.client.post(url, json={"reason": "storage"}, headers=f.devices[0]).status_code == 204
        assert f.assignment(tasks[0]).reason == "storage"
        assert f.check_in(f.devices[0])["reason"] == "too_soon"
        assert f.check_in(f.devices[4])["status"] == "task"


def test_between_rounds_devices_wait(tmp_path):
    with small(
        tmp_path, federation_config(rounds={"pause_s": 50.0, "cohort": 1, "minimum": 1}), devices=2
    ) as f:
        f.send(f.devices[0])
        f.step()
        answer = f.client.post(
            "/v1/check-in",
            json={"bundle": f.services.runtime.bundle.model_dump(), "examples": 9},
            headers=f.devices[1],
        )
        assert answer.json()["reason"] == "between_rounds"
        assert 48 <= int(answer.headers["Retry-After"]) <= 72
        f.clock.pass_time(51)
        f.step()
        assert f.check_in(f.devices[1])["status"] == "task"


def test_a_paused_federation_lets_wait_and_an_ended_one_says_so(tmp_path):
    with small(tmp_path, federation_config(), devices=2) as f:
        task = f.task(f.devices[0])

        def become(state):
            with f.services.database.write() as session:
                session.get_one(Federation, 1).state = state

        become("paused")
        assert f.check_in(f.devices[1])["reason"] == "paused"
        assert f.task(f.devices[0])["id"] == task["id"]
        for state in ("finished", "spent"):
            become(state)
            answer = f.check_in(f.devices[1])
            assert (answer["status"], answer["reason"]) == ("done", state)


def test_a_device_rests_for_so_many_merged_rounds(tmp_path):
    rounds = {"cohort": 1, "minimum": 1, "min_separation": 3}
    with small(tmp_path, federation_config(rounds=rounds), devices=5) as f:
        f.send(f.devices[0])
        f.step()
        for other in f.devices[1:3]:
            assert f.check_in(f.devices[0])["reason"] == "too_soon"
            f.send(other)
            f.step()
        # A round that is abandoned does not count.
        f.clock.pass_time(200)
        f.step()
        assert (f.round(3).state, f.round().number) == ("abandoned", 4)
        assert f.check_in(f.devices[1])["reason"] == "too_soon"
        assert f.check_in(f.devices[0])["status"] == "task"


def test_a_device_takes_part_at_most_so_often(tmp_path):
    privacy = {"max_participations": 2}
    rounds = {"cohort": 1, "minimum": 1}
    with small(tmp_path, federation_config(rounds=rounds, privacy=privacy), devices=1) as f:
        for _ in range(2):
            f.send(f.devices[0])
            f.step()
        assert f.check_in(f.devices[0])["reason"] == "too_soon"


@pytest.mark.parametrize("what", ["dashboard", "metrics"])
def test_nobody_but_admins_sees_how_many_take_part_in_a_sampled_round(tmp_path, what):
    privacy = POISSON | {"population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    with pytest.raises(ConfigError, match=what), small(tmp_path, config, settings={what: "public"}):
        pass
