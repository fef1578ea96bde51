"""The processes of a federation on one machine: the server, and the devices with what they tell."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_mobile.cli.fleet import PFL
from pfl_mobile.errors import ConfigError, DeviceError
from pfl_mobile.files.atomic import open_private, private_folder

#: Asks this machine: a proxy of the environment cannot know its addresses, and must not see the admin's token.
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: ``report(what, fraction done or None)``.
Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Figures:
    """A round, as the devices measured it.

    Attributes:
        round: counted from 0.
        shared: top-3 recall in percent of the shared model after the round, over all test labels.
        personalized: of what serves on each device after it has trained in the round.
        devices: that reported in the round.
    """

    round: int
    shared: float
    personalized: float
    devices: int


@dataclass(frozen=True)
class DeviceMetrics:
    """What a device measured on its test part: top-3 recall from 0 to 1, the labels' weight, and the loss."""

    top3: float
    weight: float
    loss: float

    @classmethod
    def of(cls, event: Mapping[str, Any], what: str) -> DeviceMetrics:
        """Of an event's ``shared`` or ``personalized`` metrics."""
        return cls(event[what]["top3"], event["weight"], event[what].get("loss", math.nan))


@dataclass
class Seen:
    """What the devices told.

    Attributes:
        shared: metrics of the shared values, by version and device.
        personalized: of what serves after a round, by round and device.
        declined: devices by round.
        base: the version that a round began with.
    """

    shared: dict[int, dict[str, DeviceMetrics]] = field(default_factory=dict)
    personalized: dict[int, dict[str, DeviceMetrics]] = field(default_factory=dict)
    declined: dict[int, set[str]] = field(default_factory=dict)
    base: dict[int, int] = field(default_factory=dict)

    def add(self, device: str, event: dict[str, Any]) -> None:
        """Take in an event of a device (``pfl_mobile.device.events``)."""
        kind = event["event"]
        if kind == "assigned":
            self.base[event["round"]] = event["version"]
        elif kind == "declined":
            self.declined.setdefault(event["round"], set()).add(device)
        elif kind == "measured" and "top3" in event["shared"]:
            self.shared.setdefault(event["version"], {})[device] = DeviceMetrics.of(event, "shared")
        elif kind == "reported" and "top3" in event["shared"]:
            self.shared.setdefault(self.base[event["round"]], {})[device] = DeviceMetrics.of(event, "shared")
            self.personalized.setdefault(event["round"], {})[device] = DeviceMetrics.of(event, "personalized")

    def over(self, number: int, devices: int) -> bool:
        """Whether a round is over: all devices have answered, or there are answers in a later one."""
        answers = len(self.personalized.get(number, {})) + len(self.declined.get(number, ()))
        return answers >= devices or any(later > number for later in self.personalized)

    def figures(self, number: int) -> Figures:
        """The figures of a round; devices measure the model after it in the next round, or at the end."""
        found = self.personalized.get(number, {})
        after = self.base.get(number + 1, max(self.shared, default=0))
        return Figures(number, top3(self.shared.get(after, {})), top3(found), len(found))

    def own(self) -> dict[int, dict[str, DeviceMetrics]]:
        """Metrics of what serves after a round, by the version that the round made and device."""
        return {self.base[number] + 1: found for number, found in sorted(self.personalized.items())}


def top3(found: Mapping[str, DeviceMetrics]) -> float:
    """Recall over all labels of these devices, in percent."""
    weight = sum(m.weight for m in found.values())
    return 100.0 * sum(m.top3 * m.weight for m in found.values()) / weight if weight else math.nan


def loss(found: Mapping[str, DeviceMetrics]) -> float:
    """Mean over these devices, each counting the same."""
    return statistics.fmean(m.loss for m in found.values()) if found else math.nan


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs.

    Attributes:
        url: its address.
        token: of its admin.
    """

    url: str
    token: str

    def ask(self, path: str) -> Any:
        """The JSON that it answers an admin.

        Raises:
            DeviceError: it does not.
        """
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with _HERE.open(request, timeout=30) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeviceError(f"the server did not answer {path}: {error}", mend="see its log") from error


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within it, SIGTERM ends this process as an exception does, so that no process that it started is left."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ServerProcess]:
    """``pfl serve`` as a process of its own."""
    token = "pfl_admin_" + secrets.token_hex(32)
    arguments = [
        "serve",
        folder / "bundle",
        "--data",
        folder / "server",
        "--config",
        folder / "federation.json",
    ]
    arguments += ["--limits", folder / "limits.json", "--open-enrolment", "--port", "0", "--json"]
    log, shown = folder / "server.log", folder / "server.json"
    with open(log, "wb", opener=open_private) as errors, open(shown, "wb", opener=open_private) as out:
        process = subprocess.Popen(
            [sys.executable, "-c", PFL, *map(str, arguments)],
            env={**os.environ, "PFL_ADMIN_TOKEN": token},
            stdout=out,
            stderr=errors,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise DeviceError("the server did not start", mend=f"see {log}")
            with contextlib.suppress(ValueError, OSError):
                url = json.loads(shown.read_bytes())["url"]
                with _HERE.open(url + "/readyz", timeout=5):
                    break
            time.sleep(0.1)
        yield ServerProcess(url, token)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class DeviceProcesses:
    """The devices' processes.

    Attributes:
        delta: of the guarantee that devices accept; None: they send without any.
        memory_mb: what one device needs for itself, in MB; None where the system does not say.
        codes: exit code by device.
    """

    folder: Path
    url: str
    engine: str
    runtime: Sequence[str]
    delta: float | None
    memory_mb: float | None = None
    codes: dict[int, int] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _pids: dict[int, int] = field(default_factory=dict)
    _read: dict[str, int] = field(default_factory=dict)
    _rest: bytes = b""

    def __enter__(self) -> DeviceProcesses:
        private_folder(self.folder / "devices")
        modules = [*self.runtime, "httpx2", "pfl_mobile.cli", "pfl_mobile.device.device"]
        modules += ["pfl_mobile.device.model", "pfl_mobile.data", f"pfl_mobile.engines.{self.engine}"]
        self._log = open(self.folder / "devices.log", "wb", opener=open_private)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pfl_mobile.cli.fleet", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def start_all(self, names: list[str], say: Report) -> None:
        """Start the first device, look at the memory that it takes, then start the others if they fit."""
        say("start the devices", 0.0)
        self._start(names[0])
        while not any(e["event"] == "joined" for e in self._events(names[0])):
            self._poll()
            if 0 in self.codes:
                raise DeviceError(f"device {names[0]} failed", mend=f"see {self._place(names[0])}.log")
            time.sleep(0.05)
        self.memory_mb = _own_memory_mb(self._pids[0])
        free = _free_memory_mb()
        if self.memory_mb is not None and free is not None and self.memory_mb * (len(names) - 1) > 0.9 * free:
            raise ConfigError(
                f"{len(names)} devices of {self.memory_mb:.0f} MB each do not fit into {free:.0f} MB of memory",
                mend=f"give --devices {max(2, int(0.9 * free / self.memory_mb))}, or another engine",
            )
        self._read.clear()
        for name in names[1:]:
            self._start(name)

    def watch(self, rounds: int, say: Report, on_round: Callable[[Figures], None]) -> Seen:
        """Wait until all devices have ended."""
        seen, told, count = Seen(), 0, len(self._names)
        while True:
            ended = len(self.codes) == count  # before the last look at what they told
            for name in self._names:
                for event in self._events(name):
                    seen.add(name, event)
            while told < rounds and (ended or seen.over(told + 1, count)):
                on_round(seen.figures(told))
                told += 1
            if ended:
                return seen
            done = sum(len(found) for found in seen.personalized.values())
            at = min(max(seen.base, default=0) + 1, rounds)
            say(f"round {at} of {rounds}", min(1.0, done / (rounds * count)))
            time.sleep(0.1)
            self._poll()

    def _place(self, name: str) -> Path:
        return self.folder / "devices" / name

    def _start(self, name: str) -> None:
        place = self._place(name)
        private_folder(place)
        arguments = ["device", "--server", self.url, "--bundle", self.folder / "bundle", "--user", name]
        arguments += ["--data", self.folder / "messages.jsonl", "--state", place, "--engine", self.engine]
        arguments += ["--events", place / "events.jsonl", "--json"]
        arguments += ["--allow-no-privacy"] if self.delta is None else ["--max-delta", self.delta]
        order = {"arguments": [str(a) for a in arguments], "output": str(place / "summary.json")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        self._names.append(name)

    def _poll(self) -> None:
        assert self._process.stdout is not None
        if self._process.poll() is not None:
            raise DeviceError("the devices' processes failed", mend=f"see {self.folder / 'devices.log'}")
        *lines, self._rest = (self._rest + (self._process.stdout.read() or b"")).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ended" in said:
                self.codes[said["ended"]] = said["code"]
            else:
                self._pids[said["started"]] = said["pid"]

    def _events(self, name: str) -> Iterator[dict[str, Any]]:
        """The events that are new."""
        try:
            with open(self._place(name) / "events.jsonl", "rb") as file:
                file.seek(self._read.get(name, 0))
                *lines, _ = file.read().split(b"\n")
        except FileNotFoundError:
            return
        self._read[name] = self._read.get(name, 0) + sum(len(line) + 1 for line in lines)
        for line in lines:
            yield json.loads(line)


def _own_memory_mb(pid: int) -> float | None:
    """Memory that a process does not share, in MB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    own = [int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:"))]
    return sum(own) * 1024 / 1e6


def _free_memory_mb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable:")), None
    )
