"""Updates become part of their round, unless something happened meanwhile."""

from __future__ import annotations

import threading

import pytest

from pfl_server.storage.models import EnrolledDevice, Round
from tests.server.testbed import code, federation_config, small, update_of


@pytest.fixture
def f(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as found:
        yield found


def test_late_updates_are_refused(f):
    tasks = [f.task(device) for device in f.devices]
    for device, task in zip(f.devices[:2], tasks, strict=False):
        f.put(device, task, update_of(task))
    f.clock.pass_time(101)
    f.step()
    assert f.round(0).state == "merged"
    assert code(f.put(f.devices[2], tasks[2], update_of(tasks[2]))) == "task-expired"


def test_an_update_in_a_round_that_closed_meanwhile_is_refused(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:-4], Upload_Length=str(len(data)))
    with f.services.database.write() as session:
        session.get_one(Round, 0).state = "closing"
    assert code(f.put(f.devices[0], task, data[-4:], Upload_Offset=str(len(data) - 4))) == "round-closed"


def test_a_revoked_device_is_refused(f):
    task = f.task(f.devices[0])
    with f.services.database.write() as session:
        session.query(EnrolledDevice).update({"state": "revoked"})
    assert code(f.put(f.devices[0], task, update_of(task))) == "device-revoked"


def test_uploads_at_once_are_each_accepted_once(tmp_path):
    config = federation_config(rounds={"cohort": 30, "over_selection": 1.0})
    with small(tmp_path, config, devices=30) as f:
        tasks = [f.task(device) for device in f.devices]
        answers: list[int] = []

        def send(device, task):
            answers.append(f.put(device, task, update_of(task)).status_code)

        pairs = list(zip(f.devices, tasks, strict=True)) * 2
        threads = [threading.Thread(target=send, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 503}
        f.step()
        assert f.round(0).state == "merged"
        assert f.round(0).summary["updates"] == 30


@pytest.mark.parametrize("head", [{"examples": 2**31}, {"steps": 2**40}])
def test_numbers_that_no_device_has_are_refused(f, head):
    task = f.task(f.devices[0])
    assert code(f.put(f.devices[0], task, update_of(task, **head))) == "bad-report"
