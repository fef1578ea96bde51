"""A small study that needs no tracing: numpy models through the reference interpreter of plans.

Everything here can be pickled, for processes that are spawned.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfl_mobile.errors import DataError, NonFiniteError
from pfl_mobile.local.phases import PhaseContext, Work, kept_copies, run_phases
from pfl_mobile.local.session import Programs
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.schema import Plan
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import Local, Strategy
from pfl_mobile.vectorized.cohort import Outcome
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.local.fake import Linear, linear_rows

LOCAL = Local(epochs=1, optimizer=Sgd(lr=0.5))
BATCH = 8


class Model:
    """What a study asks of a model: the weights of ``Linear`` are shared, its bias is personal."""

    def device_tensors(self) -> list[Any]:
        return list(Linear.tensors)

    def values(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in Linear().initial().items()}

    def backbone_digest(self) -> str:
        return "none"


class Task:
    kind = "classification"

    def manifest(self) -> dict[str, Any]:
        return {"kind": self.kind, "metrics": ["top1"], "vocabulary": 3}


class OneByOne:
    """A trainer that runs every client through ``local.phases``."""

    lanes = 1

    def __init__(self, setup: Setup) -> None:
        self.table = setup.model.device_tensors()
        self.programs = Programs(Linear(BATCH), [t.name for t in self.table])

    def run(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Mapping[str, np.ndarray],
        sets: Mapping[str, Any],
    ) -> list[Outcome]:
        return [self.one(plan, client, start, sets) for client in clients]

    def one(
        self, plan: Plan, client: SimulatedClient, start: Mapping[str, np.ndarray], sets: Mapping[str, Any]
    ) -> Outcome:
        work = Work({**start, **client.tensors}, {c: dict(v) for c, v in client.copies.items()})
        sets = {**sets, **client.sets}
        context = PhaseContext(self.programs, self.table, sets, client.seed, lambda *_: True, client.rows)
        failure = None
        try:
            run_phases(plan, work, context)
        except NonFiniteError as error:
            failure = error.message
        loss = {"loss": float(np.mean(work.losses))} if work.losses else {}
        return Outcome(work.tensors, kept_copies(plan, work), work.reports | loss, work.done, failure)

    def evaluate(
        self,
        rows: Sequence[Mapping[str, np.ndarray]],
        tensors: Sequence[Mapping[str, np.ndarray]],
        start: Mapping[str, np.ndarray],
    ) -> list[dict[str, float]]:
        return [
            self.programs.evaluate(dict(r), {**start, **own}) if len(r["weight"]) else {}
            for r, own in zip(rows, tensors, strict=True)
        ]


@dataclass
class Users:
    """Users of 6 to 12 rows; some are not as they should be.

    Attributes:
        trouble: index to what happens when its rows are asked for: ``empty``, ``weightless``, ``nan``, ``huge``
            (training diverges), ``wide`` (another shape), ``double`` (another dtype), ``class`` and ``negative``
            (labels that the model does not have), ``unlabelled``, ``test nan`` (in the test rows alone), ``error``
            (a TypeError), ``memory`` (a MemoryError), ``typed`` (a DataError of the population's own), ``list``
            (no arrays), ``flipped`` (good rows, backwards in memory), ``kill`` (the process dies) and ``kill once``.
        marks: folder that remembers across processes what happened once.
        pause: seconds that asking for rows takes.
    """

    count: int = 20
    trouble: Mapping[int, str] = field(default_factory=dict)
    marks: str = ""
    pause: float = 0.0
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    name: str = "small"

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return f"user-{index}"

    def train(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(self.pause)
        rows = linear_rows(6 + index % 7, seed=index)
        trouble = self.trouble.get(index)
        if trouble == "empty":
            return {name: value[:0] for name, value in rows.items()}
        if trouble == "weightless":
            rows["weight"][:] = 0
        if trouble == "nan":
            rows["x"][0, 0] = np.nan
        if trouble == "huge":
            rows["x"][:], rows["labels"][:], rows["labels"][:2] = 3e38, 0, 1  # no weights fit both labels
        if trouble == "wide":
            rows["x"] = np.ones((len(rows["x"]), 5), np.float32)
        if trouble == "double":
            rows["x"] = rows["x"].astype(np.float64)
        if trouble in ("class", "negative"):
            rows["labels"][1] = 3 if trouble == "class" else -1
        if trouble == "unlabelled":
            del rows["labels"]
        if trouble == "error":
            raise TypeError(f"no rows for {index}")
        if trouble == "memory":
            raise MemoryError(f"no rows for {index}")
        if trouble == "list":
            rows["x"] = rows["x"].tolist()
        if trouble == "flipped":
            rows = {name: np.ascontiguousarray(value[::-1])[::-1] for name, value in rows.items()}
        if trouble == "typed":
            raise DataError(f"the file of {index} is damaged", mend="fetch it again")
        if trouble == "kill" or (trouble == "kill once" and self._first(index)):
            os.kill(os.getpid(), signal.SIGKILL)
        return rows

    def test(self, index: int) -> dict[str, np.ndarray]:
        rows = linear_rows(0 if index == 3 else 5, seed=1000 + index)
        if self.trouble.get(index) == "test nan":
            rows["x"][0, 0] = np.nan
        return rows

    def _first(self, index: int) -> bool:
        mark = Path(self.marks) / str(index)
        if mark.exists():
            return False
        mark.touch()
        return True


def setup(**users: Any) -> Setup:
    example = {k: torch.from_numpy(v) for k, v in linear_rows(BATCH).items()}
    return Setup(Model(), Task(), example, Users(**users), trainer=OneByOne)  # type: ignore[arg-type]


def rounds(strategy: Strategy, given: Setup, backend: Any = None, **settings: Any) -> Rounds:
    """Rounds of 6 of 20 devices, in jobs of 2."""
    settings = {"rounds": 3, "cohort_size": 6, "job_size": 2, "local": LOCAL, "seed": 5} | settings
    return Rounds(strategy, given, backend, **settings)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """The same bits."""
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


class SharedModel(Model):
    """The same, all of it shared: devices keep nothing."""

    def device_tensors(self) -> list[Any]:
        return [replace(tensor, role="shared") for tensor in Linear.tensors]


def shared_setup(**users: Any) -> Setup:
    """A study in which jobs may add up the changes of their clients."""
    return replace(setup(**users), model=SharedModel())  # type: ignore[arg-type]
