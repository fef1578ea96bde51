"""Scale vectors on the features of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.modules.insertion import TransposedLinear
from pfl_mobile.modules.registry import ModuleConfig, choice, patterns, positive, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.modules.insertion import Insertion


_WITH_INPUT = (nn.Linear, TransposedLinear, nn.Conv1d, nn.Conv2d)


@register("gate")
@dataclass(frozen=True)
class Gate(ModuleConfig):
    """Multiplies a layer's features by a learned vector, as (IA)^3 does (Liu 2022, arXiv 2205.05638).

    The paper scales keys, values (``on="output"``) and the input of the second feed-forward layer
    (``on="input"``). The vector starts at ones, so a fresh module changes nothing.

    Tensors: ``gate_scale`` [features] on each layer.

    Attributes:
        targets: patterns over layer paths.
        on: ``output``, for any layer with one tensor as output, or ``input``, for Linear, Conv1d, Conv2d and
            transformers' ``Conv1D``.
        width: number of features; needed only for a layer of an unknown type without an example input.
    """

    targets: str | Sequence[str] = ()
    on: str = "output"
    width: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("Gate", self.targets))
        positive("Gate", width=1 if self.width is None else self.width)
        choice("Gate", "on", self.on, ("output", "input"))

    @override
    def insert(self, site: Insertion) -> None:
        """Add the vector to every matched layer."""
        supported = _WITH_INPUT if self.on == "input" else None
        for path, layer in site.find(self.targets, supported):
            if self.on == "output":
                width, dim = site.features(path, layer, self.width)
            elif isinstance(layer, nn.Linear):
                width, dim = layer.in_features, -1
            elif isinstance(layer, TransposedLinear):
                width, dim = layer.weight.shape[0], -1
            else:
                width, dim = layer.in_channels, 1
            site.add(path, "gate_scale", torch.ones(width))
            if self.on == "output":
                layer.register_forward_hook(OutputGate(dim))
            else:
                layer.register_forward_pre_hook(InputGate(dim))


def _scaled(x: Tensor, scale: Tensor, dim: int) -> Tensor:
    return x * (scale.view(-1, *(1,) * (x.dim() - 2)) if dim == 1 else scale)


class OutputGate:
    """Forward hook that scales the features of the output."""

    def __init__(self, dim: int) -> None:
        """Hook for features in dimension ``dim`` (1 or -1)."""
        self.dim = dim

    def __call__(self, layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """The scaled output."""
        return _scaled(output, layer.gate_scale, self.dim)


class InputGate:
    """Forward pre-hook that scales the features of the input."""

    def __init__(self, dim: int) -> None:
        """Hook for features in dimension ``dim`` (1 or -1)."""
        self.dim = dim

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs with the first one scaled."""
        return (_scaled(inputs[0], layer.gate_scale, self.dim), *inputs[1:])
