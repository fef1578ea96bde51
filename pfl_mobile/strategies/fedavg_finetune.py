"""FedAvg, and then each device fine-tunes its own model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import local_plan


@register(
    "fedavg_finetune",
    title="FedAvg + local fine-tuning",
    paper="Wang and others 2019, Federated evaluation of on-device personalization (arXiv 1910.10252)",
    shares="all trained tensors",
    keeps="the fine-tuned model, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class FedAvgFineTune(FedAvg):
    """The rounds are FedAvg's; afterwards w_k <- w - eta * grad F_k for some epochs, and nothing is sent.

    Limits: 0 epochs is FedAvg.
    """

    finetune_epochs: Annotated[
        int, Param("passes over a device's examples after the rounds; 0 is FedAvg", low=0, high=10_000)
    ] = 1

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """Fine-tuning from the aggregator's values."""
        if self.finetune_epochs == 0:
            return super().personal_plan(at)
        return local_plan(at, at.local.train(epochs=self.finetune_epochs, **self.tuning()))

    def tuning(self) -> dict[str, Any]:
        """Terms of the fine-tuning's train phase, for strategies that hold it back."""
        return {}
