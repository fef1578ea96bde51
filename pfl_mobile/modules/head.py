"""Trainable copies of layers the backbone already has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.registry import ModuleConfig, choice, patterns, positive, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.modules.insertion import Insertion


@register("head")
@dataclass(frozen=True)
class Head(ModuleConfig):
    """Makes layers themselves trainable, like FedPer's personal head (Arivazhagan 2019, arXiv 1912.00818).

    The device tensors are copies that start at the backbone's values, so a fresh module changes nothing. A
    matched container (a block) gives all parameters below it. A weight tied to one elsewhere is untied.

    Tensors: the layer's own names (``head.weight``, ``head.bias``); with ``only="bias"`` just
    ``bias_delta`` [features], zeros, added to the output.

    Attributes:
        targets: patterns over layer paths.
        only: ``all`` parameters, or ``bias`` (BitFit: Ben Zaken 2021), which also serves layers without one.
        outputs: a new number of outputs for Linear, Conv1d or Conv2d; the copy then starts from seeded random
            weights and zero biases, and is not neutral.
    """

    targets: str | Sequence[str] = ()
    only: str = "all"
    outputs: int | None = None

    position = 0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("Head", self.targets))
        choice("Head", "only", self.only, ("all", "bias"))
        positive("Head", outputs=1 if self.outputs is None else self.outputs)
        if self.only == "bias" and self.outputs is not None:
            raise ConfigError(
                'Head: only="bias" keeps the outputs', mend="leave out one of only= and outputs="
            )

    @property
    @override
    def neutral(self) -> bool:
        """False with a new number of outputs."""
        return self.outputs is None

    @override
    def insert(self, site: Insertion) -> None:
        """Make the matched layers trainable."""
        if self.only == "bias":
            for path, layer in site.find(self.targets):
                width, dim = site.features(path, layer)
                site.add(path, "bias_delta", torch.zeros(width))
                layer.register_forward_hook(BiasHook(dim))
        elif self.outputs is not None:
            for path, layer in site.find(self.targets, (nn.Linear, nn.Conv1d, nn.Conv2d), hooked=False):
                self._resize(site, path, layer)
        else:
            self._copy(site)

    def _copy(self, site: Insertion) -> None:
        first = site.first_paths()
        done: set[str] = set()
        for pattern in self.targets:
            found = site.find((pattern,), hooked=False)
            # A layer that is in several places is one layer; a weight that two layers share becomes two.
            own = [
                (first[id(part)], leaf, value)
                for _, layer in found
                for part in layer.modules()
                for leaf, value in part._parameters.items()
                if value is not None
            ]
            if not own:  # a pattern for many layers may match some without
                path, layer = found[0]
                raise ConfigError(
                    f"{site.name}: layer {path!r} ({type(layer).__name__}) has no parameters to train",
                    mend="target a layer with weights",
                )
            for owner, leaf, value in own:
                if f"{owner}.{leaf}" in done:
                    continue
                if value.dtype != torch.float32:
                    raise ConfigError(
                        f"{site.name}: {owner}.{leaf} is {value.dtype}, not float32",
                        mend="convert the backbone first: backbone.float()",
                    )
                done.add(f"{owner}.{leaf}")
                site.replace(owner, leaf, value)

    def _resize(self, site: Insertion, path: str, layer: Any) -> None:
        outputs = int(self.outputs or 0)
        if getattr(layer, "groups", 1) != 1:
            raise ConfigError(
                f"{site.name}: layer {path!r} has groups, so its outputs cannot change",
                mend="target a layer without groups",
            )
        shape = (outputs, *layer.weight.shape[1:])
        bound = 1.0 / math.sqrt(math.prod(shape[1:]))
        weight = torch.empty(shape).uniform_(-bound, bound, generator=site.generator(f"{path}.weight"))
        site.replace(path, "weight", weight)
        if layer.bias is not None:
            site.replace(path, "bias", torch.zeros(outputs))
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", outputs)


class BiasHook:
    """Forward hook that adds a bias to the layer's output."""

    def __init__(self, dim: int) -> None:
        """Hook for features in dimension ``dim`` (1 or -1)."""
        self.dim = dim

    def __call__(self, layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """The output plus the bias."""
        bias = layer.bias_delta
        return output + (bias.view(-1, *(1,) * (output.dim() - 2)) if self.dim == 1 else bias)
