"""Many devices on one machine, each a process of its own that runs ``pfl device``.

    python -m pfl_mobile.cli.fleet MODULE ...

imports the modules, then starts a device for every line on standard input, ``{"arguments": [...], "output": FILE}``,
by forking: the devices share the memory of what was imported, as Android's apps share that of the zygote. Where a
process that imported so much may not be forked (not Linux), each device is started afresh. It prints
``{"started": n, "pid": ...}`` and, when a device has ended, ``{"ended": n, "code": ...}``. When standard input is
closed, the devices are ended too, so that none outlives who started it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_mobile.files.atomic import open_private

#: Runs ``pfl`` with the arguments of this process.
PFL = "import sys; from pfl_mobile.cli import main; sys.exit(main())"


@dataclass
class Fleet:
    """The devices that run.

    Attributes:
        fork: whether devices are forked off this process.
        running: number of a device by its process.
        started: how many were.
    """

    fork: bool
    running: dict[int, int] = field(default_factory=dict)
    started: int = 0
    _processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, arguments: list[str], output: Path) -> int:
        """Start a device; returns its process id."""
        if self.fork:
            # Blocked until the child has let go of this process's handler: what the handler raises in the middle of
            # a fork is lost, and with it the signal.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                pid = os.fork()
                if pid == 0:
                    _device(arguments, output)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        else:
            with (
                open(output, "wb", opener=open_private) as out,
                open(output.with_suffix(".log"), "wb", opener=open_private) as log,
            ):
                process = subprocess.Popen([sys.executable, "-c", PFL, *arguments], stdout=out, stderr=log)
            pid = process.pid
            self._processes[pid] = process
        self.running[pid], self.started = self.started, self.started + 1
        return pid

    def ended(self) -> list[tuple[int, int]]:
        """Devices that have ended since the last call, with their exit codes (negative: by that signal)."""
        found = []
        for pid in list(self.running):
            if self.fork:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done == 0:
                    continue
                code: int | None = os.waitstatus_to_exitcode(status)
            else:
                code = self._processes[pid].poll()
            if code is not None:
                found.append((self.running.pop(pid), code))
        return found

    def end(self) -> None:
        """End all devices; each can go on later."""
        for pid in self.running:
            os.kill(pid, signal.SIGTERM)


def _device(arguments: list[str], output: Path) -> None:
    """What a forked process does; it never returns."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        null = os.open(os.devnull, os.O_RDONLY)
        out, log = (
            open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for path in (output, output.with_suffix(".log"))
        )
        for number, fd in enumerate((null, out, log)):
            os.dup2(fd, number)
        from pfl_mobile.cli import main

        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        # Nothing of the parent's may run in this process, its cleaning up least of all.
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
    finally:
        os._exit(code)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def serve(fleet: Fleet) -> None:
    """Start what the lines of standard input say, until it is closed and all devices have ended."""
    source, waiting = sys.stdin.fileno(), b""
    while True:
        for number, code in fleet.ended():
            _say(ended=number, code=code)
        if not select.select([source], [], [], 0.05)[0]:
            continue
        piece = os.read(source, 1 << 16)
        if not piece:
            fleet.end()
            return
        *lines, waiting = (waiting + piece).split(b"\n")
        for line in lines:
            order = json.loads(line)
            number = fleet.started
            _say(started=number, pid=fleet.start(order["arguments"], Path(order["output"])))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    running = Fleet(fork=sys.platform == "linux")
    try:
        serve(running)
    finally:
        running.end()
