"""The process of one system: answers lines of JSON, one for each line that it reads.

    python -m peer_systems.worker MODULE

Imports the system's runtime, says ``{"versions": {...}}``, and then takes one of these, with the name of the workload
and the folder of the run's files:

    {"do": "prepare", "workload": W, "folder": F}           {}
    {"do": "load", "workload": W, "folder": F}              {"anonymous_bytes": ..., "mapped_bytes": ...,
                                                             "file_bytes": ..., "ms": [...]}
    {"do": "steps", "count": N}                             {"ms": [...]}
    {"do": "gradients", "out": FILE}                        {}, and the file (npz)

A failure is ``{"error": ...}``, and ends the process. What runtimes print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measure
import numpy as np

from peer_systems.models import WORKLOADS
from peer_systems.running import Running

#: Seconds of a first step after which memory is not looked at in a second one.
LONG = 5.0


class Worker:
    """Does what a line asks."""

    def __init__(self, module: Any) -> None:
        """Nothing is loaded from ``module``, which is as :mod:`peer_systems.running` says."""
        self.module = module
        self.running: Running | None = None

    def prepare(self, workload: str, folder: str) -> dict[str, Any]:
        """Write the system's files."""
        self.module.prepare(WORKLOADS[workload], Path(folder))
        return {}

    def load(self, workload: str, folder: str) -> dict[str, Any]:
        """Load and make the first steps, and see what that adds to memory."""

        def work() -> tuple[Running, list[float]]:
            running = self.module.load(WORKLOADS[workload], Path(folder))
            first = measure.timed(running.step, 1)
            return running, first + (measure.timed(running.step, 1) if first[0] < LONG else [])

        (self.running, seconds), added = measure.watched(work)
        files = self.module.files(WORKLOADS[workload], Path(folder))
        return {
            "file_bytes": sum(file.stat().st_size for file in files),
            "anonymous_bytes": added.anonymous,
            "mapped_bytes": added.mapped,
            "ms": [1000 * s for s in seconds],
        }

    def steps(self, count: int) -> dict[str, Any]:
        """Make steps."""
        return {"ms": [1000 * s for s in measure.timed(self._loaded().step, count)]}

    def gradients(self, out: str) -> dict[str, Any]:
        """Write the gradients of a step."""
        np.savez(out, **self._loaded().gradients())  # type: ignore[arg-type]
        return {}

    def _loaded(self) -> Running:
        if self.running is None:
            raise RuntimeError("nothing is loaded")
        return self.running

    def answer(self, line: str) -> dict[str, Any]:
        """What a line asks for."""
        asked = json.loads(line)
        known: dict[str, Callable[..., dict[str, Any]]] = {
            name: getattr(self, name) for name in ("prepare", "load", "steps", "gradients")
        }
        return known[asked.pop("do")](**asked)


def said(error: BaseException) -> str:
    """An exception in one line, which has a place in a table."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def main() -> None:
    """Serve one system on one core."""
    measure.stay_on(1)
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # runtimes write to both
        try:
            module: Any = importlib.import_module(f"peer_systems.{sys.argv[1]}")
            module.runtime()
            worker = Worker(module)
            print(
                json.dumps({"versions": {name: version(name) for name in getattr(module, "PACKAGES", ())}}),
                file=out,
            )
            for line in sys.stdin:
                print(json.dumps(worker.answer(line)), file=out)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": said(error)}), file=out)
            sys.exit(1)


if __name__ == "__main__":
    main()
