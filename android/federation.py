"""An aggregator for the scenarios of phones that take part in rounds: a real ``pfl serve``, and one device of Python.

    python android/federation.py android/target/bundles/talk.pflb --folder out/federation

Two private rounds of two devices: that of Python is one, the phone is the other. With ``--alone`` there are three of
one device, which adds the noise itself. Prints ``{"url": ...}`` and runs until its standard input ends or it is
stopped. A phone reaches it over ``adb reverse``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
START_S, STOP_S = 120.0, 10.0


def config(alone: bool) -> dict[str, object]:
    """The federation."""
    rounds, cohort = (3, 1) if alone else (2, 2)
    noise = (
        {"mechanism": "local", "local_noise_multiplier": 8.0}
        if alone
        else {"mechanism": "gaussian", "noise_multiplier": 4.0}
    )
    return {
        "rounds": {"cohort": cohort, "minimum": cohort, "total": rounds, "retry_s": 0.2, "deadline_s": 300},
        "privacy": {**noise, "clip_norm": 0.5, "cohort": cohort, "rounds": rounds, "delta": 1e-6},
    }


def pfl(arguments: Sequence[str | Path], log: Path) -> subprocess.Popen[str]:
    """Start the ``pfl`` command of this project; what it tells on its error stream goes to a file."""
    program = "import sys; from pfl_mobile.cli import main; sys.exit(main())"
    path = os.pathsep.join(str(PROJECT / name) for name in ("", "exporters", "server", "recipes"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.setdefault("PFL_ADMIN_TOKEN", secrets.token_hex(20))
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, kindly first."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def messages(path: Path) -> Path:
    """What the user of Python's device says, who talks about other things than that of the phone."""
    said = ["did you feed the cat", "the cat is fine", "you feed blick and the cat"]
    path.write_text("".join(json.dumps({"user": "bob", "text": text}) + "\n" for text in 10 * said))
    return path


@contextmanager
def federation(bundle: Path, folder: Path, *, alone: bool = False) -> Iterator[int]:
    """Serve the federation of a bundle that takes messages; gives the port here.

    Unless the phone is alone, there is one device of Python.

    Raises:
        RuntimeError: the server did not start; the message has what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.json").write_text(json.dumps(config(alone)))
    data: list[str | Path] = ["--config", folder / "federation.json", "--data", folder / "server"]
    log = folder / "server.log"
    server = pfl(
        ["serve", bundle, *data, "--json", "--port", "0", "--open-enrolment", "--dashboard", "off"], log
    )
    started = [server]
    try:
        port = int(first_json(server, log)["url"].rpartition(":")[2])
        wait_for(port, server, log)
        if alone:
            yield port
            return
        said = messages(folder / "messages.jsonl")
        who: list[str | Path] = ["--data", said, "--user", "bob", "--state", folder / "bob"]
        where: list[str | Path] = ["--server", f"http://127.0.0.1:{port}", "--bundle", bundle]
        started.append(
            pfl(["device", *where, *who, "--engine", "onnxruntime", "--json"], folder / "device.log")
        )
        yield port
    finally:
        for process in reversed(started):
            stop(process)


def wait_for(port: int, server: subprocess.Popen[str], log: Path) -> None:
    """Wait until the server takes connections: it tells its address before."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"pfl serve takes no connections: {log.read_text()[-3000:]}")


def first_json(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """The first piece of JSON that a process prints, whose last line is a brace alone."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            found: dict[str, str] = json.loads(text)
            return found
    raise RuntimeError(f"pfl serve printed no address: {text}{log.read_text()[-3000:]}")


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="for the server's data and the device's")
    parser.add_argument("--alone", action="store_true", help="for one device, without that of Python")
    given = parser.parse_args()
    # the children end as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with federation(given.bundle, given.folder, alone=given.alone) as port:
        print(json.dumps({"url": f"http://127.0.0.1:{port}"}, indent=1), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
