"""Files and names that nothing needs any more go, and what is needed stays."""

from __future__ import annotations

import os

from pfl_server.rounds.garbage import Collector
from pfl_server.uploads.partial_file import old_parts
from tests.server.testbed import ONE, federation_config, small, update_of


def test_garbage_goes_and_what_is_needed_stays(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE, versions_kept=2), devices=2) as f:
        collector, blobs = Collector(f.services, grace_s=10), f.services.blobs
        for _ in range(4):
            f.send(f.devices[0], 0.1)
            f.step()
        task = f.send(f.devices[1])
        for folder in ("updates", "states", "sets"):
            blobs.put(f"{folder}/orphan", b"x")
        served = f.version()
        f.clock.pass_time(1e6)
        collector.collect()
        assert blobs.size("sets/orphan") == 1
        f.clock.pass_time(11)
        collector.collect()
        assert {key.split("-")[0] for key in blobs.keys("states/")} == {"states/4", "states/3"}
        assert blobs.size(f"sets/{served.values_sha256}") == served.values_bytes
        assert list(blobs.keys("updates/")) == [f.assignment(task).blob]
        assert sum(1 for _ in blobs.keys("sets/")) == 2
        f.step()
        assert f.version().number == 5


def test_old_parts_go(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        task = f.task(f.devices[0])
        data = update_of(task)
        f.put(f.devices[0], task, data[:50], Upload_Length=str(len(data)))
        Collector(f.services).collect_parts()
        [path] = old_parts(f.services.blobs.scratch, 1e18)
        os.utime(path, (1, 1))
        Collector(f.services).collect_parts()
        assert old_parts(f.services.blobs.scratch, 1e18) == []


def test_old_assignments_forget_their_device(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE, versions_kept=2), devices=1) as f:
        tasks = []
        for _ in range(4):
            tasks.append(f.send(f.devices[0]))
            f.step()
        Collector(f.services).collect()
        known = [f.assignment(task).device is not None for task in tasks]
        assert known == [False, False, False, True]
        assert f.assignment(tasks[0]).score is not None
