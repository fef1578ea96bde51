"""The process that programs nobody vouches for run in.

It loads the programs that its first frame names, runs what the next ones ask for, and answers each. A program that
corrupts memory, recurses, loops or allocates without end can end this process only; `isolated` has the other side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError, PflError
from .base import EngineSession
from .frames import BrokenFrameError, receive, send
from .registry import load_engine

_MOST_INPUTS = 1 << 40  # the parent is trusted


def limit_this_process(more_bytes: int, log_bytes: int = 16 << 20) -> None:
    """Let this process allocate ``more_bytes`` from now on, write no larger file, and leave no core file.

    Memory is limited where the system can tell what is in use (Linux).
    """
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit of the parent holds there too
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes, log_bytes))
    status = Path("/proc/self/status")
    if not status.exists():
        return
    used = next(line for line in status.read_text().splitlines() if line.startswith("VmData"))
    limit = int(used.split()[1]) * 1024 + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def serve(source: IO[bytes], to: IO[bytes]) -> None:
    """Load what the first frame says and answer frames until the other side ends."""
    session: EngineSession | None = None
    while True:
        try:
            head, arrays = receive(source, _MOST_INPUTS)
        except BrokenFrameError:
            return
        try:
            if session is None:
                session = _load(head)
                send(to, {})
                continue
            names = [spec.name for spec in session.programs[head["program"]].inputs]
            found = session.run(head["program"], dict(zip(names, arrays, strict=True)))
            send(to, {}, list(found.values()))
        except PflError as error:
            send(to, {"error": [error.code, error.message, error.mend]})
        except MemoryError:
            send(to, {"error": ["ProgramDiedError", "", ""], "memory": True})


def _load(head: dict[str, Any]) -> EngineSession:
    programs: Sequence[ProgramSpec] = [ProgramSpec.model_validate(spec) for spec in head["programs"]]
    loader = load_engine(head["engine"])
    if head["memory"]:
        limit_this_process(head["memory"])
    try:
        return loader(head["files"], programs, head["threads"])
    except PflError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # whatever a runtime raises for a file that is not one of its own
        raise EngineError(f"{type(error).__name__}: {error}", mend="export the bundle again") from error


def main() -> None:
    """Serve on standard input and output; what the runtimes print goes to standard error."""
    source, to = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    serve(source, to)
    to.flush()
    os._exit(0)  # a damaged program may hang or crash while its runtime cleans up
