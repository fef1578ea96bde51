"""Activity recognition: what a person does, from the accelerometer of the phone in their pocket."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population


class Net(nn.Module):
    """43 features of ten seconds to the logits of six activities: x float32 [B, 43] to [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(43, 64), nn.ReLU())
        self.head = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


def study(data: Population | str = "wisdm", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    defaults: dict[str, Any] = {
        "strategy": "fedrep",
        "split": ["head"],
        "local": Local(epochs=2, optimizer=Sgd(lr=0.2)),
        "batch": 16,
        "cohort": 18,
        "name": "activity",
    }
    return Study(Net, data, **(defaults | settings))
