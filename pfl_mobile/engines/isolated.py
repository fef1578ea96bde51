"""Programs that nobody vouches for, run in a process of their own.

A runtime trusts the file it loads: a damaged or hostile one can make it read or write beside its memory, and the
process ends without a word. So a bundle whose signature was not checked against a pinned key is tried in a child
process first: all its programs are loaded and run there, the golden calls where there are such. What ends that
process (a signal, too much time, too much memory) is a `ProgramDiedError` here. `survive` does that and remembers
the programs that lived; `IsolatedSession` is a session that stays in the child.

This keeps a damaged file from taking the app down with it. It is no sandbox: the child may do what its user may. Pin
the key of bundles of others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np
from typing_extensions import override

from pfl_mobile.bundle.consistency import tensor_bytes
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.registry import version_of

from .. import errors
from ..bundle.manifest import ProgramSpec
from ..errors import EngineError, PflError, ProgramDiedError
from .base import Array, EngineSession
from .frames import BrokenFrameError, receive, send
from .registry import ENGINES

if TYPE_CHECKING:
    from ..bundle.read import Bundle

try:
    import fcntl
except ImportError:  # Windows: two processes may try the same programs at once, which costs time only
    fcntl = None  # type: ignore[assignment]

#: Seconds that loading, or one call of a program, may take in a child.
SECONDS = 300.0
#: Bytes that a child may allocate beyond what its runtime takes, however small the bundle.
LEAST_MEMORY = 2 << 30

_MEND = (
    "do not use this bundle; obtain it again from who made it, or export it again, signed, and pin the key "
    "(--public-key)"
)
#: The child finds the packages where this process does.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pfl_mobile.engines.child import main; main()"
_lived: set[str] = set()


class Process(Protocol):
    """A child that serves frames (`child.serve`)."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self) -> int:
        """Its exit code, negative for a signal, when it has ended."""
        ...


def start_child(log: IO[bytes]) -> Process:
    """A fresh interpreter that serves frames; what it prints goes to ``log``."""
    places = json.dumps([os.path.abspath(place) for place in sys.path if place])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CHILD, places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
    )


class Child:
    """A child process and what it has printed.

    Args:
        start: makes it.
    """

    def __init__(self, start: Callable[[IO[bytes]], Process] = start_child) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        #: None when it has ended.
        self.process: Process | None = start(self.log)

    def close(self) -> None:
        """End it."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.log.close()


class IsolatedSession(EngineSession):
    """A session whose programs run in a child process.

    Args:
        engine: its name.
        files: of the engine, by purpose; absolute paths.
        programs: signatures.
        threads: threads of the runtime, where it can be told.
        memory: bytes that the child may allocate; 0 for no limit.
        seconds: that loading, or one call, may take.
        start: makes the child.
        child: to use in place of one of its own, when its server loads one set of programs after another; it stays
            when the session is closed. Programs that nobody vouches for get one of their own.

    Raises:
        EngineError: the runtime refuses the programs; EngineUnavailableError when it is not installed.
        ProgramDiedError: loading ended the child, or took too much.
    """

    def __init__(
        self,
        engine: str,
        files: Mapping[str, str],
        programs: Sequence[ProgramSpec],
        threads: int | None = None,
        *,
        memory: int = LEAST_MEMORY,
        seconds: float = SECONDS,
        start: Callable[[IO[bytes]], Process] = start_child,
        child: Child | None = None,
    ) -> None:
        super().__init__(programs)
        self.name = engine
        self._seconds, self._memory = seconds, memory
        self._shown = ", ".join(sorted({os.path.basename(file) for file in files.values()}))
        self._own = child is None
        self._child = Child(start) if child is None else child
        head = {
            "engine": engine,
            "files": dict(files),
            "programs": [spec.model_dump(mode="json") for spec in programs],
            "threads": threads,
            "memory": memory,
        }
        try:
            self._ask(head, [], 0, "loading")
        except BaseException:
            self.close()
            raise

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        spec = self.programs[program]
        most = sum(tensor_bytes(output) for output in spec.outputs)
        return self._ask({"program": program}, inputs, most, f"running {program!r}")

    def _ask(self, head: Mapping[str, object], arrays: Sequence[Array], most: int, what: str) -> list[Array]:
        process = self._child.process
        if process is None or process.stdin is None or process.stdout is None:
            raise EngineError(f"the process that ran {self._shown} has ended", mend=_MEND)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(self._seconds, end)
        clock.daemon = True
        clock.start()
        try:
            try:
                send(process.stdin, head, arrays)
                answer, found = receive(process.stdout, most)
            except (BrokenFrameError, OSError) as error:
                raise self._died(process, what, late.is_set()) from error
        finally:
            clock.cancel()
        if answer.get("memory"):
            raise self._too_much(what)
        if "error" in answer:
            raise _error(answer["error"])
        return found

    def _died(self, process: Process, what: str, late: bool) -> PflError:
        process.kill()
        code = process.wait()
        self._child.process = None
        if late:
            how = f"took more than {self._seconds:g} s"
        elif code < 0:
            with contextlib.suppress(ValueError):
                return self._ended(what, f"ended the process by {signal.Signals(-code).name}")
            how = f"ended the process by signal {-code}"
        else:
            how = f"ended the process with exit code {code}"
        return self._ended(what, how)

    def _too_much(self, what: str) -> PflError:
        return self._ended(what, f"asked for more than the {self._memory} bytes of memory that it may use")

    def _ended(self, what: str, how: str) -> PflError:
        log = self._child.log
        log.seek(0, os.SEEK_END)
        log.seek(max(log.tell() - 2000, 0))
        lines = [s for line in log.read().decode(errors="replace").splitlines() if (s := line.strip())]
        said = f"; the runtime's last words: {lines[-1][:200]!r}" if lines else ""
        return ProgramDiedError(f"{what} {self._shown} on {self.name} {how}{said}", mend=_MEND)

    @override
    def close(self) -> None:
        """End the child, where it is this session's own."""
        super().close()
        if self._own:
            self._child.close()


def memory_for(bundle: Bundle, engine: str) -> int:
    """Bytes that the programs of a bundle may allocate in a child: generous beside their files and planned
    memory, and never all that the machine has."""
    manifest = bundle.manifest
    files = sum(
        manifest.files[path].bytes for path in set(manifest.engine(ENGINES.find(engine).reads).files.values())
    )
    wanted = max(LEAST_MEMORY, 8 * files + 4 * (manifest.measured.planned_memory_bytes or 0))
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system can tell
        return wanted
    return min(wanted, there * 4 // 5)


def survive(bundle: Bundle, engine: str, files: Mapping[str, str]) -> None:
    """Load and run all programs of a bundle in a child process, unless they are known to have lived.

    Whether the numbers are right is not looked at here (see `pfl_mobile.engines.compare.golden_check`).

    Raises:
        ProgramDiedError: they ended the child, or took too much.
        EngineError: the runtime refuses them.
    """
    key = _key(bundle, engine)
    if key in _lived:
        return
    note = cache_dir() / "programs-tried" / key
    with alone(note):
        if not note.is_file():
            _try(bundle, engine, files)
            with contextlib.suppress(
                OSError, PflError
            ):  # a cache that cannot be written costs a try next time
                atomic_write(note, f"{bundle.manifest.name} {bundle.manifest.version} on {engine}\n".encode())
    _lived.add(key)


def _try(bundle: Bundle, engine: str, files: Mapping[str, str]) -> None:
    golden = bundle.golden()
    manifest = bundle.manifest
    with IsolatedSession(engine, files, manifest.programs, memory=memory_for(bundle, engine)) as session:
        for program in manifest.programs:
            if program.name in golden:
                session.run(program.name, golden[program.name].inputs)
                continue
            zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in program.inputs}
            try:
                session.run(program.name, zeros)
            except ProgramDiedError:
                raise
            except EngineError:
                # A program may have no answer to zeros; that it said so is all that is asked here.
                continue


def _key(bundle: Bundle, engine: str) -> str:
    """Names programs and runtime: the manifest has the digest of every file."""
    about = [
        engine,
        *map(version_of, ENGINES.find(engine).packages),
        platform.platform(),
        hashlib.sha256(bundle.manifest_bytes).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@contextlib.contextmanager
def alone(note: Path) -> Iterator[None]:
    """Let one process at a time do what leaves ``note`` in the cache; no matter where that cannot be written."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(note.with_suffix(".lock"), "wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _error(said: object) -> PflError:
    """The error that the child told of; one of the engines' whatever it says."""
    code, message, mend = said if isinstance(said, list) and len(said) == 3 else ("", str(said), _MEND)
    kind = getattr(errors, str(code), EngineError)
    if not (isinstance(kind, type) and issubclass(kind, EngineError)):
        kind = EngineError
    return kind(str(message), mend=str(mend))
