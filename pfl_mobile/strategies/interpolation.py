"""Interpolation: a fine-tuned copy mixed with the global model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.schema import Plan, ServeMix
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import local_plan


@register(
    "interpolation",
    title="Fine-tuned copy mixed with the global model",
    paper="Mansour and others 2020, Three approaches for personalization with applications to federated learning "
    "(arXiv 2002.10619)",
    shares="all trained tensors",
    keeps="a fine-tuned copy of them, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class Interpolation(FedAvg):
    """FedAvg, then each device fine-tunes a copy and serves alpha * copy + (1 - alpha) * global.

    The paper's third approach mixes a local with a central model and lets each user choose the factor. Here the
    weights are mixed, not the outputs, so a prediction costs one pass; the two agree for models that are linear in
    their weights. The factor is one for all users, and the copy starts at the global model.

    Limits: alpha = 0 is FedAvg; alpha = 1 is FedAvg + fine-tuning.
    """

    alpha: Annotated[float, Param("0 is the global model, 1 the fine-tuned one", low=0.0, high=1.0)] = 0.5
    finetune_epochs: Annotated[
        int, Param("passes over a device's examples after the rounds", low=1, high=10_000)
    ] = 1

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """Fine-tuning of a copy."""
        copy = at.local.train(epochs=self.finetune_epochs, trains="personal")
        served = ServeMix(one="personal", other="theta", alpha=self.alpha)
        return local_plan(at, copy, keep=("personal",), serve=served)
