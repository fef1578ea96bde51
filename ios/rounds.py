"""Rounds of a real ``pfl serve`` in which devices of Swift, Kotlin and Python take part together.

    python ios/rounds.py            # Swift and Python, and Kotlin where there is Maven (--without-kotlin: never)

It tries what must hold between the languages, and ends with an error where it does not:

* two private rounds (Gaussian) of three devices; that of Swift is killed while its first update goes out, and a second
  process sends the rest of it before anything else;
* folders of Swift go on in Python and back, and a folder of Python goes on in Swift;
* two rounds that are not private: a device of Swift refuses them unless its user allows them.

What ``make round-of-three`` builds must be there: the program ``pfl-swift-device`` and the bundle.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
IOS, ANDROID = PROJECT / "ios", PROJECT / "android"
BUNDLE = ANDROID / "target" / "bundles" / "federated.pflb"
#: The test that is Kotlin's device, built.
KOTLIN = (
    ANDROID
    / "core"
    / "target"
    / "test-classes"
    / "io"
    / "pflmobile"
    / "core"
    / "device"
    / "RoundOfThreeTest.class"
)
KOTLIN_DEVICE = ["mvn", "-q", "-B", "-pl", "core", "surefire:test", "-Dtest=RoundOfThreeTest"]
#: As the Makefile builds it.
BUILD = {"PFL_STRICT": "1", "PFL_APPLE_STUBS": "1"}
WAIT_S = 240.0
ROUNDS, DEVICES, EXAMPLES, WIDTH, LABELS = 2, 3, 40, 6, 4
#: Bytes of the body of an upload that pass before it is cut off.
KEEP = 300

_COMMON = {"cohort": DEVICES, "rounds": ROUNDS}
GAUSSIAN = {**_COMMON, "mechanism": "gaussian", "clip_norm": 0.5, "noise_multiplier": 4.0, "delta": 1e-6}
NONE = {**_COMMON, "mechanism": "none", "clip_norm": 10}


def _federation() -> ModuleType:
    """What starts and stops servers for the phones' scenarios."""
    found = importlib.util.spec_from_file_location("pfl_ios_rounds_federation", ANDROID / "federation.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


federation = _federation()


class Network:
    """A network between a device and its aggregator: the first upload stops on its way, and nothing passes any more.

    Attributes:
        stopped: set once an upload stopped.
        offsets: where the uploads began that came through, in bytes of the update.
    """

    def __init__(self, port: int) -> None:
        self._port, self._sockets = port, list[socket.socket]()
        self.stopped, self._shut = threading.Event(), False
        self.offsets = list[int]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where the aggregator seems to be."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def open(self) -> None:
        """End what hangs, and let everything pass from now on."""
        self._shut = False
        for one in self._sockets:
            with suppress(OSError):  # closing alone ends no `recv` that waits
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()
        self.open()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listening.accept()
                if self._shut:
                    device.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [device, server]
                threading.Thread(target=self._copy, args=(device, server, True), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, device, False), daemon=True).start()

    def _copy(self, of: socket.socket, to: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := of.recv(1 << 16):
                if up and data.startswith(b"PUT "):
                    while b"\r\n\r\n" not in data:
                        data += of.recv(1 << 16)
                    offset = re.search(rb"upload-offset: *(\d+)", data, re.IGNORECASE)
                    self.offsets.append(int(offset[1]) if offset else -1)
                    if not self.stopped.is_set():
                        head = data.index(b"\r\n\r\n") + 4
                        while len(data) < head + KEEP:
                            data += of.recv(1 << 16)
                        to.sendall(data[: head + KEEP])
                        self._shut = True
                        self.stopped.set()
                        return  # both sides go on to wait
                to.sendall(data)
        for one in (of, to):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Swift:
    """A process of ``pfl-swift-device``; what it tells is read as it comes."""

    def __init__(
        self, folder: Path, server: str, *more: str, patience: str = "60", trusts: Path | None = None
    ) -> None:
        rows = folder.with_suffix(".json")
        if not rows.exists():
            x, labels = _rows(sum(folder.name.encode()))
            rows.write_text(json.dumps({"x": x.tolist(), "labels": labels.tolist()}))
        # seen from ios/, as swift.sh may show the repository at another place
        paths = {"--bundle": BUNDLE, "--folder": folder, "--rows": rows}
        given = [part for name, path in paths.items() for part in (name, os.path.relpath(path, IOS))]
        program = [str(IOS / "swift.sh"), "run", "--skip-build", "pfl-swift-device"]
        self._errors = folder.with_suffix(".log")
        self.lines = list[dict[str, Any]]()
        with self._errors.open("a") as errors:
            self.process = subprocess.Popen(
                [*program, *given, "--server", server, "--patience", patience, *more],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                env=os.environ | BUILD | ({"PFL_SWIFT_CA": str(trusts)} if trusts else {}),
            )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    @property
    def events(self) -> list[str]:
        """What happened, without the steps."""
        return [line["event"] for line in self.lines if line.get("event", "stepped") != "stepped"]

    def kill(self) -> None:
        """End it at once, in whatever it does; with all that `swift.sh` started for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reading.join(10)

    def end(self) -> dict[str, Any]:
        """Wait for its end; what it did."""
        return self._ended(0)

    def failed(self) -> dict[str, Any]:
        """Wait for its failure; what it says of it."""
        return self._ended(1)

    def _ended(self, want: int) -> dict[str, Any]:
        code = self.process.wait(WAIT_S)
        self._reading.join(10)
        # Debian's ONNX Runtime registers its schemas twice, and says so.
        said = [line for line in self._errors.read_text().splitlines() if line and "Schema error" not in line]
        check(code == want and bool(self.lines), f"a device of Swift: {self.lines[-3:]} {said[-20:]}")
        return self.lines[-1]


def check(holds: bool, what: str) -> None:
    """End with an error where something does not hold."""
    if not holds:
        raise SystemExit(f"FAILED: {what}")


def _rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples whose label is the largest of the first features."""
    x = np.random.default_rng(seed).normal(size=(EXAMPLES, WIDTH)).astype("f4")
    return x, x[:, :LABELS].argmax(1)


def python_device(folder: Path, server: str, *more: str) -> subprocess.Popen[str]:
    """Start a device of Python on rows of its own; ``folder`` may be one of another language."""
    x, labels = _rows(5)
    rows = folder.with_suffix(".npz")
    np.savez(rows, x=x, labels=labels, weight=np.ones(EXAMPLES, "f4"), user=np.array(["ann"] * EXAMPLES))
    who = ["--data", rows, "--user", "ann", "--state", folder, "--engine", "onnxruntime"]
    started: subprocess.Popen[str] = federation.pfl(
        ["device", "--server", server, "--bundle", BUNDLE, *who, "--json", *more], folder.with_suffix(".log")
    )
    return started


def python_end(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Wait for the end of a device of Python; what it did."""
    out, _ = process.communicate(timeout=WAIT_S)
    log = folder.with_suffix(".log").read_text()[-2000:]
    check(process.returncode == 0, f"a device of Python ended with {process.returncode}: {out[-2000:]} {log}")
    found: dict[str, Any] = json.loads(out)
    return found


class Kotlin:
    """A device of Kotlin, which a test of Maven is."""

    def __init__(self, folder: Path, server: str, *, require: bool) -> None:
        self._log = folder.with_suffix(".log")
        settings = {
            "federation": server,
            "federation.folder": folder,
            "federation.private": str(require).lower(),
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*KOTLIN_DEVICE, *(f"-D{name}={value}" for name, value in settings.items())],
                cwd=ANDROID,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill(self) -> None:
        """End Maven, which ends the process of its test."""
        self.process.terminate()
        self.process.wait()

    def end(self) -> None:
        """Wait for its end."""
        code = self.process.wait(WAIT_S)
        check(code == 0, f"a device of Kotlin: {self._log.read_text()[-3000:]}")


@contextmanager
def served(privacy: dict[str, Any], folder: Path) -> Iterator[str]:
    """A federation of two rounds of three devices; gives its address."""
    folder.mkdir(parents=True)
    rounds = {"cohort": DEVICES, "minimum": DEVICES, "total": ROUNDS, "retry_s": 0.1, "deadline_s": 200}
    (folder / "federation.json").write_text(json.dumps({"rounds": rounds, "privacy": privacy}))
    settings = ["--config", folder / "federation.json", "--data", folder / "server"]
    log = folder / "server.log"
    server = federation.pfl(
        ["serve", BUNDLE, *settings, "--json", "--port", "0", "--open-enrolment", "--dashboard", "off"], log
    )
    try:
        url: str = federation.first_json(server, log)["url"]
        federation.wait_for(int(url.rpartition(":")[2]), server, log)
        yield url
    finally:
        federation.stop(server)


def wait_for_part(device: Path, server: str) -> None:
    """Wait until the aggregator tells that it has what came of an update.

    Not after the end of the connection: what it has not read by then is lost.
    """
    (entry,) = (json.loads(path.read_text()) for path in (device / "queue").glob("*.json"))
    credential = json.loads((device / "device.json").read_text())["credential"]
    headers = {"Authorization": f"Bearer {credential}", "Idempotency-Key": entry["key"]}
    last, until = "no answer for", time.monotonic() + 60
    while time.monotonic() < until:
        asked = urllib.request.Request(server + entry["url"], headers=headers, method="HEAD")
        with suppress(urllib.error.URLError), urllib.request.urlopen(asked, timeout=10) as answer:
            last = answer.headers["Upload-Offset"]
            if last == str(KEEP):
                return
        time.sleep(0.05)
    raise SystemExit(f"FAILED: the aggregator never had a part of the update, but {last} bytes")


def check_end(name: str, told: dict[str, Any]) -> None:
    """A device took part in all rounds, and nothing waits."""
    fine = (
        told["ended"] == "done" and told["rounds"] == ROUNDS and not told["dropped"] and not told["declined"]
    )
    check(fine, f"{name}: {told}")


def private_rounds(folder: Path, with_kotlin: bool) -> None:
    """Gaussian rounds, in which a device of Swift is killed in its first upload; then folders change language."""
    with served(GAUSSIAN, folder) as url:
        network = Network(int(url.rpartition(":")[2]))
        python = python_device(folder / "ann", url)
        third: Swift | Kotlin = (
            Kotlin(folder / "kotlin", url, require=True) if with_kotlin else Swift(folder / "second", url)
        )
        first = Swift(folder / "first", network.address)
        try:
            check(network.stopped.wait(WAIT_S), f"no update of Swift came: {first.lines[-3:]}")
            first.kill()
            check("finished" in first.events and "uploaded" not in first.events, f"{first.events}")
            wait_for_part(folder / "first", url)
            network.open()
            again = Swift(folder / "first", network.address)
            told = again.end()
            check_end("Swift after its end", told)
            begins = again.events[:2]
            check(
                begins == ["joined", "uploaded"], f"it did not send first of all what waited: {again.lines}"
            )
            check(again.lines[0]["again"], "it enrolled anew")
            check(
                network.offsets[:2] == [0, KEEP],
                f"the upload did not go on where it was cut: {network.offsets}",
            )
            check(told["version"] == ROUNDS and told["waiting"] == 0, f"{told}")
            check_end("Python", python_end(python, folder / "ann"))
            other = third.end()
            if other is not None:
                check_end("Swift", other)
            print(
                f"private: uploads of Swift began at {network.offsets}; loss {told['loss']:.4f}", flush=True
            )
            from_swift(folder / "first", network.address, told["state"])
            from_python(folder / "ann", url)
        finally:
            first.kill()
            third.kill()
            python.kill()
            network.close()


def from_swift(folder: Path, server: str, version: int) -> None:
    """A folder of Swift, with this version of the personal state, goes on in Python and back."""
    events = folder.with_suffix(".jsonl")
    told = python_end(python_device(folder, server, "--events", str(events)), folder)
    check(told["ended"] == "done", f"a folder of Swift in Python: {told}")
    joined = [line for line in map(json.loads, events.read_text().splitlines()) if line["event"] == "joined"]
    check(bool(joined) and joined[0]["again"], f"a folder of Swift in Python enrolled anew: {joined}")
    back = from_python(folder, server)
    check(back["state"] == version, f"its personal state is version {back['state']}, not {version}")
    print("a folder went on from Swift in Python, and back", flush=True)


def from_python(folder: Path, server: str) -> dict[str, Any]:
    """A folder of Python goes on in Swift; what it did."""
    swift = Swift(folder, server, "--user", "ann")
    told = swift.end()
    check(told["ended"] == "done" and told["waiting"] == 0, f"{folder.name} in Swift: {told}")
    check(swift.lines[0]["again"], f"{folder.name} in Swift enrolled anew")
    return told


def public_rounds(folder: Path, with_kotlin: bool) -> None:
    """Rounds that nothing protects."""
    with served(NONE, folder) as url:
        refusing = Swift(folder / "refusing", url).end()
        check(refusing["ended"] == "privacy" and refusing["declined"] == {"privacy": 1}, f"{refusing}")
        python = python_device(folder / "ann", url, "--allow-no-privacy")
        third: Swift | Kotlin = (
            Kotlin(folder / "kotlin", url, require=False)
            if with_kotlin
            else Swift(folder / "second", url, "--allow-no-privacy")
        )
        first = Swift(folder / "first", url, "--allow-no-privacy")
        try:
            told = first.end()
            check_end("Swift", told)
            check_end("Python", python_end(python, folder / "ann"))
            other = third.end()
            if other is not None:
                check_end("Swift", other)
        finally:
            first.kill()
            third.kill()
            python.kill()
        print(f"not private: a device refuses; loss {told['loss']:.4f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try everything in a folder that is made anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=IOS / ".build" / "rounds", help="inside the repository"
    )
    parser.add_argument("--without-kotlin", action="store_true", help="a second device of Swift in its place")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.resolve()
    check(folder.is_relative_to(PROJECT), f"{folder} is not inside {PROJECT}, where Swift sees it")
    check(BUNDLE.exists(), f"{BUNDLE} is missing; mend: python android/desktop.py")
    with_kotlin = not given.without_kotlin and shutil.which("mvn") is not None
    check(
        not with_kotlin or KOTLIN.exists(),
        f"{KOTLIN.name} is missing; mend: mvn -pl core test-compile in android",
    )
    # what was started ends too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    shutil.rmtree(folder, ignore_errors=True)
    languages = "Swift, Kotlin and Python" if with_kotlin else "Swift and Python"
    private_rounds(folder / "private", with_kotlin)
    public_rounds(folder / "public", with_kotlin)
    print(f"rounds of {languages}: all of it holds")


if __name__ == "__main__":
    sys.exit(main())
