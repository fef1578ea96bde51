"""Damages the programs of a bundle and runs each in a child process, as ``pfl verify`` does.

    python -m tests.fuzz.programs BUNDLE ENGINE COUNT [SEED]

prints one JSON object: how many ended how, and the first exception that is not one of ours. The children are forked
off this process, which has loaded the runtime and nothing else, so that each takes milliseconds and not seconds.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import IsolatedSession, load_engine
from pfl_mobile.engines.child import serve
from pfl_mobile.errors import PflError
from tests.fuzz.mutate import mutate_bytes


class Forked:
    """A child that is forked off this process."""

    def __init__(self, log: IO[bytes]) -> None:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(to_write)
                os.close(from_read)
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                with os.fdopen(to_read, "rb") as source, os.fdopen(from_write, "wb") as to:
                    serve(source, to)
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(to_read)
        os.close(from_write)
        self.stdin: IO[bytes] | None = os.fdopen(to_write, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(from_read, "rb")
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def run(place: Path, engine: str, count: int, seed: int, seconds: float = 20.0) -> dict[str, Any]:
    """Damage the files of ``engine`` in ``count`` ways, one at a time.

    Returns:
        ``outcomes`` (how often each), ``raw`` (the first exception that is not a PflError, or None), ``slowest``
        (seconds).
    """
    rng = random.Random(seed)
    load_engine(engine)
    outcomes: collections.Counter[str] = collections.Counter()
    raw, slowest = None, 0.0
    with Bundle.open(place) as bundle, tempfile.TemporaryDirectory() as folder:
        golden, programs = bundle.golden(), bundle.manifest.programs
        files = bundle.engine_files(engine)
        copies = {path: Path(shutil.copy(path, folder)) for path in set(files.values())}
        given = {use: str(copies[path]) for use, path in files.items()}
        for _ in range(count):
            path = rng.choice(sorted(copies))
            copies[path].write_bytes(mutate_bytes(path.read_bytes(), rng))
            began = time.monotonic()
            try:
                with IsolatedSession(engine, given, programs, 1, seconds=seconds, start=Forked) as session:
                    for name, case in golden.items():
                        session.run(name, case.inputs)
                outcomes["ran"] += 1
            except PflError as error:
                outcomes[error.code] += 1
            except Exception:
                outcomes["raw"] += 1
                raw = raw or traceback.format_exc()
            slowest = max(slowest, time.monotonic() - began)
            shutil.copy(path, copies[path])
    return {"outcomes": dict(outcomes), "raw": raw, "slowest": slowest}


if __name__ == "__main__":
    _, bundle_path, engine_name, how_many, *rest = sys.argv
    print(json.dumps(run(Path(bundle_path), engine_name, int(how_many), int(rest[0]) if rest else 0)))
