"""Jobs on a Ray cluster: arrays travel through the object store, jobs are tasks, Ray repeats those whose worker died.

The same settings (``lanes`` given) give the same bits as ``LocalBackend`` does, where the machines are of one kind.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from pfl_mobile.errors import ConfigError, MissingDependencyError, WorkerDiedError
from pfl_mobile.simulation.backend import RETRIES, one_thread
from pfl_mobile.simulation.pool import Pool
from pfl_mobile.simulation.process import SentError, raise_again, sent
from pfl_mobile.simulation.worker import EvaluateTask, Job, JobArrays, Setup, TrainTask, Worker

if TYPE_CHECKING:
    from pfl_mobile.simulation.states import States

try:
    import ray
except ImportError:
    ray = None

#: The worker of this Ray process, and the setup and pool that it has, by name.
_HERE: dict[str, Any] = {}


class RayBackend:
    """Runs jobs as Ray tasks of one thread each.

    Args:
        address: of a cluster (``auto``, ``ray://host:10001``); None for one that is running, else a new local one.
        in_flight: jobs submitted at once; None for two a CPU of the cluster.
        options: for every task, as ``ray.remote`` takes them (``num_cpus``, ``num_gpus``, ``resources``).
        init: further arguments of ``ray.init``.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        in_flight: int | None = None,
        options: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing starts before ``start``."""
        if ray is None:
            raise MissingDependencyError("Ray is not installed", mend="pip install 'pfl-mobile[ray]'")
        if in_flight is not None and in_flight < 1:
            raise ConfigError(f"in_flight is {in_flight}", mend="give 1 or more")
        self.address, self.in_flight = address, in_flight
        self.options = {"num_cpus": 1, **(options or {})}
        self._init = dict(init or {})
        self._started_here = False
        self._setup: Setup | None = None
        self._setup_ref: Any = None
        self._name = ""
        self._lanes: int | None = None
        self._changes = np.zeros((0, 0), np.float32)

    @property
    def lanes(self) -> int | None:
        """Clients trained at once, after ``start``."""
        return self._lanes

    def describe(self) -> dict[str, Any]:
        """Name, cluster and how many CPUs it has."""
        cpus = ray.cluster_resources().get("CPU") if ray.is_initialized() else None
        return {"name": "ray", "address": self.address, "cpus": cpus, "task": dict(self.options)}

    def start(self, setup: Setup) -> None:
        """Connect, and put the setup into the object store; workers make their trainers from it."""
        if not ray.is_initialized():
            ray.init(address=self.address, **{"log_to_driver": False, **self._init})
            self._started_here = True
        if self._setup is setup:
            return
        self._setup, self._name = setup, uuid.uuid4().hex
        self._lanes = setup.lanes
        if self._lanes is None:
            with one_thread():
                self._lanes = Worker(setup).lanes  # settled once, as results depend on it in the last bits
        self._setup_ref = ray.put(replace(setup, lanes=self._lanes))

    def run(
        self, task: TrainTask | EvaluateTask, jobs: Sequence[Job], pool: Pool, states: States
    ) -> tuple[list[Any], np.ndarray]:
        """As the protocol says."""
        if self._setup is None:
            raise ConfigError("the backend was not started", mend="call start(setup) first")
        data = np.zeros(pool.size, np.uint8)
        pool.write(data)
        width = task.changes.size if isinstance(task, TrainTask) else 0
        common = (self._name, task.key, [self._setup_ref, ray.put((task, data))])
        shape = (max((job.rows.stop for job in jobs), default=0), width)
        if self._changes.shape != shape:
            self._changes = np.zeros(shape, np.float32)
        remote = ray.remote(**{"max_retries": RETRIES, **self.options})(_job)
        limit = self.in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        done: list[list[Any] | None] = [None] * len(jobs)
        under_way: dict[Any, int] = {}
        following = iter(range(len(jobs)))
        try:
            while True:
                # No more than the cluster works on, so that results do not fill the object store.
                while len(under_way) < limit and (number := next(following, None)) is not None:
                    job = jobs[number]
                    before = [states.row(r) if r >= 0 else None for r in job.reads]
                    under_way[remote.remote(*common, job, before)] = number
                if not under_way:
                    break
                ready, _ = ray.wait(list(under_way), num_returns=1)
                number = under_way.pop(ready[0])
                done[number] = self._take(ready[0], jobs[number], states)
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)
        return [item for part in done for item in part or ()], self._changes

    def close(self) -> None:
        """Forget the setup, and end a cluster that was started here."""
        self._setup = self._setup_ref = None
        if self._started_here and ray.is_initialized():
            ray.shutdown()
        self._started_here = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, reference: Any, job: Job, states: States) -> list[Any]:
        """Fetch one job's results and put its rows where they belong."""
        try:
            answer = ray.get(reference)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            raise WorkerDiedError(
                f"{RETRIES + 1} Ray workers died while they trained the devices {list(job.clients[:5])}: {error}",
                mend="look into Ray's logs; where memory ran out, use fewer lanes or a smaller job_size",
            ) from error
        if isinstance(answer, SentError):
            raise_again(answer)
        records, changes, after = answer
        if changes.size:
            self._changes[job.rows] = changes
        for number, row in zip(job.writes, after, strict=False):
            states.row(number)[...] = row
        return list(records)


def _job(name: str, key: int, references: list[Any], job: Job, before: list[np.ndarray | None]) -> Any:
    """One job, in a Ray process; the references are fetched only where they are new to it."""
    torch.set_num_threads(1)
    setup_ref, task_ref = references
    try:
        if _HERE.get("name") != name:
            _HERE.clear()
            _HERE["worker"], _HERE["name"] = Worker(ray.get(setup_ref)), name
        if _HERE.get("key") != key:
            task, pool = ray.get(task_ref)
            # Arrays from the object store cannot be written to, which PyTorch warns of: one copy a round.
            _HERE["task"], _HERE["pool"], _HERE["key"] = task, pool.copy(), key
        task, worker = _HERE["task"], _HERE["worker"]
        count = len(job.clients)
        width = task.changes.size if isinstance(task, TrainTask) else 0
        kept = sum(int(np.prod(shape)) for shape in task.states.values())
        keeps = any(w >= 0 for w in job.writes)
        changes = np.zeros((job.rows.stop - job.rows.start, width), np.float32)
        after = np.zeros((count if keeps else 0, kept), np.float32)
        own = [None if row is None else row.copy() for row in before]
        records = worker.run(task, job, JobArrays(_HERE["pool"], own, list(after), changes))
    except Exception as error:
        return sent(error)
    return records, changes, after
