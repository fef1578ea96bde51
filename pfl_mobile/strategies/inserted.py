"""Base of the strategies that put a module into a frozen backbone and personalize with that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.state import RoundContext, Server
from pfl_mobile.strategies.strategy import Strategy, local_plan

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.merge.updates import Updates

#: What attention layers are called that LoRA's paper adapts: queries and values.
_QUERY_VALUE = ("q", "v", "q_proj", "v_proj", "query", "value")


@dataclass(frozen=True, kw_only=True)
class Inserted(Strategy):
    """Trains what was inserted; the tensors' roles say what travels, and nothing need."""

    merges_stale: ClassVar[bool] = True

    @override
    def plan(self, at: RoundContext) -> Plan:
        """As in federated averaging where tensors are shared; else training on the device alone."""
        return super().plan(at) if at.traveling else local_plan(at, *self.phases(at))

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """As in federated averaging; nothing where nothing was sent."""
        if updates.layout.size:
            super().merge(server, updates)


def attention_layers(backbone: nn.Module) -> tuple[str, ...]:
    """Linear layers called as queries and values are; where there are none, :func:`inner_layers`."""
    found = [path for path in _linear(backbone) if path.rpartition(".")[2] in _QUERY_VALUE]
    return tuple(found) or inner_layers(backbone)


def inner_layers(backbone: nn.Module) -> tuple[str, ...]:
    """All linear layers but the last, which gives the output; a single one is taken.

    Raises:
        ConfigError: there is no linear layer.
    """
    found = _linear(backbone)
    if not found:
        raise ConfigError(
            f"{type(backbone).__name__} has no linear layer", mend="name the layers to adapt: targets="
        )
    return tuple(found[:-1] or found)


def token_embedding(backbone: nn.Module) -> str | None:
    """The first embedding; None where there is none."""
    from torch import nn  # here, so that the aggregator, which only merges, needs no torch

    return next(
        (str(path) for path, layer in backbone.named_modules() if isinstance(layer, nn.Embedding)), None
    )


def first_layer(backbone: nn.Module) -> str:
    """The first linear layer.

    Raises:
        ConfigError: there is none.
    """
    found = _linear(backbone)
    if not found:
        raise ConfigError(
            f"{type(backbone).__name__} has neither an embedding nor a linear layer that a prompt could act on",
            mend="name the layer with target=, or choose another strategy",
        )
    return found[0]


def _linear(backbone: nn.Module) -> list[str]:
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    return [
        str(path)
        for path, layer in backbone.named_modules()
        if path and isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    ]
