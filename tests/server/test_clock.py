"""Clocks that are set: while a server runs, while it is down, and of one of several processes."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import pytest

from pfl_server import clock as clocks
from pfl_server.clock import SteadyClock
from pfl_server.rounds.coordinator import LEASE_S, Coordinator
from pfl_server.rounds.garbage import RAW_GRACE_S, Collector
from pfl_server.storage.models import Federation
from pfl_server.uploads.partial_file import old_parts
from tests.server.testbed import federation_config, small, update_of


@pytest.mark.parametrize("step", [-3600.0, 3600.0, -1e9])
def test_time_passes_evenly_while_the_systems_clock_is_set(monkeypatch, step):
    passed = [0.0]
    real = time.time()
    monkeypatch.setattr(clocks, "elapsed", lambda: 5000.0 + passed[0])
    clock = SteadyClock()
    assert clock() == pytest.approx(real, abs=5)
    before = clock()
    monkeypatch.setattr(time, "time", lambda: real + step)
    passed[0] = 7.0
    assert clock() - before == 7.0
    assert clock.ahead() == pytest.approx(7.0 - step, abs=5)
    assert SteadyClock(clock.began)() == clock()  # another worker


def test_the_time_of_processes_of_one_machine_is_one():
    assert SteadyClock()() == pytest.approx(time.time(), abs=1)
    assert abs(clocks.elapsed() - clocks.elapsed()) < 5


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
@pytest.mark.parametrize("back", [60.0, 3600.0, 1e8])
def test_a_clock_set_back_while_the_server_was_down_costs_one_rounds_time(tmp_path, mode, back):
    rounds = {"mode": mode, "cohort": 3, "minimum": 1}
    with small(tmp_path, federation_config(rounds=rounds), devices=3) as f:
        f.send(f.devices[0])
        slow = f.task(f.devices[1])
        devices, clock = f.devices, f.clock
    clock.pass_time(-back)
    with small(tmp_path, clock=clock) as f:
        clock.pass_time(LEASE_S + 1)  # of the process that was killed
        f.step()
        assert f.assignment(slow).expires <= clock() + 100 + 10
        clock.pass_time(111)
        f.step()
        assert f.assignment(slow).state == "expired"
        if mode == "synchronous":
            assert f.round(0).state == "merged"
            assert f.round().number == 1
        f.send(devices[2])


@pytest.mark.parametrize("forward", [60.0, 3600.0, 1e8])
def test_a_clock_set_forward_while_the_server_was_down_ends_one_round(tmp_path, forward):
    with small(tmp_path, federation_config(rounds={"minimum": 1}), devices=2) as f:
        f.send(f.devices[0])
        devices, clock = f.devices, f.clock
    clock.pass_time(forward)
    with small(tmp_path, clock=clock) as f:
        f.step()
        assert f.round(0).state == ("open" if forward < 100 else "merged")
        clock.pass_time(100)
        f.step()
        f.send(devices[1])


class Apart(SteadyClock):
    """A clock of a process that began with a wrong time; its seconds pass when a test says so."""

    def __init__(self, shared: Any, wrong: float) -> None:
        self._shared = shared
        self.wrong = wrong

    def __call__(self) -> float:
        return float(self._shared()) + self.wrong

    def set(self, now: float) -> None:
        self.wrong += now - self()

    def ahead(self) -> float:
        return 0.0


@pytest.mark.parametrize("wrong", [-3600.0, -30.0, 30.0, 3600.0])
def test_processes_with_other_clocks_agree_on_one_that_leads(tmp_path, wrong):
    with small(tmp_path, federation_config(rounds={"deadline_s": 1000.0}), devices=3) as f:
        other_services = dataclasses.replace(f.services, clock=Apart(f.clock, wrong))
        one, other = f.coordinator, Coordinator(other_services)

        def leader() -> str | None:
            with f.services.database.read() as session:
                return session.get_one(Federation, 1).lease_owner

        leaders = []
        for _ in range(60):
            one.step()
            other.step()
            f.clock.pass_time(1)
            leaders.append(leader())
        assert len(set(leaders[5:])) == 1  # they do not take it from each other in turns
        if leaders[-1] == one._owner:
            assert other_services.clock() == pytest.approx(f.clock(), abs=7)
        # who leads now dies; the other takes over in the time of a lease or two
        alive = other if leaders[-1] == one._owner else one
        for _ in range(int(2 * LEASE_S) + 3):
            alive.step()
            f.clock.pass_time(1)
        assert leader() == alive._owner


# -- what uploads leave behind


def test_what_a_kill_left_of_uploads_goes_within_minutes(tmp_path):
    """Raw updates: of an upload that was not accepted, of one that was merged, and parts of tasks that are over."""
    with small(tmp_path, federation_config(rounds={"minimum": 1}), devices=3) as f:
        tasks = [f.task(device) for device in f.devices]
        data = update_of(tasks[0])
        for device, task in zip(f.devices[:2], tasks, strict=False):
            f.put(device, task, data[:50], Upload_Length=str(len(data)))
        scratch, blobs = f.services.blobs.scratch, f.services.blobs
        blobs.put(f"updates/{tasks[2]['id']}-00000000", data)
        part = next(path for path in old_parts(scratch, 1e18) if tasks[0]["id"] in path.name)
        os.rename(part, part.with_name(f"{tasks[0]['id']}.{'0' * 32}.whole"))
        spare = scratch / "put-00"
        spare.write_bytes(b"x")
    with small(tmp_path, clock=f.clock) as f:  # as after a kill: nothing is remembered
        collector = Collector(f.services)
        for _ in range(int(RAW_GRACE_S / 50) + 1):
            collector.collect()
            collector.collect_parts()
            f.clock.pass_time(50)
        left = [path.name for path in old_parts(scratch, 1e18)]
        assert len(left) == 1
        assert tasks[1]["id"] in left[0]  # its task is open, so it may go on
        assert list(blobs.keys("updates/")) == []
        assert spare.exists()
        f.step()
        for _ in range(int(RAW_GRACE_S / 50) + 1):
            collector.collect_parts()
            f.clock.pass_time(50)
        assert old_parts(scratch, 1e18) == []
        f.clock.pass_time(3600)
        collector.collect_parts()
        assert not spare.exists()


def test_every_process_collects_its_own_scratch_folder(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        f.task(f.devices[0])
        left = f.services.blobs.scratch / "parts" / "ab" / f"{'ab' * 16}.{'0' * 16}.9.part"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"x")
        follower = Coordinator(f.services)
        for _ in range(8):
            f.coordinator.step()
            follower.step()
            f.clock.pass_time(10 if left.exists() else 0)
        for _ in range(8):
            f.coordinator._collector = Collector(f.services, grace_s=1e9)
            f.coordinator.step()
            follower.step()
            f.clock.pass_time(61)
        assert not left.exists()
