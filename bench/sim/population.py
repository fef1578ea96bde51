"""Ours with a population that is generated when asked for: the MLP of FEMNIST's shape, FedAvg, no folder.

Settings: ``clients``, ``cohort``. Making a client's rows (about a millisecond) is part of its update.
"""

from __future__ import annotations

import torch

from pfl_mobile import ClassificationTask, Head, personalize
from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.simulation.worker import Setup
from sim.job import Job
from sim.ours import run
from sim.workloads import CLASSES, WORKLOADS, LazyImages


def main() -> None:
    job = Job.load()
    workload, rows = WORKLOADS[job.workload], LazyImages()
    torch.manual_seed(0)
    model = personalize(workload.module(), [Head("*")], roles={"*": "shared"})
    example = {name: torch.from_numpy(value[: workload.batch]) for name, value in rows(0)[0].items()}
    users = GeneratedPopulation("images", job.settings["clients"], rows)
    setup = Setup(model, ClassificationTask(CLASSES), example, users)
    run(job, setup, lr=workload.lr, cohort=job.settings["cohort"])


if __name__ == "__main__":
    main()
