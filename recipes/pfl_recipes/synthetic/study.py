"""Synthetic(0.5, 0.5): the standard test of federated strategies, with a model that can be split, or the linear one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population
from pfl_mobile.errors import UnknownNameError


class Linear(nn.Module):
    """The convex model of the literature: x float32 [B, 60] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(x)


class Net(nn.Module):
    """Two layers, so that one can be personal: x float32 [B, 60] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(60, 20), nn.ReLU())
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


def study(data: Population | str = "synthetic", model: str = "mlp", **settings: Any) -> Study:
    """The study.

    Args:
        data: of the users.
        model: ``mlp``, or ``linear``, which strategies that need personal layers do not take.
        settings: replace the study's own, named as in the constructor of ``Study``.
    """
    models = {"mlp": Net, "linear": Linear}
    if model not in models:
        raise UnknownNameError(f"there is no model {model!r}", mend=f"choose one of {list(models)}")
    defaults: dict[str, Any] = {
        **({"strategy": "fedrep", "split": ["head"]} if model == "mlp" else {"strategy": "fedavg_finetune"}),
        "local": Local(steps=20, optimizer=Sgd(lr=0.03)),
        "batch": 20,
        "cohort": 20,
        "name": "synthetic",
    }
    return Study(models[model], data, **(defaults | settings))
