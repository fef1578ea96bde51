"""Runs the systems one after another, in turns, and puts their reports together."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environments import EnvironmentFailed, python_of
from measure import machine

from sim.job import Job
from sim.requirements import wanted
from sim.watch import MARK, Watch, end_all
from sim.workloads import WORKLOADS, Prepared, prepare

SYSTEMS = ("pfl_mobile", "pfl_research", "flower", "sequential")
MODULES = {"pfl_mobile": "ours"}

#: The settings that measured best; ``--tune`` measures the candidates again.
SETTINGS: dict[str, dict[str, Any]] = {
    "pfl_mobile": {},
    "pfl_research": {"sorted": True, "optimizer": "fused"},
    "flower": {"supernodes": "cohort", "cpus": 1, "pull": 0.01},
    "sequential": {},
}
CANDIDATES: dict[str, tuple[dict[str, Any], ...]] = {
    "pfl_research": tuple({"sorted": s, "optimizer": o} for s in (True, False) for o in ("fused", "plain")),
    "flower": (
        {"supernodes": "cohort", "cpus": 1, "pull": 0.01},
        {"supernodes": "cohort", "cpus": 1, "pull": 0.1},
        {"supernodes": "cohort", "cpus": 0.5, "pull": 0.01},
        {"supernodes": "clients", "cpus": 1, "pull": 0.01},
    ),
}
_REPOSITORY = Path(__file__).resolve().parents[2]
_PREPARED_ROUNDS = {"cnn": 12}
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        seconds: shortest time of one run after its warm-up round.
        rounds: rounds until models are compared; None takes each workload's own number.
        clients, cohort: sizes other than the workloads'.
    """

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    systems: tuple[str, ...] = SYSTEMS
    processes: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    repeats: int = 3
    seconds: float = 3.0
    rounds: int | None = None
    clients: int | None = None
    cohort: int | None = None
    tune: bool = False


class RunFailed(Exception):
    """A system's process failed; the message ends with what it wrote last."""


def run_one(system: str, python: Path, job: Job) -> dict[str, Any]:
    """One run in a fresh process.

    Returns:
        the report with ``startup_s``, ``peak_mb``, ``updates_per_s`` and ``updates_per_cpu_s`` (None for a short run).

    Raises:
        RunFailed: it ended with an error, without a report, or not in time.
    """
    out, token = Path(job.out), uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: token,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(_REPOSITORY / "bench"), str(_REPOSITORY)]),
    }
    path = job.save()
    watch = Watch(token)
    with (out / "log.txt").open("w") as log:
        start = time.monotonic()
        command = [str(python), "-m", f"sim.{MODULES.get(system, system)}", str(path)]
        process = subprocess.Popen(
            command, env=environment, cwd=out, stdout=log, stderr=log, start_new_session=True
        )
        watch.start()
        try:
            code: int | None = process.wait(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            watch.stop()
            end_all(token)
            process.wait()
    said = (out / "log.txt").read_text(errors="replace").strip()[-600:]
    if code is None:
        raise RunFailed(f"not done after {_TIMEOUT:.0f} s: {said}")
    if code or not (out / "report.json").exists() or not (out / "model.npz").exists():
        raise RunFailed(f"exit status {code}: {said}")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    report["startup_s"] = report["first"] - start
    report["peak_mb"] = watch.peak_mb
    report["updates_per_s"] = report["updates"] / report["seconds"]
    used = watch.cpu_seconds(*report["window"])
    # processor time is sampled: of a shorter window nothing is known
    report["updates_per_cpu_s"] = report["updates"] / used if report["seconds"] >= 1 and used else None
    return report


def compare(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """All workloads and systems; what failed is in ``errors`` and has no entry among the results."""
    errors: list[dict[str, str]] = []
    pythons: dict[str, Path] = {}
    for system in options.systems:
        try:
            pythons[system] = python_of(system, wanted(system), say)
        except EnvironmentFailed as error:
            errors.append({"system": system, "workload": "*", "error": f"no environment: {error}"})
    result: dict[str, Any] = {
        "machine": machine(),
        "processes": options.processes,
        "threads_per_process": 1,
        "repeats": options.repeats,
        "workloads": {},
        "ratios": {},
        "versions": {},
        "settings": {},
    }
    for name in options.workloads:
        with tempfile.TemporaryDirectory(prefix="pfl-bench-") as folder:
            bench = _Bench(name, options, pythons, Path(folder), say, errors)
            result["workloads"][name] = bench.measure()
            result["ratios"][name] = bench.ratios()
            result["settings"][name] = bench.settings
            result["versions"].update(bench.versions)
    diffs = [w["max_model_diff"] for w in result["workloads"].values() if w["max_model_diff"] is not None]
    result["max_model_diff"] = max(diffs, default=None)
    result["errors"] = errors
    return result


#: Clients and cohort of each row of the population's table; the last shows what a cohort costs.
POPULATIONS = ((1_000, 50), (10_000, 50), (100_000, 50), (1_000_000, 50), (1_000_000, 500))


def populations(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Time and memory of ours for populations that are generated when asked for."""
    rows: list[dict[str, Any]] = []
    errors = []
    for clients, cohort in POPULATIONS:
        say(f"population of {clients}, cohort of {cohort}")
        with tempfile.TemporaryDirectory(prefix="pfl-bench-") as out:
            settings = {"clients": clients, "cohort": cohort}
            job = Job("mlp", "", out, options.processes, 1, options.seconds, settings)
            try:
                report = run_one("population", Path(sys.executable), job)
            except RunFailed as error:
                errors.append({"clients": clients, "cohort": cohort, "error": str(error)})
                continue
        rounds = report["rounds"] - 1
        rows.append(
            {
                "clients": clients,
                "cohort": cohort,
                "startup_s": round(report["startup_s"], 3),
                "round_s": round(report["seconds"] / rounds, 3),
                "updates_per_s": round(report["updates_per_s"], 2),
                "peak_mb": round(report["peak_mb"], 1),
                "settings": report["settings"],
            }
        )
    return {"machine": machine(), "processes": options.processes, "population": rows, "errors": errors}


class _Bench:
    """One workload."""

    def __init__(
        self,
        name: str,
        options: Options,
        pythons: dict[str, Path],
        folder: Path,
        say: Callable[[str], None],
        errors: list[dict[str, str]],
    ) -> None:
        self.name, self.options, self.folder, self.say, self.errors = name, options, folder, say, errors
        self.pythons = dict(pythons)
        self.workload = WORKLOADS[name]
        self.settings = {s: SETTINGS[s] for s in pythons}
        self.versions: dict[str, dict[str, str]] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {s: [] for s in pythons}
        self.models: dict[str, dict[str, np.ndarray]] = {}
        self.initial: dict[str, np.ndarray] = {}

    def measure(self) -> dict[str, Any]:
        """All repeats of all systems; the systems take turns, and every repeat begins with another one."""
        self.say(f"{self.name}: prepare the data")
        rounds = _PREPARED_ROUNDS.get(self.name, 40)
        o = self.options
        data = self.folder / "data"
        digest = prepare(self.workload, data, rounds=rounds, clients=o.clients, cohort=o.cohort)
        self.initial = Prepared(self.name, data).initial()
        if o.tune:
            self.tune()
        for repeat in range(o.repeats):
            systems = list(self.pythons)
            turn = repeat % max(len(systems), 1)
            for system in systems[turn:] + systems[:turn]:
                report = self.run(system, self.settings[system], f"repeat {repeat + 1} of {o.repeats}")
                if report is not None:
                    self.runs[system].append(report)
        rounding = self.rounding()
        sizes = np.load(data / "sizes.npy")
        return {
            **{s: self.summary(s) for s in self.runs if self.runs[s]},
            "max_model_diff": self.largest_difference(),
            "rounding_diff": rounding,
            "model_diff": {f"{a}/{b}": _distance(x, y) for (a, x), (b, y) in self.pairs()},
            "model_change": max((_distance(m, self.initial) for m in self.models.values()), default=None),
            "model_rounds": o.rounds or self.workload.rounds,
            "clients": len(sizes),
            "cohort": o.cohort or self.workload.cohort,
            "batch": self.workload.batch,
            "mean_examples": round(float(sizes.mean()), 2),
            "data_sha256": digest,
        }

    def rounding(self) -> float | None:
        """How far the plain loop ends from itself when it begins one rounding beside the initial values.

        No two systems with kernels of their own can agree better: where a ReLU or a maximum flips, a difference
        in the last bit becomes one in the model.
        """
        before = self.models.get("sequential")
        if (
            before is None
            or self.run("sequential", {"nudge": True}, "one rounding aside", seconds=0.0) is None
        ):
            return None
        after, self.models["sequential"] = self.models["sequential"], before
        return _distance(before, after)

    def run(
        self, system: str, settings: dict[str, Any], what: str, seconds: float | None = None
    ) -> dict[str, Any] | None:
        """One run; a failure is recorded, and the system is not run again on this workload."""
        if system not in self.pythons:
            return None
        self.say(f"{self.name}: {system}, {what}")
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            job = Job(
                workload=self.name,
                data=str(self.folder / "data"),
                out=out,
                processes=self.options.processes,
                rounds=self.options.rounds or self.workload.rounds,
                seconds=self.options.seconds if seconds is None else seconds,
                settings=settings,
            )
            try:
                report = run_one(system, self.pythons[system], job)
                with np.load(Path(out) / "model.npz") as model:
                    self.models[system] = self.checked(dict(model))
            except RunFailed as error:
                self.errors.append({"system": system, "workload": self.name, "error": str(error)})
                del self.pythons[system]
                return None
        self.versions[system] = report["versions"]
        return report

    def checked(self, model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model, if it has all trained tensors in their shapes and no value that is not finite."""
        if {k: v.shape for k, v in model.items()} != {k: v.shape for k, v in self.initial.items()}:
            raise RunFailed(f"its model has other tensors: {sorted(model)}, not {sorted(self.initial)}")
        if not all(np.isfinite(v).all() for v in model.values()):
            raise RunFailed("its model is not finite")
        return model

    def tune(self) -> None:
        """Choose the settings of each system that are fastest in one run."""
        for system, candidates in CANDIDATES.items():
            rates = []
            for settings in candidates:
                report = self.run(system, settings, f"try {settings}")
                rates.append(report["updates_per_s"] if report else 0.0)
                self.say(f"{self.name}: {system} {settings}: {rates[-1]:.1f} updates/s")
            if system in self.pythons:
                self.settings[system] = candidates[int(np.argmax(rates))]

    def summary(self, system: str) -> dict[str, Any]:
        """Medians over the repeats (the largest peak), and the single rates."""
        runs = self.runs[system]

        def median(key: str, digits: int) -> float | None:
            known = [r[key] for r in runs if r[key] is not None]
            return round(statistics.median(known), digits) if known else None

        return {
            "updates_per_s": median("updates_per_s", 2),
            "peak_mb": round(max(r["peak_mb"] for r in runs), 1),
            "startup_s": median("startup_s", 3),
            "updates_per_cpu_s": median("updates_per_cpu_s", 2),
            "updates_per_s_runs": [round(r["updates_per_s"], 2) for r in runs],
            "rounds": [r["rounds"] for r in runs],
            "settings": runs[-1]["settings"],
        }

    def ratios(self) -> dict[str, float]:
        """How many times faster ours is: the median over repeats of the ratio within one repeat."""
        ours = self.runs.get("pfl_mobile", [])
        return {
            system: round(
                statistics.median(
                    a["updates_per_s"] / b["updates_per_s"] for a, b in zip(ours, runs, strict=False)
                ),
                3,
            )
            for system, runs in self.runs.items()
            if system != "pfl_mobile" and ours and runs
        }

    def pairs(self) -> Any:
        """All pairs of systems with their models."""
        return itertools.combinations(self.models.items(), 2)

    def largest_difference(self) -> float | None:
        """Over all pairs of systems and all values."""
        return max((_distance(x, y) for (_, x), (_, y) in self.pairs()), default=None)


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(one[k] - other[k]).max()) for k in one)
