"""How rounds open, close and end without a merge."""

from __future__ import annotations

from pfl_server.rounds.selection import Draw
from pfl_server.storage.models import EnrolledDevice
from tests.server.testbed import FIXED, POISSON, federation_config, small, update_of


def test_training_ends_after_its_rounds(tmp_path):
    with small(tmp_path, federation_config(rounds={"total": 2, "cohort": 1, "minimum": 1}), devices=2) as f:
        for device in f.devices:
            f.send(device)
            f.step()
        assert f.federation().state == "finished"
        assert f.check_in(f.devices[0])["status"] == "done"


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
            indexes = [d.index for d in session.query(EnrolledDevice) if draw.chosen(d.id, d.index)]
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
