"""Apple's pfl-research: its FederatedAveraging on its SimulatedBackend, as its own benchmarks use them.

One process a core, joined by ``torch.distributed`` (gloo) as the package does it; in-memory user datasets of PyTorch
tensors; clients weighted by their examples; evaluation off after round 0. Each client's rows lie in the shared order
beforehand, batches are cut by the package.

Settings: ``sorted``: give every process clients by their size (``user_id_to_weight``) instead of in turn;
``optimizer``: ``plain`` or ``fused`` SGD of PyTorch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sim.job import Job, Meter
from sim.workloads import Prepared, loss

ADDRESSES, RANK = "PFL_WORKER_ADDRESSES", "PFL_WORKER_RANK"


def start_others(processes: int) -> list[subprocess.Popen[bytes]]:
    """Start this program again for the ranks from 1; rank 0 is this process. Must precede every import of pfl."""
    if RANK in os.environ or processes == 1:
        return []
    ports = []
    for _ in range(processes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    os.environ[ADDRESSES] = ",".join(f"127.0.0.1:{port}" for port in ports)
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "sim.pfl_research", sys.argv[1]], env={**os.environ, RANK: str(rank)}
        )
        for rank in range(1, processes)
    ]
    os.environ[RANK] = "0"
    return others


class _Sizes:
    """Rows of client update k; a mapping for ``user_id_to_weight``."""

    def __init__(self, data: Prepared) -> None:
        self.data, self.cohort = data, len(data.cohort(0))

    def __getitem__(self, k: int) -> int:
        number, place = divmod(k, self.cohort)
        return int(self.data.sizes[self.data.cohort(number)[place]])


def run(job: Job, others: list[subprocess.Popen[bytes]]) -> None:
    """Train; rank 0 reports."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    data = Prepared(job.workload, Path(job.data))
    workload, cohort = data.workload, len(data.cohort(0))
    meter, rank = Meter(job), int(os.environ.get(RANK, 0))
    module: Any = data.module()
    module.loss = lambda x, y: loss(module(x), y)
    module.metrics = lambda x, y: {"loss": Weighted(loss(module(x), y).item() * len(y), len(y))}

    def user(k: int) -> PyTorchTensorDataset:
        number, place = divmod(k, cohort)
        rows, order = data.rows(data.cohort(number)[place]), torch.from_numpy(data.order(number, place))
        return PyTorchTensorDataset(
            (torch.from_numpy(rows[workload.inputs])[order], torch.from_numpy(rows["labels"])[order])
        )

    fused = job.settings["optimizer"] == "fused"

    def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, fused=fused or None)

    class Weighting(WeightByDatapoints):
        def postprocess_one_user(self, **given: Any) -> Any:
            meter.first_update()
            return super().postprocess_one_user(**given)

    class Watch(TrainingProcessCallback):
        def after_central_iteration(self, _metrics: Any, model: Any, **_: Any) -> tuple[bool, Metrics]:
            values = {k: v.detach().numpy() for k, v in model.variable_map.items()}
            more = torch.tensor(1 if rank or meter.round_done(cohort, lambda: values) else 0)
            if job.processes > 1:
                torch.distributed.broadcast(more, 0)
            return not more, Metrics()

    np.random.seed(0)  # the package asks for the same seed in all processes
    numbers = count()  # update k is place k % cohort of round k // cohort
    users = FederatedDataset(
        user, lambda: next(numbers), user_id_to_weight=_Sizes(data) if job.settings["sorted"] else None
    )
    model = PyTorchModel(
        module, optimizer, torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1_000_000,
            evaluation_frequency=1_000_000,
            train_cohort_size=cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(users, users, postprocessors=[Weighting()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=workload.batch, local_num_epochs=1, local_learning_rate=workload.lr
        ),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    if rank == 0:
        meter.report(("pfl", "torch", "numpy"), processes=job.processes, **job.settings)
        for other in others:
            other.wait()


def main() -> None:
    job = Job.load()
    others = start_others(job.processes)
    torch.set_num_threads(1)
    run(job, others)


if __name__ == "__main__":
    main()
