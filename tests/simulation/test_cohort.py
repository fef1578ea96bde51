"""A cohort equals its clients one by one, for every rule that a plan can name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfl_mobile.local.plan import Plan
from pfl_mobile.simulation.cohort import Client, CohortTrainer
from tests.simulation.alone import Alone, assert_same, classifier, rows

#: Rows of each client: below one batch, one batch, several, a part of one left over.
SIZES = (9, 1, 4, 14, 3, 8)


def sgd(**options: Any) -> dict[str, Any]:
    return {"kind": "train", "epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.2}, **options}


def opt(kind: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "lr": 0.05, **options}


PLANS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "epochs": ([sgd()], {}),
    "steps": ([sgd(epochs=None, steps=5)], {}),
    "max steps": ([sgd(epochs=3, max_steps=4)], {}),
    "linear": ([sgd(schedule="linear")], {}),
    "weight decay": ([sgd(optimizer=opt("sgd", weight_decay=0.1))], {}),
    "momentum": ([sgd(optimizer=opt("momentum", weight_decay=0.01))], {}),
    "nesterov": ([sgd(optimizer=opt("momentum", nesterov=True))], {}),
    "adamw": ([sgd(optimizer=opt("adamw"), schedule="linear")], {}),
    "clip": ([sgd(clip=0.3)], {}),
    "explicit prox": ([sgd(mu=0.5, anchor="global")], {}),
    "implicit prox": ([sgd(mu=5.0, anchor="start", prox="implicit")], {}),
    "mu per tensor": ([sgd(mu="strength", anchor="initial")], {}),
    "control": ([sgd(control="control")], {}),
    "mask": ([sgd(mask="mask", optimizer=opt("adamw", weight_decay=0.1))], {}),
    "implicit with mask": ([sgd(mask="mask", mu=2.0, anchor="global", prox="implicit", clip=1.0)], {}),
    "mix": ([sgd(evaluate_at={"kind": "mix", "other": "global", "alpha": 0.3})], {}),
    "lookahead": ([sgd(evaluate_at={"kind": "lookahead", "step": 0.1})], {}),
    "two batches": ([sgd(batches_per_step=2)], {}),
    "all batches": ([sgd(batches_per_step="all")], {}),
    "all with lookahead": (
        [sgd(batches_per_step="all", evaluate_at={"kind": "lookahead", "step": 0.1})],
        {},
    ),
    "one group": ([sgd(group=["role:personal"]), sgd(group=["*.lora_B"], optimizer=opt("momentum"))], {}),
    "personal copy": (
        [sgd(), sgd(trains="own", mu=0.7, anchor="theta", group=["role:shared"])],
        {"keep": ["own"]},
    ),
    "start from": ([sgd(trains="own", start_from="global"), sgd(start_from="own")], {}),
    "reptile": (
        [sgd(trains="fast", start_from="theta"), {"kind": "move", "toward": "fast", "rate": 0.4}],
        {"keep": []},
    ),
    "pfedme": (
        [
            {
                "kind": "repeat",
                "times": 3,
                "phases": [
                    sgd(
                        epochs=None,
                        steps=3,
                        hold_batch=True,
                        trains="own",
                        start_from="theta",
                        mu=2.0,
                        anchor="theta",
                    ),
                    {"kind": "move", "toward": "own", "rate": 0.5},
                ],
            }
        ],
        {},
    ),
    "hold with lookahead": (
        [sgd(epochs=None, steps=3, hold_batch=True, evaluate_at={"kind": "lookahead", "step": 0.1})],
        {},
    ),
    "scaffold": (
        [
            {
                "kind": "combine",
                "makes": "pull",
                "terms": [{"of": "control"}, {"of": "c", "times": -1.0}],
            },
            sgd(control="pull", schedule="linear"),
            {
                "kind": "combine",
                "makes": "c",
                "terms": [
                    {"of": "c"},
                    {"of": "control", "times": -1.0},
                    {"of": "global", "per": "rate"},
                    {"of": "theta", "times": -1.0, "per": "rate"},
                ],
            },
        ],
        {"copies": {"c": {"of": "zero"}}, "keep": ["c"]},
    ),
    "measure": (
        [
            {"kind": "measure", "report": "before"},
            sgd(),
            {"kind": "measure", "report": "there", "at": "global", "metric": "top1"},
        ],
        {},
    ),
    "choose": (
        [{"kind": "choose", "report": "cluster", "among": ["first", "second", "theta"]}, sgd(epochs=1)],
        {},
    ),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return classifier()


@pytest.fixture(scope="module")
def alone(model: Any) -> Alone:
    return Alone(*model)


@pytest.fixture(scope="module")
def trainers(model: Any) -> dict[int, CohortTrainer]:
    return {lanes: CohortTrainer(*model, lanes=lanes) for lanes in (1, 4)}


def near_values(model: Any, seed: int, scale: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        n: (v.numpy() + rng.normal(0, scale, v.shape)).astype(np.float32)
        for n, v in model[0].values().items()
    }


def noise(model: Any, seed: int, scale: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in model[0].values().items()}


def sets(model: Any) -> dict[str, dict[str, np.ndarray]]:
    values = model[0].values()
    return {
        "initial": {n: v.numpy() for n, v in values.items()},
        "global": near_values(model, 1),
        "control": noise(model, 2),
        "mask": {n: (v > 0).astype(np.float32) for n, v in noise(model, 3).items()},
        "strength": {n: np.array([0.1 * (k + 1)], np.float32) for k, n in enumerate(values)},
        "first": near_values(model, 11, 0.4),
        "second": near_values(model, 12, 0.4),
    }


def clients(sizes: tuple[int, ...] = SIZES) -> list[Client]:
    return [Client(rows(count, k), seed=100 + k) for k, count in enumerate(sizes)]


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("name", list(PLANS))
def test_cohort_equals_each_client_alone(
    name: str, lanes: int, model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    phases, rest = PLANS[name]
    plan = Plan.model_validate({"phases": phases, **rest})
    assert_same(trainers[lanes], alone, plan, clients(), near_values(model, 1), sets(model))
