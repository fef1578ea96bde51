"""Who gets a task, which one, and what the others are told."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.schema import Plan
from pfl_server.rounds.selection import Draw
from pfl_server.storage.models import Device, Federation
from tests.server.basics import ADMIN_TOKEN
from tests.server.testbed import federation_config, small, update_of

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
GAUSSIAN = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0}
POISSON = GAUSSIAN | {"participation": {"sampling": "poisson"}}
FIXED = GAUSSIAN | {"participation": {"sampling": "fixed"}}


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


def test_training_ends_after_its_rounds(tmp_path):
    with small(tmp_path, federation_config(rounds={"total": 2, "cohort": 1, "minimum": 1}), devices=2) as f:
        for device in f.devices:
            f.send(device)
            f.step()
        assert f.federation().state == "finished"
        assert f.check_in(f.devices[0])["status"] == "done"


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


def test_a_task_expires_and_its_device_gets_one_of_a_later_round(tmp_path):
    with small(tmp_path, federation_config(rounds={"task_s": 30.0}), devices=1) as f:
        task = f.task(f.devices[0])
        f.clock.pass_time(31)
        answer = f.put(f.devices[0], task, update_of(task))
        assert (answer.status_code, answer.json()["code"]) == (410, "task-expired")
        assert f.check_in(f.devices[0])["reason"] == "too_soon"
        f.step()
        assert f.assignment(task).state == "expired"
        f.clock.pass_time(70)
        f.step()
        assert f.task(f.devices[0])["round"] == 1


# -- draws


@given(st.floats(0, 1), st.integers(0, 50))
def test_a_draw_survives_being_written(rate, index):
    draw = Draw.poisson(rate)
    assert Draw.parse(draw.text()) == draw
    assert len(draw.text()) <= 100
    assert draw.chosen("ab" * 16, index) == Draw.parse(draw.text()).chosen("ab" * 16, index)


def test_coins_fall_with_their_probability():
    draws = [Draw.poisson(0.3) for _ in range(20)]
    found = sum(draw.chosen(f"{i:032x}", i) for draw in draws for i in range(1000))
    assert abs(found / 20_000 - 0.3) < 6 * (0.3 * 0.7 / 20_000) ** 0.5
    assert all(Draw.poisson(1.0).chosen(f"{i:032x}", i) for i in range(100))
    assert not any(Draw.poisson(0.0).chosen(f"{i:032x}", i) for i in range(100))


@given(st.integers(0, 30), st.integers(0, 40))
def test_a_fixed_draw_has_just_so_many_devices(count, size):
    devices = [(f"{i:032x}", i) for i in range(size)]
    draw = Draw.fixed(devices, count, size)
    assert sum(draw.chosen(*device) for device in devices) == min(count, size)
    assert not draw.chosen("f" * 32, size)  # enrolled later


def test_all_subsets_are_drawn_alike():
    devices = [(f"{i:032x}", i) for i in range(4)]
    subsets = Counter(
        tuple(index for device, index in devices if draw.chosen(device, index))
        for draw in (Draw.fixed(devices, 2, 4) for _ in range(3000))
    )
    assert len(subsets) == 6
    assert all(abs(count - 500) < 6 * 500**0.5 for count in subsets.values())


def test_a_poisson_round_takes_who_is_drawn_and_ends_at_its_deadline(tmp_path):
    privacy = POISSON | {"population": 20, "cohort": 10, "delta": 1e-3}
    rounds = {"cohort": 10, "minimum": 1, "total": 10}
    with small(tmp_path, federation_config(rounds=rounds, privacy=privacy), devices=20) as f:
        f.step()
        draw = Draw.parse(f.round().selection)
        with f.services.database.read() as session:
            drawn = {d.index for d in session.query(Device) if draw.chosen(d.id, d.index)}
        for index, device in enumerate(f.devices):
            if index in drawn:
                f.send(device)
            else:
                assert f.check_in(device)["reason"] == "not_selected"
        for _ in range(4):  # also once all who were drawn have answered
            f.step()
            assert f.round(0).state == "open"
            f.clock.pass_time(24)
        f.clock.pass_time(5)
        f.step()
        assert f.round(0).state == ("merged" if drawn else "abandoned")


def test_a_fixed_round_waits_until_the_population_is_there(tmp_path):
    privacy = FIXED | {"population": 6, "cohort": 3}
    with small(tmp_path, federation_config(privacy=privacy), devices=5) as f:
        f.step()
        assert f.check_in(f.devices[0])["reason"] == "between_rounds"
        f.enrol(1)
        f.step()
        answers = Counter(f.check_in(device)["status"] for device in f.devices)
        assert answers == {"task": 3, "wait": 3}
        f.enrol(1)  # who comes later was not drawn, as the draw is over
        assert f.check_in(f.devices[-1])["reason"] == "not_selected"


# -- rounds that nobody can fill any more


def decline(f, *devices):
    """These devices get their task, and decline it."""
    for device in devices:
        url = f"/v1/tasks/{f.task(device)['id']}/decline"
        assert f.client.post(url, json={"reason": "no_examples"}, headers=device).status_code == 204


def after_a_while(f, seconds=60):
    """The state of the first round when devices were told to ask again."""
    f.step()
    assert f.round(0).state == "open"  # not at once, or who declines would be asked again and again
    f.clock.pass_time(seconds)
    f.step()
    return f.round(0).state


def test_a_round_ends_before_its_deadline_when_too_few_are_left_for_it(tmp_path):
    with small(tmp_path, federation_config(), devices=2) as f:
        decline(f, f.devices[0])
        assert after_a_while(f) == "abandoned"
        assert "fewer than 2 updates" in f.round(0).error
        assert f.clock() < f.round(0).deadline
        assert f.round().number == 1
        assert f.task(f.devices[0])["round"] == 1


def test_nobody_coming_is_no_reason_to_end_a_round(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        assert after_a_while(f) == "open"


def test_a_round_goes_on_while_others_may_take_the_places(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        decline(f, f.devices[0])
        f.send(f.devices[1])
        assert after_a_while(f) == "open"
        task = f.task(f.devices[2])
        f.step()
        assert f.round(0).state == "open"
        f.put(f.devices[2], task, update_of(task))
        f.clock.pass_time(40)
        f.step()
        assert f.round(0).state == "merged"


def test_devices_that_rest_or_are_gone_are_not_waited_for(tmp_path):
    rounds = {"min_separation": 2, "cohort": 2, "task_s": 50.0}
    with small(tmp_path, federation_config(rounds=rounds), devices=5) as f:
        for device in f.devices[:2]:
            f.send(device)
        f.step()
        assert f.client.delete("/v1/devices/me", headers=f.devices[3]).status_code == 204
        f.task(f.devices[2])
        f.clock.pass_time(60)  # its task is over
        f.step()
        assert (f.round(1).state, f.round(1).number) == ("abandoned", 1)


def test_a_draw_without_replacement_ends_at_its_deadline_whatever_those_drawn_answer(tmp_path):
    privacy = FIXED | {"population": 5, "cohort": 4}
    rounds = {"cohort": 4, "minimum": 3}
    with small(tmp_path, federation_config(rounds=rounds, privacy=privacy), devices=5) as f:
        f.step()
        draw = Draw.parse(f.round().selection)
        with f.services.database.read() as session:
            indexes = [d.index for d in session.query(Device) if draw.chosen(d.id, d.index)]
        drawn = [f.devices[index] for index in indexes]
        decline(f, drawn[0])
        assert after_a_while(f) == "open"
        decline(f, drawn[1])
        other = next(device for index, device in enumerate(f.devices) if index not in indexes)
        assert f.check_in(other)["reason"] == "not_selected"  # who was not drawn takes nobody's place
        f.step()
        assert f.round(0).state == "open"
        f.clock.pass_time(41)
        f.step()
        assert f.round(0).state == "abandoned"


def test_a_poisson_round_does_not_tell_how_many_were_drawn_by_ending_early(tmp_path):
    privacy = POISSON | {"population": 4, "cohort": 4}  # so that all are drawn
    rounds = {"cohort": 4, "minimum": 2, "total": 10}
    with small(tmp_path, federation_config(rounds=rounds, privacy=privacy), devices=4) as f:
        f.step()
        decline(f, *f.devices[:3])
        assert after_a_while(f) == "open"
        decline(f, f.devices[3])
        f.step()
        assert f.round(0).state == "open"
        f.clock.pass_time(41)
        f.step()
        assert f.round(0).state == "abandoned"


# -- who is counted and drawn where privacy rests on a secret draw


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_devices_that_nobody_vouches_for_are_neither_counted_nor_drawn(tmp_path, sampling):
    privacy = GAUSSIAN | {"participation": {"sampling": sampling}, "population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    config = config.model_copy(update={"open_sampling": False})
    with small(tmp_path, config, settings={"enrolment": "token"}) as f:
        token = f.client.post("/v1/admin/tokens", json={}, headers=ADMIN).json()["token"]
        f.enrol(3, token=token)
        with f.services.database.write() as session:  # as from the time when enrolment was open
            session.execute(update(Device).values(vouched=Device.index > 0))
        f.step()
        assert f.check_in(f.devices[0])["status"] == "wait"
        if sampling == "fixed":
            assert (
                f.check_in(f.devices[1])["reason"] == "between_rounds"
            )  # three are too few for the population
            f.enrol(2, token=token)
            f.step()
        assert f.check_in(f.devices[0])["reason"] == "not_selected"
        assert {f.check_in(device)["status"] for device in f.devices[1:]} == {"task"}


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_guarantee_by_sampling_goes_with_no_open_enrolment_unless_that_is_said(tmp_path, sampling):
    privacy = GAUSSIAN | {"participation": {"sampling": sampling}, "population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    strict = config.model_copy(update={"open_sampling": False})
    with pytest.raises(ConfigError, match="enrolment is open"), small(tmp_path, strict):
        pass
    with small(tmp_path, config) as f:  # nothing was decided by the start that failed
        said = f.version().privacy
    assert any("open_sampling" in sentence for sentence in said["assumptions"])
    assert said["epsilon_known_round"] > 0
    assert (said["sampling"], said["sampling_rate"]) == (sampling, 1.0)


@pytest.mark.parametrize("what", ["dashboard", "metrics"])
def test_nobody_but_admins_sees_how_many_take_part_in_a_sampled_round(tmp_path, what):
    privacy = POISSON | {"population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    with pytest.raises(ConfigError, match=what), small(tmp_path, config, settings={what: "public"}):
        pass
