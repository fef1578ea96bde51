"""A small study: users on rotated versions of one problem, in two groups."""

from __future__ import annotations

import numpy as np
from torch import nn

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.strategies import Local
from pfl_mobile.study import Machine, Study


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def population(users=8, seed=0):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(4, 3))
    rows = {}
    for i in range(users):
        own = weights + (1.5 if i % 2 else 0.2) * generator.normal(size=(4, 3))
        x = generator.normal(size=(40 + 4 * i, 4)).astype(np.float32)
        rows[f"u{i}"] = {"x": x, "labels": (x @ own).argmax(1), "weight": np.ones(len(x), np.float32)}
    groups = {"calm": list(range(0, users, 2)), "wild": list(range(1, users, 2))}
    return ArrayPopulation.of("small", rows, 0.25, groups)


def study(strategy="fedavg", data=None, **settings):
    fixed = {
        "local": Local(epochs=1, optimizer=Sgd(lr=0.3)),
        "batch": 8,
        "cohort": 4,
        "machine": Machine(processes=0, lanes=2),
    }
    return Study(Net, data or population(), strategy, **(fixed | settings))


def in_steps():
    return study(local=Local(steps=9, optimizer=Sgd(lr=0.3)))


def personal():
    return study("fedper", personal=["head"])


def tuned():
    return study("ifca", parameters={"clusters": 3})


def spoiled(bad=1, lr=0.3):
    """Twelve users of whom some have a label that the model does not have."""
    data = population(12)
    for train, _ in data.parts[:bad]:
        train["labels"][2] = 7
    return study("ditto", data, cohort=12, local=Local(epochs=1, optimizer=Sgd(lr=lr)))


def diverging():
    return spoiled(0, lr=1e6)
