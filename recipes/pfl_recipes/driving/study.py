"""Driving: the angle of the steering wheel, as a driver would choose it (generated drives)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population


class Net(nn.Module):
    """The road ahead and the place in the lane to the angle in radians: x float32 [B, 7] to [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Angle."""
        return self.head(self.body(x))


def study(data: Population | str = "driving", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    defaults: dict[str, Any] = {
        "strategy": "fedper",
        "split": ["body.2", "head"],
        "local": Local(epochs=2, optimizer=Sgd(lr=0.1)),
        "batch": 16,
        "cohort": 30,
        "name": "driving",
    }
    return Study(Net, data, **(defaults | settings))
