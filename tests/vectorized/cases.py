"""Models and batches that the vectorized steps are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pfl_mobile import ClassificationTask, Head, LoRA, TokenTask, personalize
from tests.backbones import CNN, Decoder, RecurrentLM

BATCH = 4


def varied(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        n: (v.numpy() + rng.normal(0, 0.02, v.shape)).astype(np.float32) for n, v in model.values().items()
    }


class Pooled(nn.Module):
    """Convolution, pooling and a linear layer, all trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3)
        self.two = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6 * 5 * 5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x.reshape(-1, 1, 12, 12)))
        return self.head(torch.max_pool2d(torch.relu(self.two(x)), 2).flatten(1))


class Wide(nn.Module):
    """A first layer that is wide enough to be changed once in a segment."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Linear(512, 130, bias=bias)
        self.head = nn.Linear(130, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x)))


class BiasTwice(Wide):
    """The wide layer's bias is read in another place too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x)) * self.hidden.bias)


def images(shape: tuple[int, ...], classes: int = 5) -> Any:
    def make(count: int, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "x": rng.normal(size=(count, *shape)).astype(np.float32),
            "labels": rng.integers(0, classes, count),
            "weight": np.ones(count, np.float32),
        }

    return make


def tokens(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    text = rng.integers(4, 29, (count, 7))
    weight = np.ones((count, 6), np.float32)
    weight[:, 4:] = rng.integers(0, 2, (count, 2))
    return {"tokens": text[:, :-1].copy(), "labels": text[:, 1:].copy(), "weight": weight}


def case(name: str) -> tuple[Any, Any, Any]:
    """(model, task, rows)."""
    torch.manual_seed(0)
    if name == "pooled":
        return personalize(Pooled().eval(), [Head("*")]), ClassificationTask(5), images((144,))
    if name == "cnn":
        modules = [LoRA("features.6", rank=2), Head("head")]
        return personalize(CNN().eval(), modules), ClassificationTask(5), images((3, 8, 8))
    if name == "wide":
        return personalize(Wide().eval(), [Head("*")]), ClassificationTask(5), images((512,))
    if name == "wide without bias":
        return personalize(Wide(bias=False).eval(), [Head("*")]), ClassificationTask(5), images((512,))
    if name == "wide with its bias used twice":
        return personalize(BiasTwice().eval(), [Head("*")]), ClassificationTask(5), images((512,))
    if name == "decoder":
        model = personalize(Decoder(vocabulary=29).eval(), [LoRA("*.attn.[qv]", rank=2)])
        return model, TokenTask(29), tokens
    model = personalize(RecurrentLM(nn.GRU).eval(), [Head("head"), LoRA("embed", rank=2)])
    return model, TokenTask(29), tokens
