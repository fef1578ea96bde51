"""Starts a process for each system, lets them take turns, and puts what they measured together."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environments import EnvironmentFailed, python_of
from measure import machine

from peer_systems import given, reference
from peer_systems.models import WORKLOADS, Workload
from peer_systems.systems import EAGER, SYSTEMS, System
from pfl_mobile.engines.compare import relative_error

_BENCH = Path(__file__).resolve().parents[1]
Say = Callable[[str], None]


class SystemFailed(Exception):
    """A system cannot do what it was asked; the message is what it said, in one line."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        rounds: turns of each system.
        seconds: length of a turn; of a system whose step takes longer, one step.
        patience: seconds of steps after which a system takes no more turns on a workload.
    """

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    systems: tuple[str, ...] = tuple(SYSTEMS)
    rounds: int = 12
    seconds: float = 0.25
    patience: float = 15.0


class Process:
    """A system's process, which answers one request at a time (``worker``)."""

    def __init__(self, python: Path, module: str, log: Path, core: int) -> None:
        """Start it, on one core and with at most three quarters of the machine's memory.

        Raises:
            SystemFailed: its runtime cannot be imported.
        """
        paths = [str(_BENCH)]
        if python == Path(sys.executable):
            paths += [str(_BENCH.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.module, self.log = module, log
        with log.open("ab") as file:
            self.child = subprocess.Popen(
                [str(python), "-m", "peer_systems.worker", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                preexec_fn=lambda: _held(core),
                text=True,
            )
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """What it answers.

        Raises:
            SystemFailed: it failed, or it ended.
        """
        assert self.child.stdin is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self.child.stdin, flush=True)
        except BrokenPipeError:
            raise SystemFailed(self._ended()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SystemFailed(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SystemFailed(answer["error"])
        return answer

    def _ended(self) -> str:
        code = self.child.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"the process ended ({how}); it said last: {last}"

    def end(self) -> None:
        """End it, whatever it does."""
        self.child.kill()
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.child.wait()


def _held(core: int) -> None:
    os.sched_setaffinity(0, {core})
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextlib.contextmanager
def started(python: Path, module: str, log: Path, core: int) -> Iterator[Process]:
    """A process that is ended at the end of the block."""
    process = Process(python, module, log, core)
    try:
        yield process
    finally:
        process.end()


@dataclass
class Row:
    """What is known of one system on one workload.

    Attributes:
        failure: why it cannot; None where it can.
        loaded: what the worker said after loading.
        times: milliseconds of each step of its turns.
        error: largest relative difference of a gradient.
        worst: name of the parameter with it.
        versions: of its packages.
    """

    failure: str | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    error: float | None = None
    worst: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


class Comparison:
    """One workload and all systems."""

    def __init__(
        self, workload: Workload, pythons: Mapping[str, Path], folder: Path, options: Options, say: Say
    ) -> None:
        """Take the systems that have a Python; those without one are the caller's to report."""
        self.workload, self.pythons, self.folder, self.options = workload, pythons, folder, options
        self.rows = {name: Row() for name in pythons}
        self._say = say
        self._core = min(os.sched_getaffinity(0))
        self._done: dict[tuple[Path, str], str | None] = {}

    def say(self, text: str) -> None:
        """Tell the progress."""
        self._say(f"{self.workload.name}: {text}")

    def run(self) -> dict[str, Row]:
        """Measure; a system that fails says why in its row, and the others go on."""
        given.write(self.workload, self.folder)
        here = Path(sys.executable)
        self.say("expected gradients, in float64")
        if (failure := self._written(here, "reference")) is not None:
            raise SystemFailed(failure)
        for system in self._left():
            for module in system.prepared:
                python = self.pythons[system.name] if module == system.name else here
                if (failure := self._written(python, module)) is not None:
                    self._fail(system.name, failure)
                    break
        with contextlib.ExitStack() as stack:
            processes: dict[str, Process] = {}
            for system in self._left():
                self.say(f"load {system.name}")
                with self._noted(system.name):
                    process = stack.enter_context(
                        started(self.pythons[system.name], system.name, self._log(system.name), self._core)
                    )
                    row = self.rows[system.name]
                    row.versions = process.versions
                    row.loaded = process.ask("load", workload=self.workload.name, folder=str(self.folder))
                    processes[system.name] = process
            self._take_turns(processes)
            self.say("gradients")
            for name, process in processes.items():
                with self._noted(name):
                    self._compare(name, process)
        return self.rows

    def _left(self) -> list[System]:
        return [SYSTEMS[name] for name, row in self.rows.items() if row.failure is None]

    def _log(self, module: str) -> Path:
        return self.folder / f"{module}.log"

    def _fail(self, name: str, reason: str) -> None:
        self.rows[name].failure = reason
        self.say(f"{name} cannot: {reason}")

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        try:
            yield
        except SystemFailed as error:
            self._fail(name, str(error))

    def _written(self, python: Path, module: str) -> str | None:
        """Let a file prepare what systems load, once; why it cannot."""
        if (python, module) not in self._done:
            self.say(f"prepare {module}")
            try:
                with started(python, module, self._log(f"prepare-{module}"), self._core) as process:
                    process.ask("prepare", workload=self.workload.name, folder=str(self.folder))
                self._done[python, module] = None
            except SystemFailed as error:
                self._done[python, module] = str(error)
        return self._done[python, module]

    def _take_turns(self, processes: Mapping[str, Process]) -> None:
        for number in range(self.options.rounds):
            self.say(f"round {number + 1} of {self.options.rounds}")
            names = list(processes)
            turn = number % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                row = self.rows[name]
                if row.failure is not None or sum(row.times) > 1000 * self.options.patience:
                    continue
                last = (row.times or row.loaded["ms"])[-1]
                with self._noted(name):
                    count = max(1, round(1000 * self.options.seconds / last))
                    row.times += processes[name].ask("steps", count=count)["ms"]

    def _compare(self, name: str, process: Process) -> None:
        row = self.rows[name]
        if row.failure is not None:
            return
        out = self.folder / f"{name}.npz"
        process.ask("gradients", out=str(out))
        with np.load(out) as got, np.load(self.folder / reference.FILE) as want:
            row.error, row.worst = gradient_error(got, want)


def gradient_error(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Largest difference of a gradient, relative to the largest entry of that tensor, and the tensor's name.

    Raises:
        SystemFailed: gradients are missing, or have another shape.
    """
    for name, value in want.items():
        if name not in got or got[name].shape != value.shape:
            raise SystemFailed(f"no gradient {name} of shape {list(value.shape)}")
    errors = {name: relative_error(got[name], value) for name, value in want.items()}
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def compare(options: Options, say: Say) -> dict[str, Any]:
    """Everything, as plain values for JSON.

    Raises:
        SystemFailed: PyTorch cannot give the gradients to compare with.
    """
    pythons: dict[str, Path] = {}
    absent: dict[str, str] = {}
    for name in options.systems:
        try:
            pythons[name] = python_of(name, SYSTEMS[name].wanted, say)
        except EnvironmentFailed as error:
            absent[name] = f"not installed: {str(error).splitlines()[-1]}"
    result: dict[str, Any] = {"machine": machine(), "workloads": {}, "versions": {}}
    for name in options.workloads:
        with tempfile.TemporaryDirectory(prefix="pfl-bench-") as folder:
            rows = Comparison(WORKLOADS[name], pythons, Path(folder), options, say).run()
        result["versions"].update({system: row.versions for system, row in rows.items() if row.versions})
        rows |= {system: Row(failure=reason) for system, reason in absent.items()}
        result["workloads"][name] = summary(options.systems, rows)
    return result


def summary(systems: Sequence[str], rows: Mapping[str, Row]) -> dict[str, Any]:
    """Medians, ratios to PyTorch eager where it ran, and sizes in MB (10^6 bytes)."""
    eager = rows.get(EAGER)
    base = statistics.median(eager.times) if eager is not None and eager.times else None
    found: dict[str, Any] = {}
    for name in systems:
        row = rows[name]
        if row.failure is not None:
            found[name] = {"failure": row.failure}
            continue
        middle = statistics.median(row.times)
        found[name] = {
            "ms": round(middle, 3),
            "ms_min": round(min(row.times), 3),
            "steps": len(row.times),
            "ratio": None if base is None else round(middle / base, 3),
            "anonymous_mb": round(row.loaded["anonymous_bytes"] / 1e6, 1),
            "mapped_mb": round(row.loaded["mapped_bytes"] / 1e6, 1),
            "file_mb": round(row.loaded["file_bytes"] / 1e6, 2),
            "first_step_ms": round(row.loaded["ms"][0], 1),
            "gradient_error": row.error,
            "worst": row.worst,
        }
    return found
