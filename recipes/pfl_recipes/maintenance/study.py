"""Predictive maintenance: how long an engine of a fleet will last, from its sensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population


class Net(nn.Module):
    """Thirty cycles of fourteen sensors to the share of 125 cycles left: x float32 [B, 30, 14] to [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(30 * 14, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
        )
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Cycles left, divided by 125."""
        return self.head(self.body(x))


def study(data: Population | str = "cmapss", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    defaults: dict[str, Any] = {
        "strategy": "fedavg_finetune",
        "split": ["head"],
        "local": Local(epochs=1, optimizer=Sgd(lr=0.1)),
        "batch": 32,
        "name": "maintenance",
    }
    return Study(Net, data, **(defaults | settings))
