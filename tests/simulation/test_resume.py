"""A run is resumed only with its own data, model, task, code and files; what differs is named."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile import ClassificationTask, CustomTask
from pfl_mobile.errors import OtherSettingsError
from pfl_mobile.files.describe import describe
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import create
from pfl_mobile.strategies.fedavg import FedAvg
from tests.simulation.resuming import Maker, arrays, run
from tests.study.small import study


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * self.scale


def _loss(factor):
    def loss(output, batch):
        return factor * torch.nn.functional.cross_entropy(output, batch["labels"], reduction="none")

    return loss


class Custom(ClassificationTask):
    def losses(self, output, batch):
        return super().losses(output, batch) * FACTOR


FACTOR = 1.0


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"task": CustomTask(_loss(1.0))}, {"task": CustomTask(_loss(2.0))}, "computes something else"),
        ({"model": lambda: Scaled(1.0)}, {"model": lambda: Scaled(2.0)}, "computes something else"),
        ({"model": Scaled(1.0)}, {"model": Scaled(1.0)}, "other initial weights"),
        ({"parameters": {"mu": 0.1}}, {"parameters": {"mu": 0.2}}, "strategy.mu was 0.1 and is 0.2"),
    ],
)
def test_another_model_task_or_parameter_under_the_same_name_is_refused(tmp_path, one, other, named):
    def made(settings):
        settings = {"strategy": "fedprox", "folder": tmp_path} | settings
        base = study(settings.pop("strategy"))
        return base.replace(**settings)

    with made(one).run(rounds=1):
        pass
    with made(one).run(rounds=2, resume=True) as result:
        assert len(result.history) == 2
    with pytest.raises(OtherSettingsError, match=named):
        made(other).run(rounds=3, resume=True)


def test_a_task_that_reads_a_global_is_told_apart(tmp_path, monkeypatch):
    with study(task=Custom(3), folder=tmp_path).run(rounds=1):
        pass
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    with pytest.raises(OtherSettingsError, match="computes something else"):
        study(task=Custom(3), folder=tmp_path).run(rounds=2, resume=True)


def test_the_digest_of_a_program_is_the_same_in_another_process():
    code = (
        "from tests.study.small import study; from pfl_mobile.simulation.worker import Setup;"
        "s = study(); print(Setup(s.model, s.task, s.batch, s.data).program_digest())"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another one than here
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    s = study()
    assert there.strip() == Setup(s.model, s.task, s.batch, s.data).program_digest()


def halved(x):
    return x / 2


def _strategies():
    """Two strategies of the same name for each way to differ."""

    def make(body, helper=None, default=1.0):
        @dataclass(frozen=True)
        class Mine(FedAvg):
            def merge(self, server, updates, by=default):
                body(helper)
                return super().merge(server, updates)

        return Mine()

    return {
        "closure": (make(print), make(repr)),
        "helper": (make(repr, lambda x: x + 1), make(repr, lambda x: x + 2)),
        "default": (make(repr, default=1.0), make(repr, default=2.0)),
    }


@pytest.mark.parametrize("kind", ["closure", "helper", "default"])
def test_a_strategy_of_ones_own_with_other_code_is_refused(tmp_path, kind):
    one, other = _strategies()[kind]
    run(arrays(), tmp_path, 1, strategy=one)
    run(arrays(), tmp_path, 2, resume=True, strategy=_strategies()[kind][0])
    with pytest.raises(OtherSettingsError, match="the code of strategy is another"):
        run(arrays(), tmp_path, 3, resume=True, strategy=other)


def test_functions_are_told_apart_by_what_they_do():
    def exact(value):
        return describe(value, exact=True)

    def choose(shift):
        return lambda number: [number % 5 + shift]

    assert exact(choose(0)) == exact(choose(0)) != exact(choose(1))
    assert exact(functools.partial(halved, 1)) != exact(functools.partial(halved, 2))
    assert exact(torch.ones(2)) != exact(torch.zeros(2))
    assert exact(np.ones(2, np.float32)) != exact(np.ones(2, np.float64))
    assert exact(Maker().__call__) != exact(Maker(frozenset([1])).__call__)
    assert exact(create("ditto")) == describe(create("ditto"))  # ours are named by their version
