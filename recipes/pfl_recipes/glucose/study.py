"""Glucose: a patient's reading in half an hour, from those of the last hour."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population


class Net(nn.Module):
    """Twelve readings, five minutes apart, to the one in half an hour: x float32 [B, 12] to [B, 1].

    What it learns is the change from the newest reading.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Glucose, scaled as the readings are."""
        return x[:, -1:] + self.head(self.body(x))


def study(data: Population | str = "cgm-hall", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    defaults: dict[str, Any] = {
        "strategy": "fedavg_finetune",
        "split": ["head"],
        "local": Local(epochs=1, optimizer=Sgd(lr=0.01)),
        "batch": 32,
        "name": "glucose",
    }
    return Study(Net, data, **(defaults | settings))
