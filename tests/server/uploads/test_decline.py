"""What devices say beside their updates, and the newest version."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from pfl_mobile.bundle import tensors_from_bytes
from pfl_server.reports.quality import history
from pfl_server.storage.models import EvaluationSum, Refusal
from tests.server.testbed import federation_config, small


def metric(total, weight=10.0):
    return {"sum": total, "weight": weight}


def report(f, device, task, **changes):
    body = {
        "global": {"loss": metric(20.0), "accuracy": metric(4.0)},
        "personalized": {"loss": metric(15.0), "accuracy": metric(4.0)},
        "adopted": True,
    } | changes
    return f.client.post(f"/v1/tasks/{task['id']}/evaluation", json=body, headers=device)


def sums(f):
    with f.services.database.read() as session:
        return {(s.kind, s.group, s.metric): s for s in session.scalars(select(EvaluationSum))}


def test_reports_are_added_up_once_for_all_and_for_the_group(tmp_path):
    with small(tmp_path, federation_config(groups=["north"])) as f:
        device = f.enrol(1, "north")[0]
        task = f.task(device)
        for _ in range(2):
            assert report(f, device, task).status_code == 204
        found = sums(f)
        assert {key[:2] for key in found} == {
            (k, g) for k in ("global", "personalized") for g in ("", "north")
        }
        loss = found["personalized", "north", "loss"]
        assert (loss.version, loss.total, loss.weight, loss.devices) == (0, 15.0, 10.0, 1)
        assert (loss.better, loss.worse, loss.adopted) == (1, 0, 1)
        assert found["personalized", "", "accuracy"].better == 0
        assert f.assignment(task).evaluated


def test_a_report_may_come_when_the_task_is_over(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        task = f.send(f.devices[0])
        f.clock.pass_time(1000)
        f.step()
        assert f.assignment(task).state == "discarded"
        assert report(f, f.devices[0], task).status_code == 204
        assert sums(f)["global", "", "loss"].devices == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"global": {"loss": metric(1.0)}},
        {"global": {}, "personalized": {}},
        {"global": {"secret": metric(1.0)}, "personalized": {"secret": metric(1.0)}},
        {"global": {"loss": metric(1e300)}, "personalized": {"loss": metric(1.0)}},
        {"global": {"loss": metric(1.0)}, "personalized": {"loss": metric(1.1e5)}},
        {"global": {"accuracy": metric(1.0)}, "personalized": {"accuracy": metric(11.0)}},
        {"global": {"accuracy": metric(-1.0)}, "personalized": {"accuracy": metric(1.0)}},
    ],
    ids=[
        "not the same metrics",
        "none",
        "not the bundle's",
        "absurd",
        "implausible",
        "share above 1",
        "share below 0",
    ],
)
def test_reports_that_cannot_be_are_refused_and_counted(tmp_path, changes):
    with small(tmp_path, federation_config(), devices=1) as f:
        task = f.task(f.devices[0])
        answer = report(f, f.devices[0], task, **changes)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-report")
        assert sums(f) == {}
        f.services.refusals.flush()
        with f.services.database.read() as session:
            assert session.scalars(select(Refusal.code)).all() == ["bad-report"]


def test_one_device_counts_for_a_bounded_number_of_labels(tmp_path):
    with small(tmp_path, federation_config(evaluation={"max_weight": 50.0}), devices=2) as f:
        honest, greedy = (f.task(device) for device in f.devices)
        assert report(f, f.devices[0], honest).status_code == 204
        huge = {"loss": metric(8e9, 1e9), "accuracy": metric(1e9, 1e9)}
        assert report(f, f.devices[1], greedy, **{"global": huge, "personalized": huge}).status_code == 204
        found = sums(f)["global", "", "loss"]
        assert (found.total, found.weight, found.devices) == (20.0 + 8.0 * 50.0, 60.0, 2)
        assert sums(f)["global", "", "accuracy"].total == 4.0 + 50.0


def test_a_task_that_was_declined_is_over(tmp_path):
    with small(tmp_path, federation_config(), devices=2) as f:
        task, other = (f.task(device) for device in f.devices)

        def decline(device, of, reason):
            return f.client.post(f"/v1/tasks/{of['id']}/decline", json={"reason": reason}, headers=device)

        assert decline(f.devices[0], task, "privacy").status_code == 204
        assert (f.assignment(task).state, f.assignment(task).reason) == ("declined", "privacy")
        assert f.client.head(task["update_url"], headers=f.devices[0]).status_code == 410
        assert decline(f.devices[1], task, "privacy").json()["code"] == "unknown-task"
        f.send(f.devices[1])
        assert decline(f.devices[1], other, "storage").json()["code"] == "already-uploaded"


def test_the_newest_version_is_told_with_its_values(tmp_path):
    config = federation_config(rounds={"cohort": 1, "minimum": 1})
    with small(tmp_path, config, devices=1) as f:
        f.send(f.devices[0])
        f.step()
        assert f.client.get("/v1/versions/latest").status_code == 401
        for headers in (f.devices[0], {"Authorization": f"Bearer {f.services.admin_token}"}):
            found = f.client.get("/v1/versions/latest", headers=headers).json()
        assert (found["version"], found["round"], found["created"]) == (1, 0, f.clock())
        assert found["privacy"] == f.version().privacy
        values = tensors_from_bytes(
            f.client.get(found["sets"]["global"]["url"], headers=f.devices[0]).content
        )
        assert {n: v.tolist() for n, v in values.items()} == {
            n: f.model().values[n].tolist() for n in ("a", "b")
        }


@pytest.mark.parametrize("weight", [0, -1, 1e-320, 1e-9, 0.5, 1.5, 1 + 1e-9, 1e10, "many", None])
@pytest.mark.parametrize("kind", ["global", "personalized"])
def test_labels_are_whole_and_at_least_one(tmp_path, weight, kind):
    """Reports of next to no labels would leave a figure of three devices to one of them."""
    with small(tmp_path, federation_config(), devices=1) as f:
        task = f.task(f.devices[0])
        found = {"global": {"loss": metric(1.0)}, "personalized": {"loss": metric(1.0)}}
        found[kind] = {"loss": {"sum": 0.0, "weight": weight}}
        answer = report(f, f.devices[0], task, **found)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
        assert sums(f) == {}


@pytest.mark.parametrize("groups", [("north", "south"), ()])
def test_figures_that_one_device_decides_are_hidden(tmp_path, groups):
    """Of three devices two may know their own reports, or have hardly any labels."""
    config = federation_config(groups=groups, rounds={"cohort": 6, "minimum": 1})
    with small(tmp_path, config) as f:
        for i in range(6):
            f.enrol(1, group=groups[i % 2] if groups else "")
        weights = [40.0, 200.0, 40.0, 1.0, 40.0, 1.0]  # of the south one has 200 of 202
        for device, weight in zip(f.devices, weights, strict=True):
            task = f.send(device)
            found = {kind: {"accuracy": metric(0.5 * weight, weight)} for kind in ("global", "personalized")}
            assert report(f, device, task, **found).status_code == 204
        f.step()
        with f.services.database.read() as session:
            now = history(session, "accuracy", config.groups, 3)
        assert now is not None
        first = now.versions[0]
        assert (first.shared, first.personalized, first.groups) == (None, None, ())  # 200 of 322
        with f.services.database.write() as session:  # as with 40 labels in place of 200
            for row in session.query(EvaluationSum):
                row.weight -= 160.0 if row.group in ("", "south") else 0.0
                row.total -= 80.0 if row.group in ("", "south") else 0.0
                row.largest = 40.0
        with f.services.database.read() as session:
            now = history(session, "accuracy", config.groups, 3)
        first = now.versions[0]
        assert first.personalized is not None
        # the south is one device's for more than half, and would follow from the total less the north
        assert [g.name for g in first.groups] == []
        assert first.hidden == len(groups)
