"""A cohort equals its clients one by one, for every rule that a plan can name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile import ClassificationTask, Head, personalize
from pfl_mobile.errors import ConfigError, TensorMismatchError, UnknownNameError
from pfl_mobile.plan.schema import Plan
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.simulation.alone import Alone, assert_same, assert_sum_is_of_the_changes, classifier, rows

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
    "clip far away": ([sgd(clip=1e-12)], {}),
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


def clients(sizes: tuple[int, ...] = SIZES) -> list[SimulatedClient]:
    return [SimulatedClient(rows(count, k), seed=100 + k) for k, count in enumerate(sizes)]


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("name", list(PLANS))
def test_cohort_equals_each_client_alone(
    name: str, lanes: int, model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    phases, rest = PLANS[name]
    plan = Plan.model_validate({"phases": phases, **rest})
    assert_same(trainers[lanes], alone, plan, clients(), near_values(model, 1), sets(model))


@pytest.mark.parametrize("lanes", [1, 4])
def test_personal_state_copies_and_sets_of_single_clients(
    lanes: int, model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    cohort = clients()
    head = {n: v for n, v in near_values(model, 40).items() if n.startswith("head")}
    cohort[1].tensors = head
    cohort[2].copies = {"own": near_values(model, 41)}
    cohort[4].copies = {"own": head}  # from a run that trained the head only
    for k, client in enumerate(cohort):
        client.sets = {"control": noise(model, 50 + k)}
    plan = Plan.model_validate(
        {"phases": [sgd(control="control"), sgd(trains="own", mu=0.3, anchor="theta")]}
    )
    assert_same(trainers[lanes], alone, plan, cohort, near_values(model, 1), sets(model))


def test_diverging_client_is_told_and_disturbs_nobody(model: Any, trainers: dict[int, CohortTrainer]) -> None:
    plan = Plan.model_validate({"phases": [sgd()]})
    start = near_values(model, 1)
    good = trainers[4].run(plan, clients(), start, sets(model))
    cohort = clients()
    cohort[3].rows["x"][2] = np.nan
    cohort[5].rows["x"][-1] = np.inf
    bad = trainers[4].run(plan, cohort, start, sets(model))
    assert [o.failure is not None for o in bad] == [False, False, False, True, False, True]
    for one, other in zip(good, bad, strict=True):
        if other.failure is None:
            assert all(np.array_equal(one.tensors[n], other.tensors[n]) for n in one.tensors)
        else:
            assert all(np.array_equal(other.tensors[n], start[n]) for n in start)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_sum_is_that_of_the_clients_that_are_well(
    lanes: int, model: Any, trainers: dict[int, CohortTrainer]
) -> None:
    plan = Plan.model_validate({"phases": [{"kind": "move", "toward": "global", "rate": 1.0}, sgd()]})
    cohort = clients()
    cohort[3].rows["x"][2] = np.nan
    cohort[4].rows["weight"][:] = 0
    weights = [1.0 + k for k in range(len(cohort))]
    assert_sum_is_of_the_changes(trainers[lanes], plan, cohort, near_values(model, 4), sets(model), weights)


def test_a_first_move_leaves_what_a_client_has_of_its_own_beside(
    model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    move = {"kind": "move", "group": ["head.weight"], "toward": "global", "rate": 1.0}
    plan = Plan.model_validate({"phases": [move, sgd(epochs=1)]})
    cohort = clients()
    cohort[1].tensors = near_values(model, 7)
    cohort[2].tensors = {"head.bias": near_values(model, 8)["head.bias"]}
    assert_same(trainers[4], alone, plan, cohort, near_values(model, 4), sets(model))
    cohort[0].sets = {"global": near_values(model, 9)}
    assert_same(trainers[4], alone, plan, cohort, near_values(model, 4), sets(model))


def test_client_without_examples_is_a_failure_of_its_own(
    model: Any, trainers: dict[int, CohortTrainer]
) -> None:
    plan = Plan.model_validate({"phases": [sgd()]})
    cohort = clients((5, 0, 6))
    cohort[2].rows["weight"][:] = 0
    outcomes = trainers[4].run(plan, cohort, near_values(model, 1), sets(model))
    assert outcomes[0].failure is None
    assert all("no example" in (o.failure or "") for o in outcomes[1:])
    assert [o.steps for o in outcomes] == [4, 0, 0]


def test_rows_of_weight_zero_do_not_count(
    model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    cohort = clients()
    for client in cohort:
        client.rows["weight"][::3] = 0
    plan = Plan.model_validate({"phases": [sgd()]})
    assert_same(trainers[4], alone, plan, cohort, near_values(model, 1), sets(model))


def test_same_cohort_twice_gives_the_same_bits(model: Any, trainers: dict[int, CohortTrainer]) -> None:
    plan = Plan.model_validate({"phases": PLANS["adamw"][0]})
    start = near_values(model, 1)
    one, two = (trainers[4].run(plan, clients(), start, sets(model)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
        assert a.reports == b.reports


def test_outcomes_outlive_the_next_run(model: Any, trainers: dict[int, CohortTrainer]) -> None:
    plan = Plan.model_validate({"phases": [sgd()]})
    start = near_values(model, 1)
    first = trainers[4].run(plan, clients(), start, sets(model))
    kept = [{n: v.copy() for n, v in o.tensors.items()} for o in first]
    trainers[4].run(plan, clients(), near_values(model, 2), sets(model))
    for outcome, values in zip(first, kept, strict=True):
        assert all(np.array_equal(outcome.tensors[n], values[n]) for n in values)


@pytest.mark.parametrize("lanes", [1, 4])
def test_evaluate_equals_each_client_alone(
    lanes: int, model: Any, alone: Alone, trainers: dict[int, CohortTrainer]
) -> None:
    data = [rows(count, 70 + count) for count in (9, 1, 0, 14, 3)]
    start = near_values(model, 1)
    own = near_values(model, 2)
    overlays: list[dict[str, np.ndarray]] = [{}, own, {}, {"head.bias": own["head.bias"]}, {}]
    for tensors in (overlays, [{}] * len(data)):
        found = trainers[lanes].evaluate(data, tensors, start)
        for part, tensor, metrics in zip(data, tensors, found, strict=True):
            if not len(part["weight"]):
                assert metrics == {}
                continue
            expected = alone.programs.evaluate(part, {**start, **tensor})
            assert metrics == pytest.approx(expected, rel=1e-5)


def test_lanes_follow_from_the_model_alone(model: Any) -> None:
    assert CohortTrainer(*model).lanes == 16
    assert CohortTrainer(*model, lanes=3).lanes == 3
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    batch = {"x": torch.randn(2, 1, 4, 4), "labels": torch.tensor([0, 1]), "weight": torch.ones(2)}
    trainer = CohortTrainer(personalize(net, [Head(["0", "2"])]), ClassificationTask(2), batch)
    assert trainer.lanes == 1


@pytest.mark.parametrize("kind", ["memorize", "assign_slots"])
def test_phases_that_are_no_arithmetic_are_refused(
    kind: str, model: Any, trainers: dict[int, CohortTrainer]
) -> None:
    plan = Plan.model_validate({"phases": [{"kind": kind, "module": "lora"}]})
    with pytest.raises(ConfigError):
        trainers[4].run(plan, clients(), near_values(model, 1), sets(model))


def test_bad_input_names_what_is_wrong(model: Any, trainers: dict[int, CohortTrainer]) -> None:
    trainer, start = trainers[4], near_values(model, 1)
    plan = Plan.model_validate({"phases": [sgd(anchor="globl", mu=1.0)]})
    with pytest.raises(UnknownNameError, match="globl"):
        trainer.run(plan, clients(), start, sets(model))
    plan = Plan.model_validate({"phases": [sgd()]})
    with pytest.raises(TensorMismatchError, match=r"head\.wieght"):
        trainer.run(plan, clients(), {"head.wieght": np.zeros(3, np.float32)}, sets(model))
    wrong = clients()
    wrong[0].rows["x"] = wrong[0].rows["x"].astype(np.float64)
    with pytest.raises(TensorMismatchError, match="'x'"):
        trainer.run(plan, wrong, start, sets(model))
    with pytest.raises(ConfigError, match="lanes"):
        CohortTrainer(*model, lanes=0)
