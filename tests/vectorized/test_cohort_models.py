"""Cohorts of other kinds of models: what the compiled step treats in a way of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile import ClassificationTask, Head, LoRA, TokenTask, personalize
from pfl_mobile.plan.schema import Plan
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from pfl_mobile.vectorized.steps import Steps
from tests.backbones import CNN, Decoder, RecurrentLM
from tests.simulation.alone import Alone, assert_same, assert_sum_is_of_the_changes

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


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    "name",
    [
        "pooled",
        "cnn",
        "wide",
        "wide without bias",
        "wide with its bias used twice",
        "decoder",
        "recurrent",
    ],
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
