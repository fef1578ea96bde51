"""L2-SP: training held near its starting point, so that what was known is not forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Phase
from pfl_mobile.strategies.fedavg_finetune import FedAvgFineTune
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext


@register(
    "l2sp",
    title="Held near the starting point",
    paper="Li, Grandvalet and Davoine 2018, Explicit inductive bias for transfer learning with convolutional networks "
    "(arXiv 1802.01483)",
    shares="all trained tensors",
    keeps="the fine-tuned model, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class L2SP(FedAvgFineTune):
    """Each device minimizes F_k(w) + mu/2 |w - w^0|^2, the paper's penalty with its alpha called mu.

    In the rounds w^0 are the shipped values (anchor = ``initial``), so that the shared model remembers what it was
    pretrained on, however many rounds there are; FedProx would let it wander. Once the rounds are over the device
    fine-tunes, and w^0 is where that starts, the global model. The exact proximal step is used, so no mu diverges.
    The paper's second term, weight decay of layers that are new, is ``weight_decay`` of the optimizer.

    Limits: mu = 0 is FedAvg + fine-tuning; mu -> infinity leaves the shipped model as it is.
    """

    mu: Annotated[float, Param("strength of the pull to the start; 0 is FedAvg + fine-tuning", low=0.0)] = (
        0.01
    )

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """One train phase, held near the shipped values."""
        return (at.local.train(mu=self.mu, anchor="initial", prox="implicit"),)

    @override
    def tuning(self) -> dict[str, Any]:
        """Held near the global model."""
        return {"mu": self.mu, "anchor": "global", "prox": "implicit"}
