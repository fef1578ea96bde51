"""Small runs that are stopped and resumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import create
from tests.local.fake import linear_rows
from tests.simulation.small import BATCH, Model, OneByOne, Task, rounds

FEDAVG = create("fedavg")


def parts():
    return {f"u{i}": (linear_rows(6 + i, seed=i), linear_rows(3, seed=100 + i)) for i in range(5)}


def arrays(users=None, name="users", groups=None):
    users = users or parts()
    return ArrayPopulation(name, tuple(users), tuple(users.values()), groups or {})


def given(population):
    example = {k: torch.from_numpy(v) for k, v in linear_rows(BATCH).items()}
    return Setup(Model(), Task(), example, population, trainer=OneByOne)  # type: ignore[arg-type]


def run(population, folder, number, resume=False, strategy=FEDAVG, **settings):
    with rounds(
        strategy, given(population), folder=folder, rounds=number, resume=resume, cohort_size=4, **settings
    ) as one:
        one.run()
        return dict(one.server.values)


@dataclass
class Maker:
    """Rows by index; those of ``changed`` are others."""

    changed: frozenset = frozenset()
    made: list | None = None

    def __call__(self, index):
        if self.made is not None:
            self.made.append(index)
        return linear_rows(6, seed=index + 500 * (index in self.changed)), linear_rows(3, seed=9)
