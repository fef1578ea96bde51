"""What several benchmarks measure with: memory of this process, time of steps, the machine (Linux).

Only the standard library is imported: peers use it in environments of their own.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def memory(kind: str) -> int:
    """Bytes of this process's memory.

    Args:
        kind: ``VmRSS`` all that is resident, ``VmHWM`` the most that was (``getrusage`` counts the parent, too, that
            started the process), ``RssAnon`` what no file backs, ``RssFile`` pages of mapped files.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{kind}:"))


@dataclass(frozen=True)
class Added:
    """The most that some work added to the memory of its process, in bytes.

    Attributes:
        anonymous: that no file backs.
        mapped: pages of mapped files, which the system can drop and read again.
    """

    anonymous: int
    mapped: int


def watched(work: Callable[[], Result]) -> tuple[Result, Added]:
    """What the work returned, and what it added to the memory of this process at its peak.

    Memory is looked at every 2 ms, which misses what is there for an instant: a runtime that lets its workspace grow
    has the old and the new one until it frees the first. The system knows the most that was resident of both kinds;
    what of it cannot have been pages of files was anonymous.
    """
    kinds = ("RssAnon", "RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # the most that is resident begins anew
    before = [memory(kind) for kind in kinds]
    most = list(before)
    ended = threading.Event()

    def look() -> None:
        most[:] = [max(seen, memory(kind)) for seen, kind in zip(most, kinds, strict=True)]

    def watch() -> None:
        while not ended.wait(0.002):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = work()
    finally:
        ended.set()
        thread.join()
    look()
    most[0] = max(most[0], memory("VmHWM") - most[1])
    return result, Added(*(after - start for after, start in zip(most, before, strict=True)))


def timed(step: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of so many calls, by the clock."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return found


def stay_on(cores: int) -> None:
    """Hold this process, and those it starts, to so many of the cores that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, load at this moment."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(x, 2) for x in os.getloadavg()],
    }
