"""Rounds on both databases, with several processes' worth of threads."""

from __future__ import annotations

import threading
from collections import Counter

from sqlalchemy import select

from pfl_server.rounds.coordinator import Coordinator
from pfl_server.storage.models import Assignment, EvaluationSum
from tests.server.testbed import federation_config, small, update_of


def at_once(*jobs):
    """Run functions in threads of their own; what they raise is raised here."""
    failed: list[BaseException] = []

    def run(job):
        try:
            job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_a_round_on_either_database(tmp_path, database_url):
    with small(tmp_path, federation_config(), devices=3, database=database_url) as f:
        for device in f.devices:
            f.send(device)
        f.step()
        assert f.round(0).state == "merged", f.round(0).error
        assert f.version().number == 1


def test_devices_that_come_at_once_get_one_task_each_and_no_more_than_there_are(tmp_path, database_url):
    with small(tmp_path, federation_config(rounds={"cohort": 5}), devices=9, database=database_url) as f:
        answers: list[str] = []

        def ask(device):
            found = f.check_in(device)
            answers.append(found["task"]["id"] if found["status"] == "task" else found["reason"])

        at_once(*(lambda d=device: ask(d) for device in f.devices for _ in range(2)))
        with f.services.database.read() as session:
            found = session.scalars(select(Assignment)).all()
        assert len(found) == 5
        assert len({a.device for a in found}) == 5
        # Who had a task when its second request came got it again, or was told to wait when both came together.
        assert set(answers) <= {a.id for a in found} | {"full", "too_soon"}


def test_uploads_and_the_close_of_their_round_leave_none_between(tmp_path, database_url):
    """Everything that was accepted is merged, whoever closes the round when."""
    config = federation_config(rounds={"cohort": 6, "minimum": 1, "over_selection": 2.0})
    with small(tmp_path, config, devices=12, database=database_url) as f:
        tasks = [f.task(device) for device in f.devices]
        codes: list[int] = []

        def send(device, task):
            codes.append(f.put(device, task, update_of(task)).status_code)

        def close():
            for _ in range(20):
                f.step()

        at_once(close, *(lambda d=d, t=t: send(d, t) for d, t in zip(f.devices, tasks, strict=True)))
        f.step()
        with f.services.database.read() as session:
            states = Counter(session.scalars(select(Assignment.state).where(Assignment.round == 0)))
        assert set(codes) <= {200, 410}
        assert states["merged"] == codes.count(200) >= 6
        assert f.round(0).summary["updates"] == states["merged"]


def test_two_coordinators_merge_a_round_once(tmp_path, database_url):
    config = federation_config(rounds={"cohort": 1, "minimum": 1, "total": 5})
    with small(tmp_path, config, devices=1, database=database_url) as f:
        others = [Coordinator(f.services) for _ in range(2)]
        for number in range(5):
            f.send(f.devices[0])
            f.clock.pass_time(60)
            at_once(f.step, *(other.step for other in others))
            f.clock.pass_time(60)
            f.step()
            assert f.version().number == number + 1
        assert f.federation().state == "finished"


def test_reports_that_come_at_once_are_all_counted(tmp_path, database_url):
    with small(tmp_path, federation_config(rounds={"cohort": 6}), devices=6, database=database_url) as f:
        tasks = [f.task(device) for device in f.devices]
        metric = {"loss": {"sum": 2.0, "weight": 4.0}, "accuracy": {"sum": 1.0, "weight": 4.0}}
        better = {"loss": {"sum": 1.0, "weight": 4.0}, "accuracy": {"sum": 1.0, "weight": 4.0}}
        body = {"global": metric, "personalized": better, "adopted": True}

        def report(device, task):
            for _ in range(2):
                answer = f.client.post(f"/v1/tasks/{task['id']}/evaluation", json=body, headers=device)
                assert answer.status_code == 204, answer.text

        at_once(*(lambda d=d, t=t: report(d, t) for d, t in zip(f.devices, tasks, strict=True)))
        with f.services.database.read() as session:
            sums = {(s.kind, s.metric): s for s in session.scalars(select(EvaluationSum))}
        assert len(sums) == 4
        assert (sums["global", "loss"].total, sums["global", "loss"].devices) == (12.0, 6)
        own = sums["personalized", "loss"]
        assert (own.better, own.worse, own.adopted) == (6, 0, 6)
        assert sums["personalized", "accuracy"].better == 0
