"""The optimizers of a plan: kinds, ranges, defaults as PyTorch has them."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pfl_mobile.plan.optimizers import AdamW, Momentum, Optimizer, Sgd

ANY = TypeAdapter(Optimizer)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"kind": "sgd", "lr": 0.1}, Sgd(lr=0.1)),
        ({"kind": "momentum", "lr": 0.1, "nesterov": True}, Momentum(lr=0.1, nesterov=True)),
        ({"kind": "adamw", "lr": 0.1, "betas": [0.5, 0.6]}, AdamW(lr=0.1, betas=(0.5, 0.6))),
    ],
)
def test_the_kind_says_which(raw, found):
    assert ANY.validate_python(raw) == found
    assert ANY.validate_json(ANY.dump_json(found)) == found


@pytest.mark.parametrize(
    "raw",
    [
        {"lr": 0.1},
        {"kind": "adam", "lr": 0.1},
        {"kind": "sgd"},
        {"kind": "sgd", "lr": 0.0},
        {"kind": "sgd", "lr": -1.0},
        {"kind": "sgd", "lr": math.nan},
        {"kind": "sgd", "lr": math.inf},
        {"kind": "sgd", "lr": 0.1, "weight_decay": -0.1},
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        {"kind": "momentum", "lr": 0.1, "momentum": 1.0},
        {"kind": "adamw", "lr": 0.1, "betas": [0.9]},
        {"kind": "adamw", "lr": 0.1, "betas": [0.9, 1.0]},
        {"kind": "adamw", "lr": 0.1, "eps": 0.0},
    ],
)
def test_what_no_optimizer_takes_is_refused(raw):
    with pytest.raises(ValidationError):
        ANY.validate_python(raw)


def test_defaults_are_those_of_pytorch():
    theirs = inspect.signature(torch.optim.AdamW).parameters
    ours = AdamW(lr=0.1)
    for name in ("betas", "eps", "weight_decay"):
        assert getattr(ours, name) == theirs[name].default


def test_they_do_not_change():
    with pytest.raises(ValidationError):
        Sgd(lr=0.1).lr = 0.2
