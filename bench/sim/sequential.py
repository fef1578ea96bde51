"""The plain loop: PyTorch, one client after the other in each process, no framework.

Processes take the next client of the cohort from a shared counter, largest clients first, and sum what they trained
in shared memory. A step is ``autograd.grad`` and an in-place addition: measured, the fastest of the usual ways
(against ``torch.optim.SGD``: 1.2 times for the MLP, 1.6 times for the tiny one).

Settings: ``nudge``: begin one rounding beside the initial values, to see what rounding alone does to the model.
"""

from __future__ import annotations

import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from sim.job import Job, Meter
from sim.workloads import Prepared, loss


class Shared:
    """What the processes share: start values, one sum each, and the counter of clients."""

    def __init__(self, context: Any, size: int, processes: int) -> None:
        """Vectors of ``size`` float32 values."""
        self.start = torch.zeros(size).share_memory_()
        self.sums = torch.zeros(processes, size).share_memory_()
        self.next = context.Value("q", 0)
        self.number = context.Value("q", 0)
        self.first = context.Value("d", 0.0)
        self.barrier: Barrier = context.Barrier(processes)


def _vector(values: list[Tensor]) -> Tensor:
    return torch.cat([v.detach().reshape(-1) for v in values])


def _train_share(data: Prepared, parameters: list[Tensor], module: Any, shared: Shared, rank: int) -> None:
    """Train clients of the round until none is left."""
    number = shared.number.value
    cohort = data.cohort(number)
    largest_first = np.argsort(-data.sizes[cohort], kind="stable").tolist()
    total = float(data.sizes[cohort].sum())
    sizes = [p.numel() for p in parameters]
    start = [v.view_as(p) for v, p in zip(shared.start.split(sizes), parameters, strict=True)]
    own = [v.view_as(p) for v, p in zip(shared.sums[rank].split(sizes), parameters, strict=True)]
    torch._foreach_zero_(own)
    lr = data.workload.lr
    while True:
        with shared.next.get_lock():
            index, shared.next.value = shared.next.value, shared.next.value + 1
        if index >= len(cohort):
            return
        place = largest_first[index]
        with torch.no_grad():
            torch._foreach_copy_(parameters, start)
        for x, y in data.batches(number, place):
            gradients = torch.autograd.grad(loss(module(x), y), parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-lr)
        with torch.no_grad():
            torch._foreach_add_(own, parameters, alpha=float(data.sizes[cohort[place]]) / total)
        if shared.first.value == 0.0:
            shared.first.value = time.monotonic()


def _worker(job: Job, shared: Shared, rank: int) -> None:
    torch.set_num_threads(1)
    data = Prepared(job.workload, Path(job.data))
    module = data.module()
    parameters: list[Tensor] = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
    while True:
        shared.barrier.wait()
        if shared.number.value < 0:
            return
        _train_share(data, parameters, module, shared, rank)
        shared.barrier.wait()


def main() -> None:
    job = Job.load()
    torch.set_num_threads(1)
    context = mp.get_context("spawn")
    data = Prepared(job.workload, Path(job.data))
    module = data.module()
    names = sorted(n for n, p in module.named_parameters() if p.requires_grad)
    by_name = dict(module.named_parameters())
    parameters: list[Tensor] = [by_name[n] for n in names]
    shared = Shared(context, sum(p.numel() for p in parameters), job.processes)
    shared.start.copy_(_vector(parameters))
    if job.settings.get("nudge"):
        shared.start.mul_(1 + torch.finfo(torch.float32).eps)
    workers = [
        context.Process(target=_worker, args=(job, shared, rank), daemon=True)
        for rank in range(1, job.processes)
    ]
    for worker in workers:
        worker.start()

    def values() -> dict[str, np.ndarray]:
        parts = shared.start.split([p.numel() for p in parameters])
        return {n: v.view_as(by_name[n]).numpy() for n, v in zip(names, parts, strict=True)}

    meter, number, more = Meter(job), 0, True
    while more:
        shared.number.value, shared.next.value = number, 0
        shared.barrier.wait()
        _train_share(data, parameters, module, shared, 0)
        shared.barrier.wait()
        torch.sum(shared.sums, 0, out=shared.start)
        if number == 0:
            meter.first_update(shared.first.value)
        number += 1
        more = meter.round_done(len(data.cohort(number)), values)
    shared.number.value = -1
    shared.barrier.wait()
    for worker in workers:
        worker.join()
    meter.report(("torch", "numpy"), processes=job.processes, step="autograd.grad, in-place addition")


if __name__ == "__main__":
    main()
