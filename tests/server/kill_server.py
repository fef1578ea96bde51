"""A process that goes on with a federation and kills itself at a point of a merge: see test_kill.py.

    python -m tests.server.kill_server FOLDER NUMBER NOW

does a step of the coordinator, and ends by SIGKILL when the point of this number, counted from 0, is reached.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pfl_mobile.bundle import Bundle
from pfl_mobile.privacy import SimulatedNoise
from pfl_server.coordinator import Coordinator
from pfl_server.services import Services
from pfl_server.settings import ServerSettings


class Repeating:
    """Noise that is the same in every process, as only the merge that is published counts."""

    secure = False

    def normal(self, size):
        return SimulatedNoise((1, size)).normal(size)


def main(folder: Path, number: int, now: float, database: str | None = None) -> None:
    settings = ServerSettings(bundle=folder / "bundle", data=folder / "data", database=database)
    services = Services.open(settings, Bundle.open(folder / "bundle"), clock=lambda: now)
    services.runtime.noise = Repeating()
    left = number

    def die(point: str) -> None:
        nonlocal left
        if left == 0:
            print(point, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    Coordinator(services, checkpoint=die).step()
    services.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
