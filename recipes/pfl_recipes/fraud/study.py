"""Fraud: card payments that are not the customer's (generated payments)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import GeneratedPopulation, Population, Rows, population

#: A fraud that is missed costs as much as so many false alarms.
COST = 20.0


class Net(nn.Module):
    """A payment to the logits of honest and fraud: x float32 [B, 15] to [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(15, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


@dataclass(frozen=True)
class Weighed:
    """Payments of a customer in which frauds weigh ``COST``, in training and in the test."""

    payments: Population

    def __call__(self, index: int) -> tuple[Rows, Rows]:
        """(train, test) of one customer."""
        train, test = self.payments.train(index), self.payments.test(index)
        return _weighed(train), _weighed(test)


def _weighed(rows: Rows) -> Rows:
    weight = np.where(rows["labels"] == 1, np.float32(COST), np.float32(1))
    return {**rows, "weight": rows["weight"] * weight}


def study(data: Population | str = "fraud", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    payments = population(data) if isinstance(data, str) else data
    weighed = GeneratedPopulation(payments.name, len(payments), Weighed(payments), payments.groups)
    defaults: dict[str, Any] = {
        "strategy": "fedavg_finetune",
        "split": ["head"],
        "local": Local(epochs=1, optimizer=Sgd(lr=0.1)),
        "batch": 16,
        "cohort": 50,
        "name": "fraud",
    }
    return Study(Net, weighed, **(defaults | settings))
