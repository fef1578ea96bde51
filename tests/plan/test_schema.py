from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import pfl_mobile.plan.schema as module
from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.schema import Plan

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
