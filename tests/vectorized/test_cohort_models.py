"""Cohorts of other kinds of models: what the compiled step treats in a way of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfl_mobile.plan.schema import Plan
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.simulation.alone import Alone, assert_same
from tests.vectorized.cases import BATCH, case, varied

#: With one lane a cohort is a queue, whatever the model: the two that take longest to trace have several only.
LONG = ("decoder", "recurrent")
SHORT = ("pooled", "cnn", "wide", "wide without bias", "wide with its bias used twice")


@pytest.mark.parametrize(
    ("name", "lanes"), [(name, 4) for name in (*SHORT, *LONG)] + [(name, 1) for name in SHORT]
)
def test_model_in_a_cohort_equals_each_client_alone(name: str, lanes: int) -> None:
    model, task, make = case(name)
    batch = {k: torch.from_numpy(v) for k, v in make(BATCH, 99).items()}
    alone, trainer = Alone(model, task, batch), CohortTrainer(model, task, batch, lanes=lanes)
    sizes = (9, 1, 26, 3, 18, 70)
    cohort = [SimulatedClient(make(count, k), seed=k) for k, count in enumerate(sizes)]
    start = varied(model)
    phases: list[dict[str, Any]] = [
        {"kind": "train", "epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.05}, "schedule": "linear"},
        {"kind": "train", "epochs": 1, "optimizer": {"kind": "momentum", "lr": 0.02}, "clip": 1.0},
    ]
    plan = Plan.model_validate({"phases": phases})
    assert_same(trainer, alone, plan, cohort, start, {"initial": start, "global": start}, tolerance=5e-5)
