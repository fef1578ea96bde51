"""LoRA: low-rank changes of a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.inserted import Inserted, attention_layers
from pfl_mobile.strategies.registry import register

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.modules.registry import ModuleConfig


@register(
    "lora",
    title="LoRA personalization of a frozen backbone",
    paper="Hu and others 2021, LoRA: Low-rank adaptation of large language models (arXiv 2106.09685)",
    shares="nothing; or A (share=half), or A and B (share=all)",
    keeps="A and B; or B; or nothing",
)
@dataclass(frozen=True, kw_only=True)
class LowRank(Inserted):
    """h = W x + (alpha / rank) B A x with W frozen (the paper's equation 3), inserted as the module ``lora``.

    ``share``: ``nothing`` keeps A and B on the device; ``half`` averages A and keeps B, as the matrices of a device's
    own knowledge are B (Guo 2024, FedSA-LoRA, arXiv 2410.01463); ``all`` averages both, each by itself, which is not
    the average of the products.

    Limits: share = all is FedAvg of the module's tensors. On a model that has its modules already, those are trained
    as their roles say.

    Attributes:
        targets: patterns of layers; by default queries and values, or all linear layers but the last.
    """

    rank: Annotated[int, Param("inner size", low=1)] = 4
    share: Annotated[str, Param("what devices share of the module", choices=("nothing", "half", "all"))] = (
        "nothing"
    )
    targets: str | Sequence[str] = ()

    @override
    def modules(self, backbone: nn.Module) -> tuple[ModuleConfig, ...]:
        from pfl_mobile.modules.lora import LoRA

        return (LoRA(self.targets or attention_layers(backbone), rank=self.rank),)

    @override
    def roles(self) -> dict[str, str]:
        if self.share == "half":
            return {"*.lora_A": "shared", "*.lora_B": "personal"}
        return {"lora": "shared" if self.share == "all" else "personal"}
