"""Bottleneck adapters after layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from typing_extensions import override

from pfl_mobile.modules.registry import ModuleConfig, choice, patterns, positive, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pfl_mobile.modules.insertion import Insertion

_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


@register("adapter")
@dataclass(frozen=True)
class Adapter(ModuleConfig):
    """Adds ``up(activation(down(y)))`` to a layer's output y (Houlsby 2019, arXiv 1902.00751).

    For any layer whose output is one tensor with its features last, or second for images, convolutions and
    BatchNorm. The up-projection starts at zero, so a fresh module changes nothing.

    Tensors of a layer with d features: ``adapter_down`` [size, d], ``adapter_down_bias`` [size],
    ``adapter_up`` [d, size], ``adapter_up_bias`` [d].

    Attributes:
        targets: patterns over layer paths.
        size: width of the bottleneck, at least 1.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
        width: number of features d; needed only for a layer of an unknown type without an example input.
    """

    targets: str | Sequence[str] = ()
    size: int = 8
    activation: str = "gelu"
    width: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("Adapter", self.targets))
        positive("Adapter", size=self.size, width=1 if self.width is None else self.width)
        choice("Adapter", "activation", self.activation, _ACTIVATIONS)

    @override
    def insert(self, site: Insertion) -> None:
        """Add the two projections to every matched layer."""
        for path, layer in site.find(self.targets):
            width, dim = site.features(path, layer, self.width)
            bound = 1.0 / math.sqrt(width)
            down = torch.empty(self.size, width)
            down.uniform_(-bound, bound, generator=site.generator(f"{path}.adapter_down"))
            site.add(path, "adapter_down", down)
            site.add(path, "adapter_down_bias", torch.zeros(self.size))
            site.add(path, "adapter_up", torch.zeros(width, self.size))
            site.add(path, "adapter_up_bias", torch.zeros(width))
            layer.register_forward_hook(AdapterHook(self.activation, dim))


class AdapterHook:
    """Forward hook that adds the bottleneck to the layer's output."""

    def __init__(self, activation: str, dim: int) -> None:
        """Hook for outputs whose features are dimension ``dim`` (1 or -1)."""
        self.activation, self.dim = activation, dim

    def __call__(self, layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """The layer's output plus the adapter's."""
        y = output.movedim(1, -1) if self.dim == 1 else output
        inner = _ACTIVATIONS[self.activation](F.linear(y, layer.adapter_down, layer.adapter_down_bias))
        delta = F.linear(inner, layer.adapter_up, layer.adapter_up_bias)
        return output + (delta.movedim(-1, 1) if self.dim == 1 else delta)
