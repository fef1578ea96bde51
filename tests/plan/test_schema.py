from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pfl_mobile.plan.schema as module
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.local.guard import before_training, decide
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.plan.select import matches, select, uploaded
from tests.local.fake import Tensor

TRAIN = {"kind": "train", "steps": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}
ROWS = {
    "FedAvg": [TRAIN],
    "FedProx": [{**TRAIN, "mu": 0.1, "anchor": "global"}],
    "Ditto": [TRAIN, {**TRAIN, "trains": "personal", "mu": 0.8, "anchor": "global"}],
    "pFedMe": [
        {
            "kind": "repeat",
            "times": 20,
            "phases": [
                {**TRAIN, "steps": 5, "trains": "inner", "start_from": "theta", "anchor": "theta", "mu": 15},
                {"kind": "move", "toward": "inner", "rate": 0.2},
            ],
        }
    ],
    "SCAFFOLD": [{**TRAIN, "control": "c_minus_ci"}],
    "Scafflix": [
        {
            **TRAIN,
            "control": "minus_h",
            "evaluate_at": {"kind": "mix", "other": "local_optimum", "alpha": 0.3},
        }
    ],
    "FedRep": [{**TRAIN, "group": ["role:personal"]}, {**TRAIN, "group": ["role:shared"]}],
    "Per-FedAvg": [{**TRAIN, "evaluate_at": {"kind": "lookahead", "step": 0.01}}],
    "Reptile": [{**TRAIN, "trains": "inner"}, {"kind": "move", "toward": "inner", "rate": 0.1}],
    "FedP3": [{**TRAIN, "mask": "pruned"}],
    "EWC": [{**TRAIN, "anchor": "initial", "mu": "fisher"}],
    "keyboard": [
        {"kind": "assign_slots", "module": "slots", "min_count": 2},
        {"kind": "memorize", "module": "memory"},
        {**TRAIN, "optimizer": {"kind": "adamw", "lr": 1e-3, "betas": [0.9, 0.99]}, "clip": 1.0},
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_design_can_be_said(name):
    plan = Plan.load(json.dumps({"schema_version": 1, "phases": ROWS[name]}))
    assert Plan.load(plan.dump()) == plan
    jsonschema.validate(json.loads(plan.dump()), json.loads(Plan.json_schema()))


def test_published_schema_is_current():
    published = Path(module.__file__).with_name("plan.schema.json")
    assert published.read_text() == Plan.json_schema(), "write Plan.json_schema() into plan.schema.json"


BAD = {
    "not json": "{",
    "not an object": "[]",
    "no phases": '{"phases": []}',
    "unknown field": json.dumps({"phases": [TRAIN], "extra": 1}),
    "unknown field in a phase": json.dumps({"phases": [{**TRAIN, "lr": 1}]}),
    "unknown kind": json.dumps({"phases": [{"kind": "think"}]}),
    "unknown optimizer": json.dumps({"phases": [{**TRAIN, "optimizer": {"kind": "lion", "lr": 1}}]}),
    "negative lr": json.dumps({"phases": [{**TRAIN, "optimizer": {"kind": "sgd", "lr": -1}}]}),
    "nan lr": '{"phases": [{"kind": "train", "steps": 1, "optimizer": {"kind": "sgd", "lr": NaN}}]}',
    "text for a number": json.dumps({"phases": [{**TRAIN, "steps": "1"}]}),
    "steps and epochs": json.dumps({"phases": [{**TRAIN, "epochs": 1}]}),
    "neither steps nor epochs": json.dumps({"phases": [{**TRAIN, "steps": None}]}),
    "mu without anchor": json.dumps({"phases": [{**TRAIN, "mu": 1}]}),
    "diverging mu": json.dumps({"phases": [{**TRAIN, "mu": 20, "anchor": "global"}]}),
    "trains a fixed set": json.dumps({"phases": [{**TRAIN, "trains": "global"}]}),
    "beta of 1": json.dumps(
        {"phases": [{**TRAIN, "optimizer": {"kind": "adamw", "lr": 1, "betas": [1, 0]}}]}
    ),
    "holdout of 1": json.dumps({"phases": [TRAIN], "holdout": 1.0}),
    "endless repeats": json.dumps(
        {
            "phases": [
                {
                    "kind": "repeat",
                    "times": 1000,
                    "phases": [{"kind": "repeat", "times": 1000, "phases": [TRAIN]}],
                }
            ]
        }
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_a_config_error(name):
    with pytest.raises(ConfigError, match="plan"):
        Plan.load(BAD[name])


def test_a_newer_plan_says_so():
    with pytest.raises(ConfigError, match="newer"):
        Plan.load(json.dumps({"schema_version": 2, "phases": [TRAIN], "future": True}))


def test_the_error_names_the_field():
    with pytest.raises(ConfigError, match=r"phases\.1\.train\.clip"):
        Plan.load(json.dumps({"phases": [TRAIN, {**TRAIN, "clip": 0}]}))


TABLE = [
    Tensor("blocks.0.lora_A", "shared", (1,), module="lora"),
    Tensor("head.w", "personal", (1,), module="head"),
    Tensor("slots.active", "personal", (1,), update="assign", module="slots"),
]


def test_group_patterns():
    assert select(["*"], TABLE) == ["blocks.0.lora_A", "head.w"]
    assert select(["blocks.?.*"], TABLE) == select(["role:shared"], TABLE) == ["blocks.0.lora_A"]
    assert select(["module:head", "role:personal"], TABLE) == ["head.w"]
    assert not matches("head.w", Tensor("headXw", "shared", (1,)))
    with pytest.raises(UnknownNameError, match="lora_B"):
        select(["*lora_B"], TABLE)
    with pytest.raises(ConfigError, match="no gradient"):
        select(["module:slots"], TABLE)


def test_personal_tensors_are_never_uploaded():
    assert uploaded(["*"], TABLE) == ["blocks.0.lora_A"]
    assert uploaded([], TABLE) == []
    with pytest.raises(ConfigError, match="never leave"):
        uploaded(["role:personal"], TABLE)


@given(before=st.floats(0, 10), after=st.floats(0, 10), tolerance=st.sampled_from([0.0, 0.5]))
def test_guard_adopts_only_what_is_better(before, after, tolerance):
    loss = decide(Guard(tolerance=tolerance), before, after, 5)
    recall = decide(Guard(metric="top1", tolerance=tolerance), before, after, 5)
    assert loss.adopted == (before - after > 0 or before - after > -tolerance)
    assert recall.adopted == (after - before > 0 or after - before > -tolerance)
    assert (loss.reason == "better") == (after < before)
    if tolerance == 0:
        assert not (loss.adopted and recall.adopted)


def test_guard_edges():
    assert not decide(Guard(), 1.0, 1.0, 5).adopted
    assert decide(Guard(), 1.0, float("nan"), 5).reason == "not_finite"
    assert decide(Guard(), float("inf"), 1.0, 5).adopted
    assert decide(Guard(min_examples=6), 1.0, 0.5, 5).reason == "too_few_examples"
    assert before_training(Guard(), 1.0, 1.0, 5) is None
    assert before_training(Guard(), None, None, 0).reason == "too_few_examples"
    appeal = Guard(metric="top1", appeal=0.4)
    assert before_training(appeal, 0.5, 0.39, 5) is None
    assert before_training(appeal, 0.1, 0.4, 5).reason == "good_enough"
    assert before_training(Guard(appeal=0.4), 0.5, 0.4, 5).reason == "good_enough"
