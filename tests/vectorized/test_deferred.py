"""Weights of wide first layers that are written late are those of plain SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pfl_mobile.plan.schema import Plan
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from pfl_mobile.vectorized.steps import Steps
from tests.simulation.alone import Alone, assert_same, assert_sum_is_of_the_changes
from tests.vectorized.cases import BATCH, case, varied


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    ("name", "bias"),
    [("wide", "hidden.bias"), ("wide without bias", None), ("wide with its bias used twice", None)],
)
def test_wide_first_layer_is_deferred(name: str, bias: str | None, lanes: int) -> None:
    """The cases above mean something only while the layer is treated that way."""
    model, task, make = case(name)
    batch = {k: torch.from_numpy(v) for k, v in make(BATCH, 99).items()}
    steps = Steps(model, task, batch, torch.device("cpu"))
    found = steps.deferred(lanes, list(steps.names))
    assert found is not None
    assert [(d.weight, d.bias) for d in found.deferrals] == [("hidden.weight", bias)]
    assert "x" not in found.inputs
    assert steps.deferred(lanes, ["head.weight"]) is None


MOVE = {"kind": "move", "toward": "global", "rate": 1.0}


def sgd(**terms: Any) -> dict[str, Any]:
    return {"kind": "train", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.05}, **terms}


#: What reads the weight of a wide layer while it is late: other phases, other groups, copies, a segment that follows.
LATE: dict[str, list[dict[str, Any]]] = {
    "several segments": [MOVE, sgd(epochs=3)],
    "two phases": [MOVE, sgd(), sgd(schedule="linear")],
    "other tensors": [MOVE, sgd(), sgd(group=["head.*"]), sgd()],
    "another rule": [MOVE, sgd(), sgd(mu=0.5, anchor="start"), sgd(clip=1.0)],
    "half way back": [MOVE, sgd(), {"kind": "move", "toward": "initial", "rate": 0.5}, sgd()],
    "a copy": [MOVE, sgd(trains="own", start_from="theta"), sgd(), sgd(trains="own")],
    "measured": [MOVE, sgd(), {"kind": "measure", "report": "after"}],
}


@pytest.fixture(scope="module")
def wide() -> Any:
    model, task, make = case("wide")
    batch = {k: torch.from_numpy(v) for k, v in make(BATCH, 99).items()}
    trainers = {lanes: CohortTrainer(model, task, batch, lanes=lanes) for lanes in (1, 3, 8)}
    return model, Alone(model, task, batch), trainers, make


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("name", list(LATE))
def test_a_late_weight_is_there_for_whoever_reads_it(name: str, lanes: int, wide: Any) -> None:
    model, alone, trainers, make = wide
    cohort = [SimulatedClient(make(count, k), seed=k) for k, count in enumerate((9, 1, 26, 3, 18, 170, 70))]
    start = varied(model)
    plan = Plan.model_validate({"phases": LATE[name]})
    sets = {"initial": {n: v.numpy() for n, v in model.values().items()}, "global": start}
    assert_same(trainers[lanes], alone, plan, cohort, start, sets, tolerance=5e-5)
    weights = [float(k + 1) for k in range(len(cohort))]
    assert_sum_is_of_the_changes(trainers[lanes], plan, cohort, start, sets, weights)


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_a_sum_against_other_values_than_the_start_s(lanes: int, wide: Any) -> None:
    model, _, trainers, make = wide
    cohort = [SimulatedClient(make(count, k), seed=k) for k, count in enumerate((9, 1, 26, 170))]
    cohort[1].tensors = {"hidden.weight": varied(model)["hidden.weight"]}
    cohort[2].rows["x"][1] = np.inf
    initial = {n: v.numpy() for n, v in model.values().items()}
    sets = {"initial": initial, "global": initial}
    plan = Plan.model_validate({"phases": [sgd()]})
    assert_sum_is_of_the_changes(trainers[lanes], plan, cohort, varied(model), sets, [1.0, 2.0, 3.0, 4.0])
