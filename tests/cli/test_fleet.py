from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfl_mobile.cli.fleet import Fleet


def wait(fleet, count):
    ended, give_up = {}, time.monotonic() + 60
    while len(ended) < count:
        ended |= dict(fleet.ended())
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return ended


def test_devices_are_processes_whose_output_and_exit_code_are_kept(tmp_path):
    fleet = Fleet(fork=False)
    fleet.start(["data", "list", "--json"], tmp_path / "good.json")
    fleet.start(["device", "--once"], tmp_path / "bad.json")
    assert wait(fleet, 2) == {0: 0, 1: 2}
    assert json.loads((tmp_path / "good.json").read_text())
    assert "--server" in (tmp_path / "bad.log").read_text()


def fleet_process():
    return subprocess.Popen(
        [sys.executable, "-m", "pfl_mobile.cli.fleet", "pfl_mobile.cli"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def order(*arguments, output):
    return json.dumps({"arguments": [*arguments], "output": str(output)}) + "\n"


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_forked_devices_do_the_same(tmp_path):
    with fleet_process() as process:
        process.stdin.write(order("data", "list", "--json", output=tmp_path / "good.json"))
        process.stdin.write(order("device", "--once", output=tmp_path / "bad.json"))
        process.stdin.flush()
        said = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.stdin.close()
    assert {s["ended"]: s["code"] for s in said if "ended" in s} == {0: 0, 1: 2}
    assert json.loads((tmp_path / "good.json").read_text())
    assert "--server" in (tmp_path / "bad.log").read_text()


def sleeping_fleet(folder, *, also=""):
    """A process that serves a fleet of devices that sleep for a minute, once one is started, with its id."""
    module = (
        "import os, signal, time\nimport pfl_mobile.cli\npfl_mobile.cli.main = lambda a: time.sleep(60)\n"
    )
    (folder / "sleeping.py").write_text(module + also)
    process = subprocess.Popen(
        [sys.executable, "-m", "pfl_mobile.cli.fleet", "sleeping"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    process.stdin.write(order("device", output=folder / "out.json"))
    process.stdin.flush()
    return process, json.loads(process.stdout.readline())["pid"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_device_outlives_who_started_the_fleet(tmp_path):
    process, pid = sleeping_fleet(tmp_path)
    with process:
        process.stdin.close()
    give_up = time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_a_device_ended_in_the_middle_of_its_start_ends(tmp_path):
    early = "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    process, _ = sleeping_fleet(tmp_path, also=early)
    with process:
        assert json.loads(process.stdout.readline()) == {"ended": 0, "code": -signal.SIGTERM}
        process.stdin.close()


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for the system's first process to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
