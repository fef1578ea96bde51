"""Devices that take places and never answer do not keep those that would from training. Time is simulated."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from pfl_mobile.protocol.bodies import CheckedIn, CheckIn, Facts
from pfl_server import places
from pfl_server.federation.config import RoundsConfig
from pfl_server.identity.devices import DeviceIdentity
from pfl_server.places import MOST_REST_S, rest_s, shared_out, source
from pfl_server.rounds import check_in as check_ins
from pfl_server.rounds.check_in import check_in
from pfl_server.storage.models import EnrolledDevice, Federation, Round
from tests.server.conftest import device_of
from tests.server.testbed import Small, federation_config, small, update_of

ROUNDS = {"cohort": 10, "minimum": 4, "over_selection": 1.3, "deadline_s": 600.0, "total": None}


@dataclass
class Crowd:
    """Devices that come when they were told, in simulated time.

    Attributes:
        silent: devices that take tasks and never answer; they ask first whenever they may.
        late: devices that decline at the last moment.
        honest: devices that train for two minutes.
    """

    f: Small
    silent: list[dict[str, str]] = field(default_factory=list)
    late: list[dict[str, str]] = field(default_factory=list)
    honest: list[dict[str, str]] = field(default_factory=list)
    step_s: float = 60.0

    def run(self, seconds: float) -> Counter[str]:
        """Rounds by how they ended."""
        clock, draw, until = self.f.clock, random.Random(1), self.f.clock() + seconds
        next_ = {d["Authorization"]: clock() + draw.uniform(0, 60) for d in self.honest}
        working: dict[str, tuple[float, dict[str, Any]]] = {}
        while clock() < until:
            for device in self.silent + self.late:  # first, whenever they may have a new task
                name = device["Authorization"]
                if name not in working:
                    task = self._ask(device).task
                    if task is not None:
                        working[name] = task.expires, {"id": task.id}
                elif working[name][0] - clock() <= self.step_s:
                    _, held = working.pop(name)
                    if device in self.late:
                        url = f"/v1/tasks/{held['id']}/decline"
                        self.f.client.post(url, json={"reason": "cancelled"}, headers=device)
            for device in draw.sample(self.honest, len(self.honest)):
                name = device["Authorization"]
                if name in working and working[name][0] <= clock():
                    _, held = working.pop(name)
                    self.f.put(device, held, update_of(held))
                    next_[name] = clock() + 60
                elif name not in working and next_[name] <= clock():
                    found = self._ask(device)
                    if found.task is not None:
                        working[name] = clock() + 120, found.task.model_dump(mode="json")
                    else:
                        next_[name] = clock() + (found.retry_after_s or 0)
            self.f.step()
            clock.pass_time(self.step_s)
        with self.f.services.database.read() as session:
            return Counter(session.scalars(select(Round.state)))

    def _ask(self, device: dict[str, str]) -> CheckedIn:
        """A check-in without HTTP, as there are thousands."""
        services = self.f.services
        body = CheckIn(bundle=services.runtime.bundle, examples=10, facts=Facts())
        return check_in(services, DeviceIdentity(device_of(device), 0, ""), body)


@pytest.fixture
def drawn(monkeypatch):
    """The draws of the aggregator are those of a seed: whether a crowd gets through is the same in each run."""
    monkeypatch.setattr(places, "_DRAW", random.Random(1))
    monkeypatch.setattr(check_ins, "random", random.Random(1))


def enrolled_with(f: Small, token: str, count: int) -> list[dict[str, str]]:
    found = f.enrol(count)
    with f.services.database.write() as session:
        for headers in found:
            session.get_one(EnrolledDevice, device_of(headers)).source = source(b"key", "token", token)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", ["silent", "late"])
def test_thirteen_that_never_answer_do_not_stop_thirty_that_do(tmp_path, kind):
    with small(tmp_path, federation_config(rounds=ROUNDS)) as f:
        crowd = Crowd(f, honest=f.enrol(30))
        setattr(crowd, kind, f.enrol(13))
        found = crowd.run(2700 if kind == "silent" else 2100)
        assert found["merged"] >= 3, found


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_two_gangs_in_turns_do_not_either(tmp_path):
    """The second comes when the first rests."""
    with small(tmp_path, federation_config(rounds=ROUNDS)) as f:
        crowd = Crowd(f, silent=f.enrol(13), honest=f.enrol(30))
        crowd.run(700)
        crowd.silent += f.enrol(13)
        assert crowd.run(2400)["merged"] >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_many_enrolments_of_one_token_leave_the_others_their_places(tmp_path):
    with small(tmp_path, federation_config(rounds=ROUNDS)) as f:
        crowd = Crowd(f, silent=enrolled_with(f, "stolen", 40), honest=enrolled_with(f, "good", 12))
        assert crowd.run(2700)["merged"] >= 2


def test_a_rest_grows_lasts_over_a_restart_and_is_forgiven(tmp_path):
    rounds = {"deadline_s": 100.0, "minimum": 2, "cohort": 3, "retry_s": 10.0}
    with small(tmp_path, federation_config(rounds=rounds), devices=3) as f:
        one = f.devices[0]
        rests = []
        for _ in range(3):
            task = f.task(one)
            f.clock.pass_time(task["expires_in_s"] + 1)
            f.step()
            began = f.clock()
            while f.check_in(one)["status"] == "wait":
                f.clock.pass_time(20)
                f.step()
            rests.append(f.clock() - began)
        assert rests == pytest.approx([100, 200, 400], abs=21)
        f.clock.pass_time(101)
        f.step()
    with small(tmp_path, clock=f.clock) as again:
        f = again
        with f.services.database.read() as session:
            assert session.get_one(EnrolledDevice, device_of(one)).lapses == 4
        assert f.check_in(one)["reason"] == "too_soon"
        f.clock.pass_time(1e5)
        f.step()
        f.send(one)
        with f.services.database.read() as session:
            found = session.get_one(EnrolledDevice, device_of(one))
            assert (found.lapses, found.rests_until) == (0, 0.0)


def test_a_prompt_decline_and_a_single_rest_cost_a_device_little(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        task = f.task(f.devices[0])
        f.clock.pass_time(10)
        f.client.post(f"/v1/tasks/{task['id']}/decline", json={"reason": "storage"}, headers=f.devices[0])
        f.clock.pass_time(100)
        f.step()
        assert f.task(f.devices[0])["round"] == 1


def test_who_sends_nonsense_rests(tmp_path):
    with small(tmp_path, federation_config(rounds={"cohort": 1, "minimum": 1}), devices=2) as f:
        task = f.task(f.devices[0])
        assert f.put(f.devices[0], task, update_of(task, 1e9)).status_code == 422
        f.send(f.devices[1])
        f.step()
        assert f.round().number == 1
        assert f.check_in(f.devices[0])["reason"] == "too_soon"


def test_a_clock_set_back_does_not_make_a_rest_longer(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        with f.services.database.write() as session:
            session.get_one(EnrolledDevice, device_of(f.devices[0])).rests_until = (
                f.clock() + 10 * MOST_REST_S
            )
        assert f.check_in(f.devices[0])["status"] == "task"


def test_who_asked_in_vain_comes_first_in_the_next_round(tmp_path):
    rounds = {"cohort": 2, "minimum": 1, "over_selection": 1.0}
    with small(tmp_path, federation_config(rounds=rounds), devices=5) as f:
        for device in f.devices[:2]:
            f.task(device)
        for device in f.devices[2:4]:
            assert f.check_in(device)["reason"] == "full"
        f.send(f.devices[0])
        f.send(f.devices[1])
        f.step()
        assert f.check_in(f.devices[4])["reason"] == "full"  # quick, but the places are kept
        assert f.check_in(f.devices[0])["reason"] == "full"
        assert f.check_in(f.devices[2])["status"] == "task"
        f.clock.pass_time(61)  # the other does not come
        assert f.check_in(f.devices[4])["status"] == "task"
        assert f.check_in(f.devices[3])["reason"] == "full"


def test_one_source_gets_half_at_first_where_there_are_others(tmp_path):
    rounds = {"cohort": 4, "minimum": 1, "over_selection": 1.0}
    with small(tmp_path, federation_config(rounds=rounds)) as f:
        many = enrolled_with(f, "one", 4)
        assert [f.check_in(d)["status"] for d in many] == ["task"] * 4  # alone: all
    with small(tmp_path / "b", federation_config(rounds=rounds)) as f:
        many, few = enrolled_with(f, "one", 4), enrolled_with(f, "other", 1)
        assert [f.check_in(d)["status"] for d in many] == ["task", "task", "wait", "wait"]
        assert f.check_in(few[0])["status"] == "task"
        f.clock.pass_time(60)
        assert f.check_in(many[3])["status"] == "task"
        assert f.check_in(many[2])["reason"] == "full"


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 40), st.integers())
def test_shares_are_equal_as_far_as_devices_go(counts, places, seed):
    by_source = {n: [f"{n}-{i}" for i in range(count)] for n, count in enumerate(counts)}
    chosen = shared_out(by_source, places, random.Random(seed))
    assert len(chosen) == len(set(chosen)) == min(places, sum(counts))
    got = Counter(int(device.split("-")[0]) for device in chosen)
    for n, count in enumerate(counts):
        if got[n] < count:  # who could have had more has no less than others, but one
            assert all(got[n] >= got[other] - 1 for other in range(len(counts)))


def test_who_is_invited_is_drawn_evenly():
    devices = [f"{n}" for n in range(10)]
    found = Counter(d for seed in range(2000) for d in shared_out({"": devices}, 3, random.Random(seed)))
    assert all(abs(found[d] - 600) < 6 * (2000 * 0.3 * 0.7) ** 0.5 for d in devices)


@given(st.floats(1, 1e6), st.integers(1, 100))
def test_rest_doubles_up_to_a_day(task_s, lapses):
    rounds = RoundsConfig(deadline_s=task_s)
    found = rest_s(rounds, lapses)
    assert task_s <= found <= max(MOST_REST_S, task_s)
    assert found == min(task_s * 2.0 ** (lapses - 1), max(MOST_REST_S, task_s))


def test_a_source_is_a_tag_that_tells_sources_apart_and_names_none():
    tags = {source(b"key", kind, name) for kind in ("token", "address") for name in ("a", "b", "c")}
    assert len(tags) == 6
    assert all(len(tag) == 4 for tag in tags)
    assert source(b"key", "token", "a") != source(b"other", "token", "a")


def test_devices_are_tagged_when_they_enrol_and_the_tag_goes_when_they_leave(tmp_path):
    with small(tmp_path, federation_config(), devices=2) as f:
        with f.services.database.read() as session:
            tags = {d.source for d in session.query(EnrolledDevice)}
            assert session.get_one(Federation, 1).next_index == 2
        assert len(tags) == 1
        assert tags != {""}
        assert f.client.delete("/v1/devices/me", headers=f.devices[0]).status_code == 204
        with f.services.database.read() as session:
            assert session.get_one(EnrolledDevice, device_of(f.devices[0])).source == ""
