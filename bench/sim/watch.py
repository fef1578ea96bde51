"""Memory and processor time of everything that one run started, seen from outside (Linux)."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

MARK = "PFL_BENCH_RUN"
_TICKS = os.sysconf("SC_CLK_TCK")
#: Time between two looks at the memory of a run: each takes some ten milliseconds, and stops the process meanwhile.
_MEMORY_SECONDS = 1.0


def marked(token: str) -> set[int]:
    """Processes whose environment carries the run's token: Ray's leave the process group, not the environment."""
    wanted = f"{MARK}={token}".encode()
    found = set()
    for entry in os.scandir("/proc"):
        # a process may end while it is looked at, or belong to somebody else
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in Path(entry.path, "environ").read_bytes():
                found.add(int(entry.name))
    return found


class Watch(threading.Thread):
    """Samples the run's processes until :meth:`stop`.

    Attributes:
        peak_mb: largest sum of proportional set sizes (pages that processes share count once), in MiB.
    """

    def __init__(self, token: str, interval: float = 0.2) -> None:
        """Watch the processes marked with ``token``."""
        super().__init__(daemon=True)
        self.token, self.interval, self.peak_mb = token, interval, 0.0
        self._cpu: dict[int, float] = {}
        self._looked = -math.inf
        self._samples: list[tuple[float, float]] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self._stopped.is_set():
            self.sample(memory=time.monotonic() - self._looked >= _MEMORY_SECONDS)
            self._stopped.wait(self.interval)

    def sample(self, *, memory: bool = True) -> None:
        """One look at all processes, and at their memory, for which the kernel walks all pages."""
        total = 0
        for pid in marked(self.token):
            # it may have ended meanwhile
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
                if memory:
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += int(rollup.split("\nPss:")[1].split()[0])
        if memory:
            self._looked = time.monotonic()
        self.peak_mb = max(self.peak_mb, total / 1024)
        self._samples.append((time.monotonic(), sum(self._cpu.values())))

    def stop(self) -> None:
        """End sampling."""
        self._stopped.set()
        self.join()

    def cpu_seconds(self, start: float, end: float) -> float:
        """Processor time of all processes between two readings of ``time.monotonic()``."""
        times, used = np.array(self._samples).T
        return float(np.interp(end, times, used) - np.interp(start, times, used))


def end_all(token: str) -> None:
    """Kill what is left of a run."""
    for pid in marked(token):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
