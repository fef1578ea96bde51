"""Where jobs run: in this process or in forked ones (``LocalBackend``), or on a cluster (``ray_backend``)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch

from pfl_mobile.errors import ConfigError, WorkerDiedError
from pfl_mobile.simulation.pool import Pool
from pfl_mobile.simulation.process import Child, Files, raise_again
from pfl_mobile.simulation.shared import SharedFile
from pfl_mobile.simulation.worker import EvaluateTask, Job, Setup, TrainTask, Worker

if TYPE_CHECKING:
    from pfl_mobile.simulation.states import States

#: How often a job whose process died is tried again.
RETRIES = 3


class ClientBackend(Protocol):
    """Runs the jobs of a task, wherever; results come in the order of the cohort."""

    @property
    def lanes(self) -> int | None:
        """Clients trained at once, after ``start``."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the effective configuration."""

    def start(self, setup: Setup) -> None:
        """Get workers ready; does nothing when they are ready for this setup."""

    def run(
        self, task: TrainTask | EvaluateTask, jobs: Sequence[Job], pool: Pool, states: States
    ) -> tuple[list[Any], np.ndarray]:
        """Records or evaluations, one a client; and the jobs' rows of changes, float32, valid until the next call.

        New states are in the rows of ``states`` that the jobs name.

        Raises:
            WorkerDiedError: processes that ran the same job died again and again.
        """

    def close(self) -> None:
        """End the workers."""


def usual_processes(device: str) -> int:
    """Processes of a ``LocalBackend`` that is given no number: one a core; 0, this one alone, on a GPU and Windows."""
    if os.name == "nt" or device != "cpu":
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalBackend:
    """Processes of one thread each on this machine.

    Jobs are pulled by whichever worker is free. A worker that dies is replaced and its job tried again. Workers
    end when this process does, however it ends, and leave nothing behind.

    Args:
        processes: how many; None for one a core (this process alone on a GPU), 0 to run in this process.
        method: ``fork`` or ``spawn``; None forks where that is safe.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, processes: int | None = None, *, method: str | None = None) -> None:
        """Nothing starts before ``start``."""
        if processes is not None and (isinstance(processes, bool) or processes < 0):
            raise ConfigError(f"processes is {processes!r}", mend="give 0 or more, or None for one a core")
        if method not in (None, "fork", "spawn"):
            raise ConfigError(f"method is {method!r}", mend="give 'fork', 'spawn' or None")
        self.processes = processes
        self.method = method
        self.restarts = 0
        self._setup: Setup | None = None
        self._worker: Worker | None = None
        self._children: list[Child] = []
        self._lifeline: tuple[int, int] | None = None
        self._pool, self._changes = SharedFile(), SharedFile()

    @property
    def lanes(self) -> int | None:
        """Clients trained at once, after ``start``."""
        return self._worker.lanes if self._worker else None

    def count(self) -> int:
        """How many processes there are (or will be) beside this one."""
        if self.processes is not None:
            return self.processes
        return usual_processes("cpu" if self._setup is None else self._setup.device)

    def describe(self) -> dict[str, Any]:
        """Name, processes and how they start."""
        count = self.count()
        return {"name": "local", "processes": count, "start": self._method() if count else "this process"}

    def start(self, setup: Setup) -> None:
        """Make the trainer here, so that forked workers share it, and start the workers."""
        if self._setup is not setup:
            self.close()
            self._setup = setup
            with one_thread():
                self._worker = Worker(setup)
                _ = self._worker.lanes  # settled before there are workers
        while len(self._children) < self.count():
            self._children.append(self._child())

    def run(
        self, task: TrainTask | EvaluateTask, jobs: Sequence[Job], pool: Pool, states: States
    ) -> tuple[list[Any], np.ndarray]:
        """As the protocol says."""
        if self._setup is None:
            raise ConfigError("the backend was not started", mend="call start(setup) first")
        self.start(self._setup)
        size = task.changes.size if isinstance(task, TrainTask) else 0
        rows = max((job.rows.stop for job in jobs), default=0)
        self._pool.reserve(pool.size)
        pool.write(self._pool.bytes())
        self._changes.reserve(rows * size * 4)
        files = Files(self._pool, self._changes, states.file, states.form.stride, size)
        try:
            if self._children:
                done = self._dispatch(task, jobs, files)
            else:
                done = [self._here(task, job, files) for job in jobs]
        except BaseException:
            # Workers may be in the middle of jobs: end them, the next call starts new ones.
            self._end_children()
            raise
        changes = self._changes.bytes()[: rows * size * 4].view(np.float32).reshape(rows, size)
        return [item for part in done for item in part], changes

    def close(self) -> None:
        """End the workers and forget the setup."""
        self._end_children()
        self._setup = self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # of an object that was never whole
            self._end_children()

    def _here(self, task: TrainTask | EvaluateTask, job: Job, files: Files) -> list[Any]:
        assert self._worker is not None
        with one_thread():
            return self._worker.run(task, job, files.memory(job))

    def _dispatch(self, task: TrainTask | EvaluateTask, jobs: Sequence[Job], files: Files) -> list[list[Any]]:
        done: list[list[Any] | None] = [None] * len(jobs)
        waiting, left, deaths = deque(range(len(jobs))), len(jobs), [0] * len(jobs)
        while left:
            for child in self._children:
                # A second job waits at each worker, so that none is idle while this process is busy; not at the
                # end of a round, where another worker could take it at once.
                depth = 2 if len(waiting) > len(self._children) else 1
                while waiting and len(child.doing) < depth and child.alive:
                    number = waiting.popleft()
                    child.send(number, task, jobs[number], files)
            by_handle = {handle: child for child in self._children for handle in child.handles()}
            for child in {id(c): c for c in (by_handle[h] for h in wait(list(by_handle)))}.values():
                for number, answer in child.answers():
                    if isinstance(answer, list):
                        done[number] = answer
                        left -= 1
                    else:
                        raise_again(answer)
                if not child.alive:
                    if child.doing:
                        first = child.doing[0]
                        deaths[first] += 1
                        if deaths[first] > RETRIES:
                            raise _gave_up(jobs[first], deaths[first], child)
                    waiting.extendleft(reversed(child.doing))
                    child.end()
                    self.restarts += 1
                    self._children[self._children.index(child)] = self._child()
        return [answer for answer in done if answer is not None]

    def _method(self) -> str:
        if self.method is not None:
            return self.method
        # CUDA and the frameworks of macOS do not survive a fork.
        unsafe = sys.platform == "darwin" or (torch.cuda.is_available() and torch.cuda.is_initialized())
        if self._setup is not None and self._setup.device != "cpu":
            unsafe = True
        return "spawn" if unsafe or "fork" not in multiprocessing.get_all_start_methods() else "fork"

    def _child(self) -> Child:
        assert self._setup is not None
        if self._lifeline is None:
            self._lifeline = os.pipe()
        method = self._method()
        # Lanes that were settled here are the same everywhere, as results depend on them in the last bits.
        if method == "fork":
            assert self._worker is not None
            return Child(method, self._worker, self._lifeline)
        return Child(method, pickled(replace(self._setup, lanes=self.lanes)), self._lifeline)

    def _end_children(self) -> None:
        for child in self._children:
            child.end()
        self._children = []
        if self._lifeline is not None:
            for fd in self._lifeline:
                os.close(fd)
            self._lifeline = None


def pickled(setup: Setup) -> bytes:
    """The setup for a process that cannot inherit it.

    Raises:
        ConfigError: it cannot be pickled.
    """
    try:
        return pickle.dumps(setup, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the model, task or population cannot be sent to another process: {error}",
            mend="build them from functions and classes of a module, not inside functions; or use processes=0",
        ) from error


def _gave_up(job: Job, deaths: int, child: Child) -> WorkerDiedError:
    some = ", ".join(str(c) for c in job.clients[:5]) + (", ..." if len(job.clients) > 5 else "")
    return WorkerDiedError(
        f"{deaths} processes died while they trained the devices {some} (the last {child.cause()})",
        mend="the machine may have run out of memory: use fewer processes or lanes, or a smaller job_size",
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, as in workers: other numbers of threads give other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
