"""pfl-mobile: ``Rounds`` on its local backend with FedAvg, as a study runs them.

Rows are asked for by index from the mapped arrays; the shuffles are computed here, in every round. Nobody is told of
single client updates, so ``startup_s`` ends with the first merged round.

Settings: ``lanes``: clients trained at once in a process; None takes the trainer's usual number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.rows import Rows
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.rounds import RoundRecord, Rounds
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.state import Local
from sim.job import Job, Meter
from sim.workloads import Prepared


class Users:
    """The prepared clients as a population; nothing is held out."""

    groups: Mapping[str, Sequence[int]] = {}

    def __init__(self, data: Prepared) -> None:
        """The clients of ``data``."""
        self.data, self.name = data, data.workload.name

    def __len__(self) -> int:
        """How many there are."""
        return len(self.data.sizes)

    def id(self, index: int) -> str:
        """The index as text."""
        return str(index)

    def size(self, index: int) -> int:
        """How many rows a client has."""
        return int(self.data.sizes[index])

    def train(self, index: int) -> Rows:
        """All rows of a client."""
        return self.data.rows(index)

    def test(self, index: int) -> Rows:
        """No rows."""
        return {name: value[:0] for name, value in self.data.rows(index).items()}


def run(
    job: Job,
    setup: Setup,
    *,
    lr: float,
    cohort: int,
    choose: Callable[[int], Sequence[int]] | None = None,
    client_seed: Callable[[int, int], int] | None = None,
) -> None:
    """Rounds of FedAvg until the job is done, and its report; cohorts and seeds are the backend's own by default."""
    meter = Meter(job)

    def stop(record: RoundRecord) -> bool:
        if record.failures:
            raise RuntimeError(f"clients failed: {record.failed}")
        values = rounds.server.values
        return not meter.round_done(record.clients, lambda: {k: np.array(v) for k, v in values.items()})

    with LocalBackend(processes=job.processes if job.processes > 1 else 0) as backend:
        rounds = Rounds(
            FedAvg(),
            setup,
            backend,
            local=Local(epochs=1, optimizer=Sgd(lr=lr)),
            rounds=1_000_000,
            cohort_size=cohort,
            choose=choose,
            client_seed=client_seed,
            stop=stop,
        )
        with rounds:
            rounds.run()
        lanes = backend.lanes
    meter.report(("pfl-mobile", "torch", "numpy"), processes=job.processes, lanes=lanes)


def main() -> None:
    job = Job.load()
    data = Prepared(job.workload, Path(job.data))
    lanes = job.settings.get("lanes")
    setup = Setup(data.personalized(), data.task(), data.example(), Users(data), lanes=lanes)
    size = len(data.cohort(0))
    run(job, setup, lr=data.workload.lr, cohort=size, choose=data.cohort, client_seed=data.seed)


if __name__ == "__main__":
    main()
