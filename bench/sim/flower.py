"""Flower: its FedAvg on its simulation with the Ray backend, as its PyTorch quickstart uses them.

One Ray actor a core. A client's message carries the weights and the number of its update; the actor keeps module
and mapped data between messages and replies with weights and the number of examples. Evaluation is off, telemetry
and the dashboard too.

Settings: ``supernodes``: virtual nodes; with one for each place of the cohort instead of one for each client the
package's search for messages, nodes times messages, is shortest; ``cpus``: of one client, 1 gives an actor a core;
``pull``: seconds between two looks for replies (the package's default is 0.1).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sim.job import Job, Meter
from sim.workloads import Prepared, loss

client = ClientApp()
_kept: dict[str, Any] = {}


def _setup(workload: str, folder: str) -> tuple[Prepared, Any, list[Any], list[str]]:
    """Module and data of this actor, made by its first message."""
    if "data" not in _kept:
        torch.set_num_threads(1)
        data = Prepared(workload, Path(folder))
        module = data.module()
        names = sorted(n for n, p in module.named_parameters() if p.requires_grad)
        by_name = dict(module.named_parameters())
        _kept["data"] = (data, module, [by_name[n] for n in names], names)
    kept: tuple[Prepared, Any, list[Any], list[str]] = _kept["data"]
    return kept


@client.train()
def train(message: Message, _: Context) -> Message:
    """One client update."""
    config = message.content["config"]
    data, module, parameters, names = _setup(config["workload"], config["folder"])
    number, place = config["number"], config["place"]
    with torch.no_grad():
        for name, parameter in zip(names, parameters, strict=True):
            parameter.copy_(torch.from_numpy(message.content["arrays"][name].numpy()))
    for x, y in data.batches(number, place):
        gradients = torch.autograd.grad(loss(module(x), y), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-data.workload.lr)
    arrays = ArrayRecord({n: p.detach() for n, p in zip(names, parameters, strict=True)})
    examples = int(data.sizes[data.cohort(number)[place]])
    metrics = MetricRecord({"num-examples": examples, "at": time.monotonic()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


class Cohorts(FedAvg):
    """FedAvg over the cohorts of the workload instead of random ones."""

    def __init__(self, job: Job, cohort: int) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.job, self.cohort, self.number, self.first = job, cohort, 0, float("inf")
        self.data = Prepared(job.workload, Path(job.data))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each place of the cohort."""
        nodes = sorted(grid.get_node_ids())
        clients = self.data.cohort(self.number)
        for place, chosen in enumerate(clients):
            node = nodes[place if len(nodes) == len(clients) else chosen]
            update = ConfigRecord(
                {
                    "workload": self.job.workload,
                    "folder": self.job.data,
                    "number": self.number,
                    "place": place,
                }
            )
            record = RecordDict({"arrays": arrays, "config": update})
            yield Message(content=record, message_type="train", dst_node_id=node)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The package's weighted mean; a failed client fails the run."""
        replies = list(replies)
        failed = [r.error.reason for r in replies if r.has_error()]
        if failed or len(replies) != self.cohort:
            raise RuntimeError(f"{len(failed)} of {len(replies)} clients failed: {failed[:1]}")
        if self.number == 0:
            self.first = min(float(r.content["metrics"]["at"]) for r in replies)
        self.number += 1
        return super().aggregate_train(server_round, replies)


def main() -> None:
    import logging

    from flwr.simulation import run_simulation

    from sim import flower  # by its own name, so that actors import it instead of unpickling it

    logging.getLogger("flwr").setLevel(logging.ERROR)
    job = Job.load()
    data = Prepared(job.workload, Path(job.data))
    meter, server = Meter(job), ServerApp()
    cohort = len(data.cohort(0))
    supernodes = len(data.sizes) if job.settings["supernodes"] == "clients" else cohort
    done: list[bool] = []

    @server.main()
    def serve(grid: Grid, _: Context) -> None:
        grid.pull_interval = job.settings["pull"]
        while len(list(grid.get_node_ids())) < supernodes:  # they register while the server app already runs
            time.sleep(0.01)
        strategy = flower.Cohorts(job, cohort)
        arrays = ArrayRecord({k: torch.from_numpy(v) for k, v in data.initial().items()})
        more = True
        while more:
            arrays = strategy.start(grid, initial_arrays=arrays, num_rounds=1).arrays
            meter.first_update(strategy.first)
            merged = arrays
            more = meter.round_done(cohort, lambda merged=merged: {k: v.numpy() for k, v in merged.items()})
        done.append(True)

    # Ray's sockets need a short path, and its default folder would keep every session
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as sessions:
        init = {"num_cpus": job.processes, "num_gpus": 0, "log_to_driver": False, "_temp_dir": sessions}
        run_simulation(
            server,
            flower.client,
            num_supernodes=supernodes,
            backend_config={
                "init_args": {**init, "logging_level": "error"},
                "client_resources": {"num_cpus": job.settings["cpus"], "num_gpus": 0.0},
            },
        )
    if not done:
        sys.exit("the server app ended early")
    meter.report(("flwr", "ray", "torch", "numpy"), processes=job.processes, **job.settings)


if __name__ == "__main__":
    main()
