"""Buffered asynchronous training: updates of several versions in one merge, weighted by their staleness."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import update

from pfl_server.rounds import check_in
from pfl_server.rounds.lifecycle import close_due
from pfl_server.storage.models import Assignment
from tests.server.testbed import federation_config, small, update_of


def config(**rounds):
    base = {"mode": "buffered", "cohort": 2, "minimum": 1, "over_selection": 3.0, "max_staleness": 1}
    return federation_config(rounds=base | rounds)


def merge(f, *devices):
    for device in devices:
        f.send(device)
    f.step()


def test_updates_of_an_older_version_are_merged_with_less_weight(tmp_path):
    with small(tmp_path, config(staleness_exponent=0.5, cohort=3), devices=6) as f:
        slow = f.task(f.devices[0])
        merge(f, *f.devices[1:4])
        assert f.version().number == 1
        before = f.model().values["a"].copy()
        assert f.put(f.devices[0], slow, update_of(slow, 1.0)).status_code == 200
        mine = f.assignment(slow)
        assert (mine.round, mine.base, mine.state) == (1, 0, "accepted")
        f.send(f.devices[4], 0.0)
        f.send(f.devices[5], 0.0)
        f.step()
        weight = 2**-0.5
        np.testing.assert_allclose(f.model().values["a"] - before, weight / (2 + weight), rtol=1e-5)
        mine = f.assignment(slow)
        assert (mine.state, mine.staleness) == ("merged", 1)
        assert mine.weight == pytest.approx(weight / (2 + weight))
        assert f.round(1).summary["mean_staleness"] == pytest.approx(1 / 3)


def test_updates_that_are_too_stale_are_refused(tmp_path):
    with small(tmp_path, config(), devices=5) as f:
        slow = f.task(f.devices[0])
        merge(f, *f.devices[1:3])
        merge(f, *f.devices[3:5])
        answer = f.put(f.devices[0], slow, update_of(slow))
        assert (answer.status_code, answer.json()["code"]) == (410, "too-stale")


def test_between_two_buffers_an_upload_waits_and_goes_on(tmp_path):
    with small(tmp_path, config(), devices=3) as f:
        slow = f.task(f.devices[0])
        for device in f.devices[1:]:
            f.send(device)
        close_due(f.services)
        data = update_of(slow)
        answer = f.put(f.devices[0], slow, data)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"]
        f.step()
        assert f.put(f.devices[0], slow, data).status_code == 200
        assert f.assignment(slow).round == 1


def test_a_buffer_has_no_deadline_and_tasks_outlive_it(tmp_path):
    with small(tmp_path, config(), devices=3) as f:
        slow = f.task(f.devices[0])
        assert slow["expires_in_s"] == 100
        f.clock.pass_time(99)
        merge(f, *f.devices[1:])
        assert f.assignment(slow).state == "assigned"
        assert f.task(f.devices[0])["id"] == slow["id"]
        f.clock.pass_time(2)
        f.step()
        assert f.assignment(slow).state == "expired"
        assert f.round(0).state == "merged"
        assert f.check_in(f.devices[0])["reason"] == "too_soon"  # it rests, as it did not answer
        f.clock.pass_time(100)
        f.step()
        assert f.task(f.devices[0])["version"] == 1


def test_a_device_with_an_update_in_the_buffer_waits(tmp_path):
    with small(tmp_path, config(), devices=2) as f:
        f.send(f.devices[0])
        assert f.check_in(f.devices[0])["reason"] == "too_soon"


def test_uploads_after_the_last_buffer_are_refused(tmp_path):
    with small(tmp_path, config(total=1), devices=3) as f:
        slow = f.task(f.devices[0])
        merge(f, *f.devices[1:])
        assert f.federation().state == "finished"
        answer = f.put(f.devices[0], slow, update_of(slow))
        assert (answer.status_code, answer.json()["code"]) == (410, "round-closed")


def test_an_update_that_is_accepted_while_its_task_is_given_anew_stays(tmp_path, monkeypatch):
    with small(tmp_path, config(), devices=3) as f:
        slow = f.task(f.devices[0])
        merge(f, *f.devices[1:])
        f.clock.pass_time(200)  # its time is over, and it lies in a round before the open one
        original, read = check_in._of, []

        def accepted_meanwhile(services, session, number, device, body, sets):
            def once(device_id):
                monkeypatch.setattr(check_in, "_of", original)
                read.extend(session.scalars(original(device_id)))
                assert [one.state for one in read] == ["assigned"]
                session.execute(
                    update(Assignment)
                    .where(Assignment.id == slow["id"])
                    .values(state="accepted", round=number)
                    .execution_options(synchronize_session=False)
                )
                return original(device_id)  # of which the session gives what it read before

            monkeypatch.setattr(check_in, "_of", once)
            return assign(services, session, number, device, body, sets)

        assign = check_in._assign
        monkeypatch.setattr(check_in, "_assign", accepted_meanwhile)
        assert f.check_in(f.devices[0])["reason"] == "too_soon"
        assert f.assignment(slow).state == "accepted"
