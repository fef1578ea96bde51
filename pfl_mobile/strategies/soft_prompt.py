"""Prompt tuning: trained vectors before the input of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.inserted import Inserted, first_layer, token_embedding
from pfl_mobile.strategies.registry import register

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.modules.registry import ModuleConfig


@register(
    "prompt_tuning",
    title="Prompt tuning of a frozen backbone",
    paper="Lester, Al-Rfou, Constant 2021, The power of scale for parameter-efficient prompt tuning "
    "(arXiv 2104.08691)",
    shares="nothing; or the prompt (share=all)",
    keeps="the prompt; or nothing",
)
@dataclass(frozen=True, kw_only=True)
class PromptTuning(Inserted):
    """Maximizes Pr(Y | [P; X]) over the prompt P alone (the paper's section 2), inserted as the module ``prompt``.

    Limits: share = all is FedAvg of the prompt. On a model that has its modules already, those are trained as their
    roles say. A prompt changes the output before it is trained.

    A model without an embedding takes no tokens that vectors could come before. There the prompt is a vector p added
    to the input x, as in visual prompting (Bahng and others 2022, arXiv 2203.17274), trained as what it does to the
    first linear layer, W(x + p) = Wx + Wp: one vector added to that layer's output. ``length`` and ``init`` have no
    meaning then, and a fresh prompt changes nothing.

    Attributes:
        target: the embedding; by default the first, or the first linear layer of a model that has none.
        strip: False for a model whose output has no positions, such as a classifier of texts.
    """

    length: Annotated[int, Param("number of vectors", low=1)] = 8
    init: Annotated[str, Param("what the vectors start from", choices=("vocabulary", "normal"))] = (
        "vocabulary"
    )
    share: Annotated[str, Param("what devices share of the module", choices=("nothing", "all"))] = "nothing"
    target: str = ""
    strip: bool = True

    @override
    def modules(self, backbone: nn.Module) -> tuple[ModuleConfig, ...]:
        from torch import nn

        from pfl_mobile.modules.head import Head
        from pfl_mobile.modules.prompt import SoftPrompt

        target = self.target or token_embedding(backbone) or first_layer(backbone)
        if isinstance(backbone.get_submodule(target), nn.Linear):
            return (Head(target, only="bias", name="prompt"),)
        return (SoftPrompt(target, length=self.length, init=self.init, strip=self.strip, name="prompt"),)

    @override
    def roles(self) -> dict[str, str]:
        return {"prompt": "shared" if self.share == "all" else "personal"}
