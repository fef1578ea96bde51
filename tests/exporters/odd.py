"""A small model around one function, for what targets refuse or compute wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfl_mobile import LoRA, personalize
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.programs.deployment import Deployment


class Odd(nn.Module):
    """The function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of [batch, 8]."""
        return self.function(x)


def model(function: Callable[[Tensor], Tensor]) -> Deployment:
    """A classifier with the function as its layer ``1``, which gradients go through."""
    found = tiny.arrays()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), Odd(function), nn.Linear(8, 4)).eval()
    return replace(
        found,
        name="odd",
        model=personalize(net, [LoRA("[02]", rank=2)], example=(found.batch["x"],)),
    )


def inverse_error(x: Tensor) -> Tensor:
    """An operator that no target has."""
    return torch.erfinv(torch.tanh(x) * 0.9)


def taken(x: Tensor) -> Tensor:
    """An assignment by index that Core ML's tools refuse, and the others take."""
    y = torch.zeros_like(x)
    y[:, [1, 3, 5]] = x[:, :3].tanh()
    return y * x
