"""Mixture of experts: experts that all train, a gate of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.inserted import inner_layers
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.plan.phases import Phase


@register(
    "moe",
    title="Mixture of experts with a personal gate",
    paper="Reisser, Louizos, Gavves, Welling 2021, Federated mixture of experts (FedMix, arXiv 2107.06724); Guo and "
    "others 2020, PFL-MoE: Personalized federated learning based on mixture of experts (arXiv 2012.15589)",
    shares="the experts",
    keeps="the gate",
    split=True,
)
@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts(Strategy):
    """y_k(x) = f(x) + sum_e p_k,e(x) E_e(x): experts E_e of all devices, p_k the gate of device k.

    Both are trained together in a round; the experts are averaged, the gate never leaves the device. Inserted as the
    module ``experts``: low-rank experts on linear layers, of which ``top_k`` count at each position.

    Differs from the papers: FedMix mixes whole models by a variational gate and only sends the experts that a device
    uses; PFL-MoE mixes one global and one local model, by the features. Here experts are low-rank parts of a frozen
    backbone, and all are sent.

    Limits: with a gate that nobody trains it is FedAvg of the experts.

    Attributes:
        targets: patterns of linear layers; by default all but the last.
    """

    count: Annotated[int, Param("number of experts", low=2)] = 4
    rank: Annotated[int, Param("inner size of an expert", low=1)] = 4
    top_k: Annotated[int, Param("experts that count at a position, at most count", low=1)] = 2
    targets: str | Sequence[str] = ()

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Train experts and gate together.

        Raises:
            ConfigError: the model has no personal tensors.
        """
        at.need("personal", self)
        return (at.local.train(),)

    @override
    def modules(self, backbone: nn.Module) -> tuple[ModuleConfig, ...]:
        from pfl_mobile.modules.experts import Experts

        targets = self.targets or inner_layers(backbone)
        return (Experts(targets, count=self.count, rank=self.rank, top_k=self.top_k),)

    @override
    def roles(self) -> dict[str, str]:
        """Experts are shared, the gate is personal."""
        from pfl_mobile.modules.experts import PERSONAL_GATE

        return dict(PERSONAL_GATE)
