"""Processes that go on with a federation and kill themselves at a point of a merge: see test_kill.py.

    python -m tests.server.kill_server

reads lines of ``NUMBER NOW FOLDER``. For each a new process, forked before anything was opened, does a step of the
coordinator, and ends by SIGKILL when the point of this number, counted from 0, is reached. Answers with the exit
status and the point.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from pfl_mobile.bundle import Bundle
from pfl_mobile.privacy.accounting_events import dp_accounting
from pfl_server.rounds.coordinator import Coordinator
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from tests.server.basics import RepeatingNoise

#: The same in every process: it belongs to the round.
NOISE = RepeatingNoise(1)


def step(folder: Path, number: int, now: float, pipe: int) -> None:
    settings = ServerSettings(bundle=folder / "bundle", data=folder / "data")
    services = Services.open(settings, Bundle.open(folder / "bundle"), clock=lambda: now)
    services.runtime.noise = NOISE
    left = number

    def die(point: str) -> None:
        nonlocal left
        if left == 0:
            os.write(pipe, point.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    Coordinator(services, checkpoint=die).step()
    services.close()


def main() -> None:
    dp_accounting()  # otherwise imported by every process, for longer than a merge takes
    for line in sys.stdin:
        number, now, folder = line.rstrip("\n").split(" ", 2)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                step(Path(folder), int(number), float(now), writer)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        with open(reader) as told:
            point = told.read()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), point, flush=True)


if __name__ == "__main__":
    main()
