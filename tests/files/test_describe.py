"""Settings as plain values, and where two of them differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from pfl_mobile.files.describe import describe, differences
from pfl_mobile.plan.optimizers import Sgd


@dataclass
class Settings:
    rate: float
    names: tuple[str, ...] = ("a",)


def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (("a", 1), ["a", 1]),
        ({"b", "a"}, ["a", "b"]),
        ({1: "x"}, {"1": "x"}),
        (Settings(0.5), {"kind": "Settings", "rate": 0.5, "names": ["a"]}),
        (Sgd(lr=0.1), {"kind": "sgd", "lr": 0.1, "weight_decay": 0.0}),
        (twice, "twice"),
        (partial(twice, 3, y=1), {"kind": "partial", "of": "twice", "args": [3], "with": {"y": 1}}),
    ],
)
def test_values_become_json(value, plain):
    assert describe(value) == plain
    json.dumps(describe(value))


def test_arrays_and_tensors_are_told_apart_by_what_they_hold():
    one = describe(np.arange(4, dtype=np.float32))
    assert one == describe(np.arange(8, dtype=np.float32)[:4])
    assert one != describe(np.arange(4, dtype=np.float64))
    assert one != describe(np.arange(4, dtype=np.float32).reshape(2, 2))
    assert one["sha256"] != describe(np.arange(1, 5, dtype=np.float32))["sha256"]
    assert describe(torch.arange(4, dtype=torch.float32)) == {"torch": one}


def test_exactly_described_functions_differ_by_what_they_do():
    thrice.__qualname__ = "twice"
    assert describe(twice) == describe(thrice)
    assert describe(twice, exact=True) != describe(thrice, exact=True)
    assert describe(twice, exact=True) == describe(twice, exact=True)


def test_differences_name_the_place():
    one = {"a": 1, "b": {"c": 2, "d": [1]}, "only": 0}
    other = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": None}
    assert list(differences(one, other)) == [("b.c", 2, 3), ("b.d", [1], [1, 2]), ("only", 0, None)]
    assert list(differences(one, one)) == []
