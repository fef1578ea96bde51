"""Films: how a person will rate them. Films have shared factors, and each person a taste in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pfl_mobile import Local, Sgd, Study
from pfl_mobile.data import Population

#: Films in MovieLens of 2016, and the factors of each.
FILMS, FACTORS = 9066, 8


class Net(nn.Module):
    """Stars - 3.5 of a film: film int64 [B], genres and year x float32 [B, 20] to [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.films = nn.Embedding(FILMS, FACTORS)
        self.level = nn.Embedding(FILMS, 1)
        self.taste = nn.Linear(FACTORS + 20, 1)
        nn.init.normal_(self.films.weight, std=0.1)
        nn.init.zeros_(self.level.weight)

    def forward(self, film: Tensor, x: Tensor) -> Tensor:
        """Level of the film, and how its factors, genres and year suit the person's taste."""
        return self.level(film) + self.taste(torch.cat([self.films(film), x], dim=-1))


def study(data: Population | str = "movielens-small", **settings: Any) -> Study:
    """The study; ``settings`` replace its own, named as in the constructor of ``Study``."""
    defaults: dict[str, Any] = {
        "strategy": "fedper",
        "split": ["taste"],
        "local": Local(epochs=2, optimizer=Sgd(lr=0.05)),
        "batch": 16,
        "cohort": 100,
        "name": "recommendation",
    }
    return Study(Net, data, **(defaults | settings))
