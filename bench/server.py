"""The aggregator's speed: uploads of many devices at once, and merging.

    python bench/server.py --json

Uploads: 200 connections send updates of 0.1, 1 and 10 MB to one process of our server (streamed, checked, stored,
accepted in the database), and to the same stack with an endpoint that only reads the body; in turns. Merging: n
updates from files through the strategy, as the server does it (two threads), against Flower's FedAvg from the bytes
that its server holds in memory, against the sum in it alone, from arrays in memory, and against the memory's
bandwidth. Peak memory of merges of cohorts of 10, 100 and 1000.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from environments import python_of
from serve import load
from sim.requirements import wanted

HERE = Path(__file__).resolve().parent

#: Size of an update in MB, and how many are sent.
UPLOADS = {0.1: 2000, 1.0: 600, 10.0: 200}
CONNECTIONS = 200
MERGE_MB, MERGE_COUNT = 10.0, 50
COHORT_MB, COHORTS = 4.0, (10, 100, 1000)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Serving:
    """A server process, from when it listens until the block ends."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._arguments = arguments

    def __enter__(self) -> int:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments, str(self.port)],
            cwd=HERE,
            stderr=self._log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        give_up = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self.port
            except OSError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    self._log.seek(0)
                    said = self._log.read().decode(errors="replace")
                    raise SystemExit(f"{' '.join(self._arguments)} did not start:\n{said}") from None
                time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid


def uploads(size_mb: float, count: int, repeats: int) -> dict[str, Any]:
    """Both endpoints in turns; medians over the repeats, of the ratio too. All devices send the same values."""
    payload: bytes = b""
    runs: dict[str, list[dict[str, Any]]] = {"raw": [], "ours": []}
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory(prefix="pfl-bench-") as name:
            folder = Path(name)
            say(f"{size_mb:g} MB: enrol {count} devices ({repeat + 1}/{repeats})")
            _python("-m", "serve.ours", "prepare", name, str(size_mb), str(count))
            found = json.loads((folder / "tasks.json").read_text())
            payload = payload or np.random.default_rng(0).normal(size=found["values"]).astype("<f4").tobytes()
            ours = [_upload(task, payload) for task in found["tasks"]]
            raw = [load.Call("/raw", {}, upload.parts) for upload in ours]
            for system, sent, server in (
                ("raw", raw, Serving("serve/raw.py")),
                ("ours", ours, Serving("-m", "serve.ours", "run", name)),
            ):
                with server as port:
                    load.run("127.0.0.1", port, [load.Call("/healthz", {}, [b""])], 1)  # warm up
                    began = _cpu_s(server.pid)
                    got = load.run("127.0.0.1", port, sent, CONNECTIONS)
                    got["cpu_ms"] = 1000 * (_cpu_s(server.pid) - began) / count
                if got["statuses"] != {"200": count}:
                    raise SystemExit(f"{system} answered {got['statuses']}, not {count} times 200")
                say(
                    f"  {system}: {got['mb_per_s']:.0f} MB/s, {got['per_s']:.0f} uploads/s, "
                    f"{got['cpu_ms']:.1f} ms of a core each"
                )
                runs[system].append(got)
    ratios = [a["mb_per_s"] / b["mb_per_s"] for a, b in zip(runs["ours"], runs["raw"], strict=True)]

    def median(system: str, name: str) -> float:
        return statistics.median(run[name] for run in runs[system])

    return {
        "mb_per_s": median("ours", "mb_per_s"),
        "uploads_per_s": median("ours", "per_s"),
        "raw_mb_per_s": median("raw", "mb_per_s"),
        "raw_uploads_per_s": median("raw", "per_s"),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ms_per_upload": median("ours", "cpu_ms"),
        "raw_cpu_ms_per_upload": median("raw", "cpu_ms"),
        "uploads": count,
    }


def _cpu_s(pid: int) -> float:
    """Seconds of a core that a process has taken so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _upload(task: dict[str, str], payload: bytes) -> load.Call:
    headers = {
        "Authorization": f"Bearer {task['credential']}",
        "Idempotency-Key": str(uuid.uuid4()),
        "Content-Type": "application/vnd.safetensors",
    }
    return load.Call(task["url"], headers, [task["header"].encode(), payload])


def check_ins(repeats: int, devices: int = 400) -> dict[str, Any]:
    """Devices that ask again for the task that they have: a credential, a row of the device, one of the round."""
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as name:
        say(f"check-in of {devices} devices")
        _python("-m", "serve.ours", "prepare", name, "0.1", str(devices))
        found = json.loads((Path(name) / "tasks.json").read_text())
        body = [json.dumps(found["check_in"]).encode()]
        json_type = {"Content-Type": "application/json"}
        calls = [
            load.Call(
                "/v1/check-in", {"Authorization": f"Bearer {t['credential']}"} | json_type, body, "POST"
            )
            for t in found["tasks"]
        ]
        with Serving("-m", "serve.ours", "run", name) as port:
            runs = [load.run("127.0.0.1", port, calls * 5, CONNECTIONS) for _ in range(repeats)]
    if any(run["statuses"] != {"200": 5 * devices} for run in runs):
        raise SystemExit(f"check-ins were answered by {[run['statuses'] for run in runs]}")
    return {"per_s": max(run["per_s"] for run in runs)}


def merge(repeats: int) -> dict[str, Any]:
    """Ours and Flower's, one process each, in turns; their means must agree."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "flower": [], "flower_arrays": []}
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as name:
        _write_updates(Path(name), MERGE_COUNT, MERGE_MB)
        flower = python_of("flower", wanted("flower"), say)
        for repeat in range(repeats):
            say(f"merge {MERGE_COUNT} updates of {MERGE_MB:g} MB ({repeat + 1}/{repeats})")
            for system, runs in found.items():
                started = ["-m", "serve.merging"] if system == "ours" else ["serve/merging.py"]
                runs.append(_python(*started, system, name, "7", python=None if system == "ours" else flower))
        means = [np.fromfile(Path(name, f"mean-{system}.bin"), np.float32) for system in found]
    difference = float(max(np.abs(means[0] - mean).max() for mean in means))
    if difference > 1e-5:
        raise SystemExit(f"the means differ by {difference}")
    best = {system: min(runs, key=lambda run: run["seconds"]) for system, runs in found.items()}
    seconds = {system: run["seconds"] for system, run in best.items()}
    return {
        "gb_per_s": best["ours"]["gb_per_s"],
        "memory_bandwidth_gb_per_s": max(run["memory_bandwidth_gb_per_s"] for run in found["ours"]),
        "ratio_to_flower": seconds["flower"] / seconds["ours"],
        "ratio_to_flower_arrays": seconds["flower_arrays"] / seconds["ours"],
        "seconds": seconds,
        "peak_mb": {system: run["peak_mb"] for system, run in best.items()},
        "max_difference": difference,
        "updates": MERGE_COUNT,
        "update_mb": MERGE_MB,
    }


def cohorts() -> dict[str, float]:
    """Peak memory of a process that merges a cohort."""
    found = {}
    for count in COHORTS:
        with tempfile.TemporaryDirectory(prefix="pfl-bench-") as name:
            say(f"peak memory with {count} updates of {COHORT_MB:g} MB")
            _write_updates(Path(name), count, COHORT_MB)
            found[str(count)] = _python("-m", "serve.merging", "ours", name, "1")["peak_mb"]
    return found


def _write_updates(folder: Path, count: int, size_mb: float) -> None:
    (folder / "updates").mkdir()
    if shutil.disk_usage(folder).free < 1.2e6 * size_mb * count:
        raise SystemExit(f"{folder} has no space for {size_mb * count:.0f} MB; set TMPDIR")
    values = np.random.default_rng(0).normal(size=round(size_mb * 1e6 / 4)).astype("<f4")
    for i in range(count):
        np.roll(values, i).tofile(folder / "updates" / f"{i:06d}.bin")
    (folder / "weights.json").write_text(json.dumps([10 + i % 90 for i in range(count)]))


def _python(*arguments: str, python: Path | None = None) -> Any:
    command = [str(python or sys.executable), *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    done = subprocess.run(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value on standard output")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turns")
    parser.add_argument("--only", choices=("upload", "check_in", "merge", "memory"), help="one part")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=list(UPLOADS), help="sizes of uploads in MB"
    )
    options = parser.parse_args()
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    if options.only in (None, "merge"):
        found["merge"] = merge(options.repeats)
    if options.only in (None, "memory"):
        found["peak_mb_by_cohort"] = cohorts()
    if options.only in (None, "check_in"):
        found["check_in"] = check_ins(options.repeats)
    if options.only in (None, "upload"):
        found["upload"] = {
            f"{size:g}": uploads(size, UPLOADS.get(size, max(200, round(1000 / size))), options.repeats)
            for size in options.sizes
        }
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
