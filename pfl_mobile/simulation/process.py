"""A worker process: how it starts, what it is told and answers, and how it ends.

Jobs and records are small and travel pickled over a socket. Arrays do not: worker and parent map the same files,
whose descriptors are sent once.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
import torch
from typing_extensions import override

from pfl_mobile.errors import PflError, SimulationError
from pfl_mobile.simulation.shared import SharedFile, mapped
from pfl_mobile.simulation.states import row
from pfl_mobile.simulation.worker import EvaluateTask, Job, JobArrays, TrainTask, Worker

#: Messages above this many bytes could fill a socket, so they wait until the worker listens.
_SMALL = 32_000


@dataclass(frozen=True)
class Files:
    """The files of one task, as the parent has them.

    Attributes:
        pool, changes, states: bytes of the pool, the matrix of changes and the devices' states.
        stride: values from one state to the next.
        width: values in a row of changes.
    """

    pool: SharedFile
    changes: SharedFile
    states: SharedFile
    stride: int
    width: int

    def memory(self, job: Job) -> JobArrays:
        """What a job reads and writes, in this process."""
        return memory(
            job, self.pool.bytes(), self.changes.bytes(), self.states.bytes(), self.stride, self.width
        )

    def all(self) -> tuple[SharedFile, SharedFile, SharedFile]:
        """The three files."""
        return (self.pool, self.changes, self.states)


def memory(
    job: Job, pool: np.ndarray, changes: np.ndarray, states: np.ndarray, stride: int, width: int
) -> JobArrays:
    """A job's rows in the bytes of the three files."""
    rows = job.rows
    return JobArrays(
        pool,
        [row(r, stride, stride, states) if r >= 0 else None for r in job.reads],
        [row(w, stride, stride, states) for w in job.writes if w >= 0],
        changes[rows.start * width * 4 : rows.stop * width * 4].view(np.float32).reshape(-1, width)
        if width
        else np.zeros((rows.stop - rows.start, 0), np.float32),
    )


class Child:
    """A worker process, seen from its parent.

    Args:
        method: ``fork`` or ``spawn``.
        what: a worker to inherit (fork), or a pickled setup to make one from.
        lifeline: a pipe whose writing end only the parent keeps; workers end when it closes.
    """

    def __init__(self, method: str, what: Worker | bytes, lifeline: tuple[int, int]) -> None:
        """Start the process."""
        context: Any = multiprocessing.get_context(method)
        self.doing: list[int] = []
        self._told: set[int] = set()
        self._task: int | None = None
        self._connection, theirs = context.Pipe()
        read, write = lifeline
        inherited = (write, self._connection.fileno()) if method == "fork" else ()
        self.process = context.Process(
            target=_main, args=(theirs, _Descriptor(read), inherited, what), daemon=True, name="pfl-worker"
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. Ours takes no lock and uses no thread pool of its parent.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return bool(self.process.is_alive())

    def handles(self) -> tuple[Any, Any]:
        """What to wait for: an answer, or the end of the process."""
        return (self._connection, self.process.sentinel)

    def send(self, number: int, task: TrainTask | EvaluateTask, job: Job, files: Files) -> None:
        """Give it a job; if it has just died, the job is still among ``doing``."""
        new = task if self._task != task.key else None
        sizes = [(f.key, f.size) for f in files.all()]
        keys = {key for key, _ in sizes}
        unknown = [f for f in files.all() if f.key not in self._told]
        message = (number, new, job, sizes, [f.key for f in unknown], files.stride, files.width)
        self.doing.append(number)
        self._task, self._told = task.key, keys
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            for file in unknown:
                reduction.send_handle(self._connection, file.fd, self.process.pid)

    def answers(self) -> Iterator[tuple[int, Any]]:
        """Answers that are there: (job, records or an error)."""
        try:
            while self.doing and self._connection.poll():
                number, answer = pickle.loads(self._connection.recv_bytes())
                self.doing.remove(number)
                yield number, answer
        except (EOFError, ConnectionResetError):
            self.process.join(1)

    def cause(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode
        return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"

    def end(self) -> None:
        """End it, whatever it does, and leave no zombie."""
        self._connection.close()
        if self.process.is_alive():
            self.process.kill()  # it holds nothing that could be left half done
        self.process.join()


class _Descriptor:
    """A file descriptor as an argument of a process, forked or spawned."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _main(
    connection: Connection, lifeline: _Descriptor, inherited: tuple[int, ...], what: Worker | bytes
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for fd in inherited:
        os.close(fd)
    threading.Thread(target=_end_with_parent, args=(lifeline.fd,), daemon=True).start()
    torch.set_num_threads(1)
    gc.freeze()  # what was inherited stays shared
    worker: Worker | None = what if isinstance(what, Worker) else None
    attached: dict[int, tuple[int, np.ndarray]] = {}
    task: TrainTask | EvaluateTask | None = None
    while True:
        try:
            number, new, job, sizes, unknown, stride, width = pickle.loads(connection.recv_bytes())
            _attach(attached, sizes, {key: reduction.recv_handle(connection) for key in unknown})
        except (EOFError, ConnectionResetError):  # the parent is gone
            return
        task = new or task
        assert task is not None
        pool, changes, states = (attached[key][1] for key, _ in sizes)
        answer: Any
        try:
            if worker is None:
                assert isinstance(what, bytes)
                worker = Worker(pickle.loads(what))
            answer = worker.run(task, job, memory(job, pool, changes, states, stride, width))
        except Exception as error:
            answer = sent(error)
        try:
            connection.send_bytes(pickle.dumps((number, answer), pickle.HIGHEST_PROTOCOL))
        except (BrokenPipeError, ConnectionResetError):
            return


def _attach(
    attached: dict[int, tuple[int, np.ndarray]], sizes: list[tuple[int, int]], new: dict[int, int]
) -> None:
    """Map the files of this message, grown or new, and let go of all others."""
    wanted = dict(sizes)
    for key in attached.keys() - wanted.keys():
        os.close(attached.pop(key)[0])
    for key, size in wanted.items():
        fd, data = attached.get(key, (new.get(key, -1), None))
        if data is None or len(data) != size:
            attached[key] = (fd, mapped(fd, size))


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written: it returns when the parent is gone
    os._exit(1)


@dataclass(frozen=True)
class SentError:
    """An exception on its way to another process.

    Attributes:
        pickled: the exception; None where it cannot be pickled.
        kind: its class, for a message.
        message, mend: of a ``PflError``; otherwise its text and "".
        trace: where it was raised.
    """

    pickled: bytes | None
    kind: type[PflError] | str
    message: str
    mend: str
    trace: str


def sent(error: Exception) -> SentError:
    """Pack an exception."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, PflError):
        # the nearest class that the other side can import too
        kind = next(c for c in type(error).__mro__ if issubclass(c, PflError) and _importable(c))
        return SentError(None, kind, error.message, error.mend, trace)
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # whatever user code raises may refuse to be pickled in any way
        pickled = None
    return SentError(pickled, type(error).__name__, str(error), "", trace)


def _importable(kind: type) -> bool:
    try:
        pickle.dumps(kind)
    except (pickle.PicklingError, AttributeError):
        return False
    return True


def raise_again(error: SentError) -> NoReturn:
    """Raise what a worker raised: the same type, message and mend, and its traceback as a note.

    Raises:
        SimulationError: in place of an exception that cannot be pickled.
    """
    raised: BaseException
    if isinstance(error.kind, type):
        raised = error.kind.__new__(error.kind, error.message)
        PflError.__init__(raised, error.message, mend=error.mend)
    elif error.pickled is not None:
        raised = pickle.loads(error.pickled)
    else:
        raised = SimulationError(
            f"a worker failed: {error.kind}: {error.message}", mend="see the traceback of the worker below"
        )
    raised.add_note(f"in a worker:\n{error.trace}")
    raise raised
