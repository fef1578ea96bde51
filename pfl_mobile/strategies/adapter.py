"""Adapters: small bottlenecks in a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.inserted import Inserted, inner_layers
from pfl_mobile.strategies.registry import register

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.modules.registry import ModuleConfig


@register(
    "adapter",
    title="Adapter personalization of a frozen backbone",
    paper="Houlsby and others 2019, Parameter-efficient transfer learning for NLP (arXiv 1902.00751)",
    shares="nothing; or the adapters (share=all)",
    keeps="the adapters; or nothing",
)
@dataclass(frozen=True, kw_only=True)
class Adapters(Inserted):
    """y + U s(D y + b) + c after a layer's output y, with a near-identity start, inserted as the module ``adapter``.

    Differs from the paper: it also trains layer norms, and puts the bottleneck after the two sublayers of a
    transformer block; by default ours follow every linear layer but the last.

    Limits: share = all is FedAvg of the module's tensors. On a model that has its modules already, those are trained
    as their roles say.

    Attributes:
        targets: patterns of layers; by default all linear layers but the last.
    """

    size: Annotated[int, Param("width of the bottleneck", low=1)] = 8
    share: Annotated[str, Param("what devices share of the module", choices=("nothing", "all"))] = "nothing"
    targets: str | Sequence[str] = ()

    @override
    def modules(self, backbone: nn.Module) -> tuple[ModuleConfig, ...]:
        from pfl_mobile.modules.adapter import Adapter

        return (Adapter(self.targets or inner_layers(backbone), size=self.size),)

    @override
    def roles(self) -> dict[str, str]:
        return {"adapter": "shared" if self.share == "all" else "personal"}
