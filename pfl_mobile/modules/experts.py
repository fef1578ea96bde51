"""A mixture of low-rank experts on single layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.registry import ModuleConfig, patterns, positive, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.modules.insertion import Insertion

#: Patterns and roles of the usual split: experts that all devices train together, a gate of one's own.
PERSONAL_GATE = {"*.expert_A": "shared", "*.expert_B": "shared", "*.expert_gate*": "personal"}


@register("experts")
@dataclass(frozen=True)
class Experts(ModuleConfig):
    """Adds ``sum_e p_e(x) * B_e(A_e(x))`` over the ``top_k`` experts with the largest p to a linear layer's output.

    p = softmax(G x + g) is the gate, on the layer's input at every position; what is left out is not made up for,
    as in switch layers (Fedus 2021, arXiv 2101.03961), so that the gate has a gradient for one expert too. Experts
    are LoRA pairs (Hu 2021). All experts are computed and the others multiplied by zero: a graph of fixed shapes, on
    every engine; the few extra products of rank * count are the price. There is no loss that balances the experts.

    B starts at zero, so a fresh module changes nothing; the gate starts at random, so that experts differ from the
    first step on. ``roles=PERSONAL_GATE`` shares the experts and keeps the gate on the device.

    Tensors of a layer: ``expert_A`` [count * rank, in], ``expert_B`` [out, count * rank], the experts one after the
    other; ``expert_gate`` [count, in], ``expert_gate_bias`` [count].

    Attributes:
        targets: patterns over paths of ``nn.Linear`` layers.
        count: number of experts, at least 2.
        rank: inner size of an expert.
        top_k: experts that count at a position; ``count`` is a full mixture.
    """

    targets: str | Sequence[str] = ()
    count: int = 4
    rank: int = 4
    top_k: int = 2

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("Experts", self.targets))
        positive("Experts", rank=self.rank)
        if self.count < 2:
            raise ConfigError(f"Experts: count={self.count} is no mixture", mend="take two or more experts")
        if not 1 <= self.top_k <= self.count:
            raise ConfigError(
                f"Experts: top_k={self.top_k} is not in 1..{self.count}", mend="lower top_k, or raise count"
            )

    @override
    def insert(self, site: Insertion) -> None:
        """Add experts and gate to every matched layer."""
        for path, layer in site.find(self.targets, (nn.Linear,)):
            assert isinstance(layer, nn.Linear)
            width, size = layer.in_features, self.count * self.rank
            bound = 1.0 / math.sqrt(width)
            a, gate = torch.empty(size, width), torch.empty(self.count, width)
            site.add(
                path, "expert_A", a.uniform_(-bound, bound, generator=site.generator(f"{path}.expert_A"))
            )
            site.add(path, "expert_B", torch.zeros(layer.out_features, size))
            gate.uniform_(-bound, bound, generator=site.generator(f"{path}.expert_gate"))
            site.add(path, "expert_gate", gate)
            site.add(path, "expert_gate_bias", torch.zeros(self.count))
            layer.register_forward_hook(ExpertsHook(self.count, self.top_k))


class ExpertsHook:
    """Forward hook that adds the experts to the layer's output."""

    def __init__(self, count: int, top_k: int) -> None:
        """Hook for ``count`` experts of which ``top_k`` count."""
        self.count, self.top_k = count, top_k

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output plus the gated experts'."""
        x = inputs[0]
        share = gate_shares(F.linear(x, layer.expert_gate, layer.expert_gate_bias), self.top_k)
        inner = F.linear(x, layer.expert_A).unflatten(-1, (self.count, -1)) * share.unsqueeze(-1)
        return output + F.linear(inner.flatten(-2), layer.expert_B)


def gate_shares(logits: Tensor, top_k: int) -> Tensor:
    """softmax of [..., count], zero but for the ``top_k`` largest; of equal ones the first count."""
    share = torch.softmax(logits, -1)
    count = logits.shape[-1]
    if top_k == count:
        return share
    fixed = share.detach()
    # above[..., i, j] is 1 where expert j comes before i: the rank of i is how many do. Clamped differences, as
    # phones clamp faster than they compare and convert.
    gap = fixed.unsqueeze(-2) - fixed.unsqueeze(-1)
    above = torch.clamp(gap * 1e30, 0.0, 1.0)
    equal = 1.0 - torch.clamp(gap.abs() * 1e30, 0.0, 1.0)
    earlier = torch.ones(count, count, dtype=logits.dtype, device=logits.device).tril(-1)
    rank = (above + equal * earlier).sum(-1)
    return share * torch.clamp(top_k - rank, 0.0, 1.0)
