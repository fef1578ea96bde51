"""What the driver asks of one system in one run, and what the run reports back.

A run is a process of its own: ``python -m sim.<system> JOB.json``. It trains rounds until both its time is up and the
models can be compared, writes the model after the workload's number of rounds, and a report. Needs numpy only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """One run of one system.

    Attributes:
        workload: name of the workload.
        data: folder that ``workloads.prepare`` wrote.
        out: folder for the report and the model.
        processes: how many processes may train, one thread each.
        rounds: the model is written after this many rounds.
        seconds: go on with rounds for at least this long after the first, which warms up.
        settings: choices of the system's own.
    """

    workload: str
    data: str
    out: str
    processes: int
    rounds: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | None = None) -> Job:
        """The job in the file that the first argument names."""
        return cls(**json.loads(Path(path or sys.argv[1]).read_text()))

    def save(self) -> Path:
        """Write the job into its folder."""
        path = Path(self.out) / "job.json"
        path.write_text(json.dumps(asdict(self)))
        return path


class Meter:
    """Takes the times of a run. CLOCK_MONOTONIC is the same for all processes of a machine."""

    def __init__(self, job: Job) -> None:
        """Nothing is timed yet."""
        self.job = job
        self._first: float | None = None
        self._start = 0.0
        self._window = (0.0, 0.0)
        self._seconds = 0.0
        self._updates = 0
        self._rounds = 0

    def first_update(self, at: float | None = None) -> None:
        """A client update is there (``time.monotonic()`` of it, by default now); later ones are ignored."""
        if self._first is None:
            self._first = time.monotonic() if at is None else at

    def round_done(self, updates: int, values: Callable[[], Mapping[str, np.ndarray]]) -> bool:
        """A round is merged. Whether there should be another; writes the model when it is time to.

        Args:
            updates: client updates in this round.
            values: gives the merged model by name.
        """
        now = time.monotonic()
        self.first_update(now)
        self._rounds += 1
        if self._rounds > 1:
            self._updates += updates
            self._seconds += now - self._start
            self._window = (self._window[0] or self._start, now)
        if self._rounds == self.job.rounds:
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in values().items()}
            np.savez(Path(self.job.out) / "model.npz", **arrays)
        self._start = time.monotonic()
        return self._rounds < max(self.job.rounds, 2) or self._seconds < self.job.seconds

    def report(self, packages: tuple[str, ...], **settings: Any) -> None:
        """Write ``report.json``: times, rates, versions of ``packages``, the settings that were used."""
        found = {"python": sys.version.split()[0]}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
        report = {
            "first": self._first,
            "rounds": self._rounds,
            "updates": self._updates,
            "seconds": self._seconds,
            "window": self._window,
            "versions": found,
            "settings": settings,
        }
        (Path(self.job.out) / "report.json").write_text(json.dumps(report))
