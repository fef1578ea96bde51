"""Writes the golden vectors of this folder from the Python reference; see README.md.

python conformance/generate.py            write
python conformance/generate.py --check    exit 1 if a file is not current
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from pfl_mobile import rows as batches
from pfl_mobile.bundle.versions import is_older, plain
from pfl_mobile.errors import ConfigError
from pfl_mobile.files.sealed import digest
from pfl_mobile.files.tensors import tensors_from_bytes, tensors_to_bytes
from pfl_mobile.local import guard, update
from pfl_mobile.local.forget import forget_words, words_to_forget
from pfl_mobile.local.memory import memorize
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan.check import check_plan
from pfl_mobile.plan.optimizers import AdamW, Momentum, Optimizer, Sgd
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.plan.select import matches
from pfl_mobile.plan.words import plan_words
from pfl_mobile.random import derive, permutation, splitmix64
from pfl_mobile.text.blocked import BlockList
from pfl_mobile.text.complete import PrefixIndex, complete
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_mobile.text.specials import SPECIALS

if TYPE_CHECKING:
    pass

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

# They lie beside this file, wherever that is run from.
from bundle_vectors import bundle_files  # noqa: E402
from device_vectors import device_files  # noqa: E402
from protocol_vectors import protocol_files  # noqa: E402
from schedule_vectors import schedule_files  # noqa: E402
from state_vectors import state_files  # noqa: E402
from strategy_vectors import strategy_vectors  # noqa: E402
from subword_texts import subword_texts_file  # noqa: E402
from subword_vectors import subword_file  # noqa: E402
from text_vectors import text_file  # noqa: E402
from toy import WORD_TABLE, Toy, WordEncoder, WordToy, array, arrays, draw, f64, tensor  # noqa: E402

SEEDS = (0, 1, 42, 2**63, 2**64 - 1)


def random_vectors() -> Any:
    """random.json."""
    generators = [
        {
            "seed": str(seed),
            "splitmix64": [str(splitmix64(seed, i)) for i in range(6)],
            "permutations": [permutation(seed, n).tolist() for n in (0, 1, 2, 10, 33)],
        }
        for seed in SEEDS
    ]
    keys: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 0), (0, 1), (3, 2, 1))
    return {
        "generators": generators,
        "derive": [
            {"seed": str(s), "keys": list(k), "result": str(derive(s, *k))} for s in SEEDS for k in keys
        ],
    }


def batch_vectors() -> Any:
    """batches.json."""
    orders = [
        {"rows": n, "seed": str(s), "phase": p, "epoch": e, "order": batches.epoch_order(n, s, p, e).tolist()}
        for n, s, p, e in ((1, 0, 0, 0), (5, 0, 0, 0), (5, 0, 0, 1), (5, 0, 1, 0), (13, 2**63 - 1, 2, 7))
    ]
    rows: batches.Rows = {"x": np.arange(1, 8, dtype=np.int64), "weight": np.full(7, 0.5, np.float32)}
    order = batches.epoch_order(7, 9, 0, 0)
    sizes = [
        [n, f, batches.holdout_size(n, f)] for n in (0, 1, 2, 3, 5, 10, 137) for f in (0.1, 0.2, 0.5, 0.9)
    ]
    return {
        "epoch_order": orders,
        "padded": {
            "rows": arrays(rows),
            "order": order.tolist(),
            "size": 3,
            "batches": [arrays(b) for b in batches.padded_batches(rows, 3, order)],
        },
        "holdout_size": sizes,
    }


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "lr": 0.1},
    "sgd_decay": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.01},
    "momentum": {"kind": "momentum", "lr": 0.05, "momentum": 0.9},
    "nesterov": {"kind": "momentum", "lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    "adamw": {"kind": "adamw", "lr": 0.001},
    "adamw_other": {"kind": "adamw", "lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.0},
}
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": 0.7},
    "fedprox": {"mu": 0.3, "anchor": True},
    "implicit": {"mu": 30.0, "anchor": True, "implicit": True},
    "mu_per_tensor": {"mu": "set", "anchor": True},
    "control": {"control": True},
    "mask": {"mask": True},
    "all": {"clip": 0.7, "mu": 0.3, "anchor": True, "control": True, "mask": True},
    "schedule": {"lr": 0.0123},
}
ADAPTER: TypeAdapter[Sgd | Momentum | AdamW] = TypeAdapter(Optimizer)
SHAPES = {"b": (3,), "a.w": (2, 3), "é": (1,), "Z": (2,)}


def update_vectors() -> Any:
    """update.json."""
    theta0 = {n: draw(10 + i, s) for i, (n, s) in enumerate(SHAPES.items())}
    gradients = [{n: draw(100 * k + i, s) for i, (n, s) in enumerate(SHAPES.items())} for k in range(1, 4)]
    sets = {
        "anchor": {n: draw(20 + i, s) for i, (n, s) in enumerate(SHAPES.items())},
        "control": {n: draw(30 + i, s, 0.1) for i, (n, s) in enumerate(SHAPES.items())},
        "mask": {n: (draw(40 + i, s) > 0).astype(np.float32) for i, (n, s) in enumerate(SHAPES.items())},
        "mu": {n: np.abs(draw(50 + i, s if i % 2 else (1,))) for i, (n, s) in enumerate(SHAPES.items())},
    }
    cases = []
    for optimizer_name, config in OPTIMIZERS.items():
        optimizer = ADAPTER.validate_python(config)
        for term_name, terms in TERMS.items():
            theta, state = dict(theta0), dict[str, np.ndarray]()
            for g in gradients:
                theta, state = update.update(
                    theta,
                    g,
                    optimizer,
                    state,
                    lr=terms.get("lr"),
                    clip_norm=terms.get("clip"),
                    anchor=sets["anchor"] if "anchor" in terms else None,
                    mu=sets["mu"] if terms.get("mu") == "set" else terms.get("mu", 0.0),
                    implicit=terms.get("implicit", False),
                    control=sets["control"] if "control" in terms else None,
                    mask=sets["mask"] if "mask" in terms else None,
                )
            name = f"{optimizer_name}/{term_name}"
            case = {"name": name, "optimizer": optimizer.model_dump(mode="json"), "terms": terms}
            cases.append({**case, "theta": arrays(theta), "state": arrays(state)})
    x, y = theta0, sets["anchor"]
    mean = update.mean_gradients(gradients[0], 3.5)
    return {
        "theta": arrays(theta0),
        "gradients": [arrays(g) for g in gradients],
        "sets": {name: arrays(values) for name, values in sets.items()},
        "steps": cases,
        "global_norm": [f64(update.global_norm(g)) for g in (*gradients, theta0)],
        "mean_gradients": {"weight": 3.5, "result": arrays(mean)},
        "mix": [{"alpha": a, "result": arrays(update.mix(x, y, a))} for a in (0.0, 0.3, 1.0)],
        "toward": [{"rate": r, "result": arrays(update.toward(x, y, r))} for r in (0.0, 0.2, 1.0, 1.5)],
        "minus": [{"rate": 0.07, "result": arrays(update.minus(x, gradients[0], 0.07))}],
        "integer_power": [
            [b, n, f64(update.integer_power(b, n))]
            for b in (0.0, 0.9, 0.999)
            for n in (0, 1, 2, 7, 1000, 123456)
        ],
    }


def memory_vectors() -> Any:
    """memory.json."""
    tokens = np.array([[1, 5, 6, 7], [1, 8, 0, 0], [1, 5, 9, 4]], np.int64)
    labels = np.array([[5, 6, 7, 3], [8, 3, 0, 0], [5, 9, 4, 6]], np.int64)
    weight = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0.5]], np.float32)
    cases = []
    for capacity, context in ((3, 1), (7, 2), (5, 3), (20, 3), (4, 0)):
        following, before, count = memorize(tokens, labels, weight, capacity, context)
        result = {"next": array(following), "context": array(before), "count": count}
        cases.append({"capacity": capacity, "context_length": context, **result})
    return {"tokens": array(tokens), "labels": array(labels), "weight": array(weight), "cases": cases}


def guard_vectors() -> Any:
    """guard.json; 'nan' and 'inf' are written as such."""
    guards: list[dict[str, Any]] = [
        {},
        {"tolerance": 0.1},
        {"metric": "top1"},
        {"metric": "top1", "tolerance": 0.1},
        {"min_examples": 6},
        {"appeal": 1.0},
        {"metric": "top1", "appeal": 1.0},
    ]
    values = (0.5, 0.55, 0.7, 1.0, float("nan"), float("inf"))
    decisions = []
    for config in guards:
        g = Guard.model_validate(config)
        for before in values:
            for after in values:
                report = guard.decide(g, before, after, 5)
                one = {
                    "guard": g.model_dump(mode="json"),
                    "before": str(before),
                    "after": str(after),
                    "examples": 5,
                }
                decisions.append({**one, "adopted": report.adopted, "reason": report.reason})
    first = []
    for config in guards:
        g = Guard.model_validate(config)
        for value, shipped in ((None, None), (0.5, 0.5), (2.0, 1.0), (0.5, 1.5)):
            stop = guard.before_training(g, value, shipped, 5)
            one = {"guard": g.model_dump(mode="json"), "value": value, "shipped": shipped, "examples": 5}
            first.append({**one, "stop": None if stop is None else stop.reason})
    return {"decide": decisions, "before_training": first}


TRAIN: dict[str, Any] = {"kind": "train", "steps": 6, "optimizer": {"kind": "sgd", "lr": 0.1}}
INNER: dict[str, Any] = {
    **TRAIN,
    "steps": 2,
    "trains": "inner",
    "start_from": "theta",
    "mu": 2.0,
    "anchor": "theta",
}
PLANS: dict[str, dict[str, Any]] = {
    "fedavg": {"phases": [TRAIN], "seed": 7},
    "epochs": {"phases": [{**TRAIN, "steps": None, "epochs": 2, "batches_per_step": 2}], "seed": 2**63 - 1},
    "full batch": {"phases": [{**TRAIN, "steps": None, "epochs": 2, "batches_per_step": "all"}]},
    "fedprox": {"phases": [{**TRAIN, "mu": 0.5, "anchor": "global", "clip": 1.0, "schedule": "linear"}]},
    "ditto": {
        "phases": [
            {**TRAIN, "group": ["role:shared"]},
            {**TRAIN, "group": ["a"], "trains": "mine", "mu": 5, "anchor": "global", "prox": "implicit"},
        ],
        "serve": "mine",
    },
    "pfedme": {
        "phases": [
            {
                "kind": "repeat",
                "times": 2,
                "phases": [INNER, {"kind": "move", "toward": "inner", "rate": 0.3}],
            }
        ]
    },
    "fedrep": {"phases": [{**TRAIN, "group": ["role:personal"]}, {**TRAIN, "group": ["a*"]}]},
    "per_fedavg": {"phases": [{**TRAIN, "evaluate_at": {"kind": "lookahead", "step": 0.05}}]},
    "scafflix": {
        "phases": [
            {**TRAIN, "evaluate_at": {"kind": "mix", "other": "initial", "alpha": 0.3}, "control": "control"}
        ],
        "serve": {"kind": "mix", "other": "initial", "alpha": 0.3},
    },
    "adamw with mask": {
        "phases": [{**TRAIN, "optimizer": {"kind": "adamw", "lr": 0.01}, "mask": "mask"}],
        "guard": {"metric": "loss", "tolerance": 0.5},
    },
    "scaffold": {
        "phases": [
            {
                "kind": "combine",
                "makes": "drift",
                "terms": [{"of": "control"}, {"of": "own", "times": -1}],
            },
            {**TRAIN, "schedule": "linear", "control": "drift"},
            {
                "kind": "combine",
                "makes": "own",
                "terms": [
                    {"of": "drift", "times": -1},
                    {"of": "global", "per": "rate"},
                    {"of": "theta", "times": -1, "per": "rate"},
                ],
            },
        ],
        "copies": {"own": {}},
        "keep": ["own"],
    },
    "ifca": {
        "phases": [
            {"kind": "choose", "among": ["control", "initial", "zero"], "report": "cluster"},
            TRAIN,
            {"kind": "measure", "report": "loss"},
            {"kind": "measure", "report": "loss of control", "at": "control"},
        ],
    },
    "held batch": {"phases": [{**INNER, "steps": 3, "hold_batch": True}, {**TRAIN, "group": ["b"]}]},
    "guard keeps": {"phases": [{**TRAIN, "optimizer": {"kind": "sgd", "lr": 2.5}}]},
    "appeal": {"phases": [TRAIN], "guard": {"appeal": 100.0}},
}
INVALID: dict[str, Any] = {
    "no phases": {"phases": []},
    "newer schema": {"schema_version": 2, "phases": [TRAIN]},
    "unknown field": {"phases": [{**TRAIN, "lr": 1}]},
    "unknown kind": {"phases": [{"kind": "think"}]},
    "lr of zero": {"phases": [{**TRAIN, "optimizer": {"kind": "sgd", "lr": 0}}]},
    "text for a number": {"phases": [{**TRAIN, "steps": "1"}]},
    "steps and epochs": {"phases": [{**TRAIN, "epochs": 1}]},
    "neither": {"phases": [{**TRAIN, "steps": None}]},
    "mu without anchor": {"phases": [{**TRAIN, "mu": 1}]},
    "diverging mu": {"phases": [{**TRAIN, "mu": 20, "anchor": "global"}]},
    "fixed set trained": {"phases": [{**TRAIN, "trains": "initial"}]},
    "beta of one": {"phases": [{**TRAIN, "optimizer": {"kind": "adamw", "lr": 1, "betas": [1, 0.9]}}]},
    "held batch with epochs": {"phases": [{**TRAIN, "steps": None, "epochs": 1, "hold_batch": True}]},
    "zero made": {"phases": [{"kind": "combine", "makes": "zero", "terms": [{"of": "theta"}]}]},
    "rate before training": {
        "phases": [{"kind": "combine", "makes": "x", "terms": [{"of": "theta", "per": "rate"}]}]
    },
    "unknown copy kept": {"phases": [TRAIN], "keep": ["mine"]},
    "served copy not kept": {"phases": [{**TRAIN, "trains": "mine"}], "serve": "mine", "keep": []},
    "copies sent of nothing": {"phases": [{**TRAIN, "trains": "mine"}], "upload_copies": ["mine"]},
    "not an object": [],
    "negative seed": {"phases": [TRAIN], "seed": -1},
    "seed too large": {"phases": [TRAIN], "seed": 2**63},
    "fraction for a whole number": {"phases": [{**TRAIN, "steps": 1.0}]},
    "number for a truth": {"phases": [{**TRAIN, "hold_batch": 1, "steps": 1}]},
    "truth for a number": {"phases": [{**TRAIN, "clip": True}]},
    "text for a rate": {"phases": [{**TRAIN, "optimizer": {"kind": "sgd", "lr": "0.1"}}]},
    "number for a name": {"phases": [{**TRAIN, "trains": 1}]},
    "null where there is a default": {"phases": [{**TRAIN, "group": None}]},
    "no patterns": {"phases": [{**TRAIN, "group": []}]},
    "empty name": {"phases": [{**TRAIN, "group": [""]}]},
    "name too long": {"phases": [{**TRAIN, "trains": "x" * 201}]},
    "zero steps": {"phases": [{**TRAIN, "steps": 0}]},
    "max_steps with steps": {"phases": [{**TRAIN, "max_steps": 5}]},
    "negative mu": {"phases": [{**TRAIN, "mu": -1, "anchor": "global"}]},
    "mu too large": {"phases": [{**TRAIN, "mu": 2e30, "anchor": "global", "prox": "implicit"}]},
    "some batches": {"phases": [{**TRAIN, "batches_per_step": "some"}]},
    "no batches": {"phases": [{**TRAIN, "batches_per_step": 0}]},
    "momentum of one": {"phases": [{**TRAIN, "optimizer": {"kind": "momentum", "lr": 1, "momentum": 1}}]},
    "three betas": {"phases": [{**TRAIN, "optimizer": {"kind": "adamw", "lr": 1, "betas": [0.9, 0.9, 0.9]}}]},
    "optimizer without kind": {"phases": [{**TRAIN, "optimizer": {"lr": 1}}]},
    "phase without kind": {"phases": [{"steps": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}]},
    "unknown schedule": {"phases": [{**TRAIN, "schedule": "cosine"}]},
    "mix above one": {
        "phases": [{**TRAIN, "evaluate_at": {"kind": "mix", "other": "initial", "alpha": 1.1}}]
    },
    "negative lookahead": {"phases": [{**TRAIN, "evaluate_at": {"kind": "lookahead", "step": -1}}]},
    "gradients elsewhere": {"phases": [{**TRAIN, "evaluate_at": "global"}]},
    "move too far": {"phases": [{"kind": "move", "toward": "initial", "rate": 2.1}]},
    "nothing combined": {"phases": [{"kind": "combine", "makes": "x", "terms": []}]},
    "nothing to choose": {"phases": [{"kind": "choose", "among": [], "report": "x"}]},
    "repeat of nothing": {"phases": [{"kind": "repeat", "times": 1, "phases": []}]},
    "too many phases": {
        "phases": [
            {
                "kind": "repeat",
                "times": 100_000,
                "phases": [{"kind": "repeat", "times": 2, "phases": [TRAIN]}],
            }
        ]
    },
    "everything held out": {"phases": [TRAIN], "holdout": 1},
    "fixed set copied": {"phases": [TRAIN], "copies": {"global": {}}},
    "guard without examples": {"phases": [TRAIN], "guard": {"min_examples": 0}},
    "negative tolerance": {"phases": [TRAIN], "guard": {"tolerance": -0.1}},
    "unknown start": {"phases": [TRAIN], "start": "global"},
    "mixed copy not kept": {
        "phases": [{**TRAIN, "trains": "mine"}],
        "serve": {"kind": "mix", "one": "mine", "other": "global", "alpha": 0.5},
        "keep": [],
    },
}


#: Plans that are valid by themselves and do not fit ``TABLE``, or what is there when they run.
UNFIT: dict[str, dict[str, Any]] = {
    "no such tensor": {"phases": [{**TRAIN, "group": ["c"]}]},
    "no such role": {"phases": [{**TRAIN, "group": ["*", "role:group"]}]},
    "no such module": {"phases": [{"kind": "memorize"}, TRAIN]},
    "only personal tensors sent": {"phases": [TRAIN], "upload": ["*", "b"]},
    "no such set": {"phases": [{**TRAIN, "mask": "masks"}]},
    "read before it is made": {"phases": [{"kind": "move", "toward": "inner", "rate": 1}, INNER]},
    "start outside of training": {"phases": [TRAIN, {"kind": "move", "toward": "start", "rate": 1}]},
    "made of too few tensors": {
        "phases": [{**INNER, "group": ["a"]}, {"kind": "move", "toward": "inner", "rate": 0.5}]
    },
    "copy of a copy that is not there": {"phases": [TRAIN], "copies": {"one": {"of": "other"}}},
    "served set that is not there": {"phases": [TRAIN], "serve": "mine"},
}


def plan_asks(plan: Plan) -> list[dict[str, Any]]:
    """What each phase says of itself: see ``PhaseBase``."""
    asked = (
        "kind",
        "reads",
        "step_reads",
        "writes",
        "makes_copy",
        "changes",
        "takes_over",
        "reported",
        "examples",
    )
    asked += ("remembers", "programs", "metrics", "leaves_rate", "needs_rate")
    found = []
    for phase in plan.distinct_steps():
        one = {name: getattr(phase, name) for name in asked}
        steps = [
            [rows, batch, phase.optimizer_steps(rows, batch)] for rows, batch in ((1, 4), (9, 4), (8, 2))
        ]
        found.append({**one, "optimizer_steps": steps})
    return found


def plan_vectors() -> Any:
    """plan.json."""
    valid = []
    extra: dict[str, Any] = {
        "phases": [{"kind": "assign_slots"}, {"kind": "memorize"}, TRAIN],
        "upload": ["a"],
        "upload_copies": ["mine"],
        "copies": {"mine": {"of": "initial", "group": ["a"]}},
    }
    for name, raw in {**PLANS, "keyboard": extra}.items():
        plan = Plan.load(json.dumps(raw))
        kinds = [phase.kind for phase in plan.steps()]
        one = {"name": name, "plan": raw, "full": json.loads(plan.dump()), "unrolled": kinds}
        valid.append({**one, "asks": plan_asks(plan), "reports": plan.reports, "words": plan_words(plan)})
    for name, raw in INVALID.items():
        try:
            Plan.load(json.dumps(raw))
        except ConfigError:
            continue
        raise AssertionError(name)
    return {
        "valid": valid,
        "invalid": [{"name": n, "plan": p} for n, p in INVALID.items()],
        "fit": plan_fits(),
    }


def plan_fits() -> Any:
    """The part of plan.json on whether a plan fits a model: the error's code, or null."""
    sets: dict[str, Any] = {"initial": {}, "global": {}, "control": {}, "mask": {}}
    cases = []
    for name, raw in {**PLANS, **UNFIT}.items():
        refused = None
        try:
            check_plan(Plan.load(json.dumps(raw)), TABLE, sets, [])
        except ConfigError as error:
            refused = type(error).__name__
        cases.append({"name": name, "plan": raw, "refused": refused})
    return {"tensors": [vars(t) for t in TABLE], "sets": list(sets), "cases": cases}


TABLE = (tensor("a", "shared", (2,)), tensor("b", "personal", (3,)))


def model_vectors() -> Any:
    """model.json."""
    table = [
        tensor("blocks.0.q.lora_A", "shared", (4, 8), module="lora"),
        tensor("é", "personal", (1,), module=None),
        tensor("slots.active", "group", (32,), update="assign", module="slots"),
        tensor("memory.next", "personal", (16,), dtype="int64", update="memorize", module="memory"),
    ]
    patterns = (
        "*",
        "blocks.*",
        "blocks.?.q.*",
        "role:personal",
        "module:slots",
        "*lora_?",
        "é",
        "BLOCKS*",
        "",
    )
    tensors = {"x": draw(1, (2, 2)), "n": np.arange(3, dtype=np.int64)}
    return {
        "tensors": [vars(t) for t in table],
        "fingerprint": ModelId.of("any", "1", table).fingerprint,
        "patterns": {p: [t.name for t in table if matches(p, t)] for p in patterns},
        "digest": {"tensors": arrays(tensors), "text": "{}", "sha256": digest(tensors, "{}")},
    }


def version_vectors() -> Any:
    """versions.json."""
    names = (
        "1.18",
        "1.18.0",
        "1.18.1",
        "1.9",
        "1.20.0rc1",
        "2",
        "0.9.9",
        "1.5.1+cpu",
        "1.5.1.1",
        "1.18.post1",
        "main",
    )
    pairs = [{"version": a, "than": b, "older": is_older(a, b)} for a in names for b in names]
    return {"plain": {name: plain(name) for name in names}, "pairs": pairs}


def trainer_vectors() -> Any:
    """trainer.json."""
    rows = {"x": draw(1, (13, 2)) + np.float32(1), "y": draw(2, (13, 3)), "weight": np.abs(draw(3, (13,)))}
    rows["weight"][4] = 0
    train, held = batches.split_rows(rows, 0.3)
    initial = {"a": draw(4, (2,)), "b": draw(5, (3,))}
    sets = {
        "control": {"a": draw(6, (2,), 0.1), "b": draw(7, (3,), 0.1)},
        "mask": {"a": np.array([1, 0], np.float32), "b": np.array([0, 1, 1], np.float32)},
    }
    cases = []
    for name, raw in PLANS.items():
        plan = Plan.load(json.dumps(raw))
        report = LocalTrainer(Toy(), plan, TABLE, initial, sets=sets).personalize(train, held)
        state = report.state or PersonalState(initial)
        case: dict[str, Any] = {"name": name, "plan": raw, "status": report.status, "steps": report.steps}
        case |= {"losses": [f64(x) for x in report.losses], "tensors": arrays(state.tensors)}
        case["reports"] = {n: f64(x) for n, x in report.reports.items()}
        case["copies"] = {c: arrays(v) for c, v in sorted(state.copies.items())}
        case |= {
            "before": f64(report.before["loss"]),
            "after": f64(report.after["loss"]) if report.after else None,
        }
        cases.append(case)
    given = {"train": arrays(train), "holdout": arrays(held), "initial": arrays(initial)}
    return {**given, "sets": {n: arrays(v) for n, v in sets.items()}, "cases": cases}


WORD_PLANS: dict[str, dict[str, Any]] = {
    "loss": {
        "phases": [{"kind": "assign_slots"}, {"kind": "memorize"}, {**TRAIN, "steps": None, "epochs": 2}],
    },
    "recall, and memory of what was held out": {
        "phases": [TRAIN, {"kind": "assign_slots", "min_count": 3}, TRAIN, {"kind": "memorize"}],
        "guard": {"metric": "top1", "tolerance": 0.5},
        "remember_holdout": True,
    },
    "from the shipped values": {
        "phases": [{"kind": "assign_slots", "min_count": 1}, TRAIN, {"kind": "memorize"}],
        "start": "initial",
        "remember_holdout": True,
    },
}
#: What a user writes before the first run, and then before the second.
TEXTS = (
    (
        "see zorp",
        "zorp home you",
        "you zorp blick",
        "see you home now",
        "blick zorp",
        "see you",
        "zorp blick",
    ),
    ("frob frob", "see frob", "frob home", "you frob zorp", "home"),
)


def word_vectors() -> Any:
    """words.json."""
    initial = {t.name: np.zeros(t.shape, t.dtype) for t in WORD_TABLE} | {"e": draw(70, WORD_TABLE[0].shape)}
    cases = []
    for name, raw in WORD_PLANS.items():
        trainer = LocalTrainer(
            WordToy(), Plan.load(json.dumps(raw)), WORD_TABLE, initial, encoder=WordEncoder()
        )
        state, runs = None, []
        for texts in TEXTS:
            train, held = batches.newest_part(texts, 0.3)
            report = trainer.personalize(train, held, state)
            state = report.state
            found = state or PersonalState(initial)
            run: dict[str, Any] = {"train": train, "holdout": held, "status": report.status}
            run |= {"words": list(found.words), "tensors": arrays(found.tensors)}
            run["losses"] = [f64(x) for x in report.losses]
            for when, metrics in (("before", report.before), ("after", report.after)):
                run[when] = {n: f64(x) for n, x in sorted(metrics.items())}
            runs.append(run)
        cases.append({"name": name, "plan": raw, "runs": runs})
    return {"tensors": [vars(t) for t in WORD_TABLE], "initial": arrays(initial), "cases": cases}


def state_vectors() -> tuple[Any, bytes]:
    """state.json and state.safetensors."""
    state = PersonalState(
        {"a": draw(8, (2,)), "b": draw(9, (3,)), "memory.next": np.arange(4, dtype=np.int64)},
        {"mine": {"a": draw(10, (2,))}},
        ("zoe", "tïm"),
        {"loss": 0.25},
    )
    model = ModelId.of("toy", "1", TABLE)
    with tempfile.TemporaryDirectory() as folder:  # of which only the encoding is wanted
        store = PersonalStateStore(folder, model, clock=lambda: 1_700_000_000.0)
    meaning = {
        "model": [model.name, model.version, model.fingerprint],
        "tensors": arrays(state.tensors),
        "copies": {c: arrays(v) for c, v in state.copies.items()},
        "words": list(state.words),
        "metrics": dict(state.metrics),
        "parent": 3,
    }
    return meaning, store._encode(state, 3)


#: Base words, and the messages of the user in slots.json.
BASE = "see you at home ."
MESSAGES = (
    "see zorp at 10:30 \U0001f602\U0001f602",
    "Zorp's code is zq8vttr4mm zq8vttr4mm, card 4929",
    "ZORP blick blick 2nd 2nd \u2167 \u2167 \u5341 \u5341 \u0663 \u0663",
    "zorp's e\u0301t\u00e9 \u00e9te\u0301 don\u2019t don't blick",
    "q" * 65 + " " + "q" * 65,
    "\U0001f44d\U0001f3fd\U0001f44d\U0001f3fd \u0645\u06cc\u200c\u0631 \u0645\u06cc\u200c\u0631",
    "don yo yo home home",
)


def slot_vectors() -> Any:
    """slots.json."""
    tokenizer = WordTokenizer.train([BASE], len(BASE.split()) + len(SPECIALS))
    key = bytes(range(32))
    cases = []
    for slots, min_count, words, blocked in (
        (9, 2, [], []),
        (20, 2, [], []),
        (3, 2, [], []),
        (0, 2, [], []),
        (9, 3, [], []),
        (9, 1, ["yo"], []),
        (9, 2, [], ["zorp", "don"]),
        (2, 1, ["blick"], ["yo", "home"]),
    ):
        encoder = TextEncoder(tokenizer, 8, tokenizer.size, slots, tuple(words))
        encoder = encoder.with_blocked(BlockList(key).plus(blocked))
        case = {"slots": slots, "min_count": min_count, "words": words, "blocked": blocked}
        chosen = encoder.choose_words(MESSAGES, min_count)
        cases.append({**case, "chosen": chosen, "ids": encoder.with_words(chosen).ids(MESSAGES[-1])})
    digests = {w: next(iter(BlockList(key).plus([w]).digests)) for w in ("zorp", "\u00e9t\u00e9", "don't")}
    vocabulary = [tokenizer.word(i) for i in range(tokenizer.size)]
    given = {"vocabulary": vocabulary, "messages": list(MESSAGES), "cases": cases}
    return {**given, "digests": {"key": key.hex(), "words": digests}, "forget": forget_vectors(tokenizer)}


def completion_vectors() -> Any:
    """completions.json."""
    words = ["the", "tonight", "don't", ",", "to", "there", "über", "then", "t", "Ω", "日", "the's"]
    tokenizer = WordTokenizer([*SPECIALS, *words])
    index = PrefixIndex(tokenizer)
    cases = []
    for prefix in (
        "",
        "t",
        "T",
        "The",
        "then",
        "don\u2019",
        "DON\u2018T",
        "ü",
        "Ü",
        ",",
        "z",
        "日",
        "the'",
        "ω",
        "🙂",
    ):
        ids = index.starting_with(prefix)
        likely, own = ["to", ",", "see", "then", "to"], ["tzatziki", "the", "ünlü"]
        vocabulary = [tokenizer.word(i) for i in ids]
        words_of = {str(k): complete(likely, own, vocabulary, prefix, k) for k in (1, 3, 9)}
        cases.append({"prefix": prefix, "ids": ids, "likely": likely, "own": own, "words": words_of})
    return {"words": words, "cases": cases}


def forget_vectors(tokenizer: WordTokenizer) -> Any:
    """The part of slots.json on forgetting."""
    rest: dict[str, Any] = {"module": "slots"}
    memory_part = {"dtype": "int64", "update": "memorize", "module": "memory"}
    table = [
        tensor("embed.slot_rows", "personal", (4, 2), **rest),
        tensor("slots.active", "personal", (4,), update="assign", **rest),
        tensor("memory.next", "personal", (6,), **memory_part),
        tensor("memory.context", "personal", (6, 2), **memory_part),
    ]
    initial = {t.name: draw(i, t.shape) for i, t in enumerate(table)}
    encoder = TextEncoder(tokenizer, 8, tokenizer.size, 4)
    base = encoder.vocabulary
    tensors = {
        "embed.slot_rows": draw(9, (4, 2)),
        "slots.active": np.array([1, 1, 1, 0], np.float32),
        "memory.next": np.array([4, base, base + 1, base + 2, 5, 0], np.int64),
        "memory.context": np.array(
            [[1, 0], [5, 1], [4, 2], [base + 1, 5], [base + 2, base], [0, 0]], np.int64
        ),
    }
    copies = {"mine": {"embed.slot_rows": draw(10, (4, 2))}}
    state = PersonalState(tensors, copies, ("zorp", "blick", "greta's"))
    cases = []
    for words in (["Blick"], ["greta", "see"], ["zorp"], ["zorp", "blick", "greta\u2019s"], ["never"]):
        cut = words_to_forget(words)
        found = forget_words(state, cut, encoder, table, initial)
        case = {
            "forget": words,
            "cut": list(cut),
            "words": list(found.words),
            "tensors": arrays(found.tensors),
        }
        cases.append({**case, "copies": {c: arrays(v) for c, v in found.copies.items()}})
    given = {
        "tensors": arrays(tensors),
        "copies": {"mine": arrays(copies["mine"])},
        "words": list(state.words),
    }
    return {"table": [vars(t) for t in table], "initial": arrays(initial), "state": given, "cases": cases}


def files() -> dict[str, bytes]:
    """Every file with its content."""
    meaning, saved = state_vectors()
    content = {
        "random.json": random_vectors(),
        "batches.json": batch_vectors(),
        "update.json": update_vectors(),
        "memory.json": memory_vectors(),
        "guard.json": guard_vectors(),
        "plan.json": plan_vectors(),
        "model.json": model_vectors(),
        "slots.json": slot_vectors(),
        "completions.json": completion_vectors(),
        "state.json": meaning,
        "versions.json": version_vectors(),
        "trainer.json": trainer_vectors(),
        "strategies.json": strategy_vectors(),
        "words.json": word_vectors(),
    }
    out = {name: (json.dumps(value, ensure_ascii=False) + "\n").encode() for name, value in content.items()}
    out |= {"text.json": text_file(), "subwords.json": subword_file()}
    out |= {"subword_texts.json": subword_texts_file()}
    more = {**protocol_files(), **device_files(), **bundle_files(), **schedule_files(), **state_files()}
    return {**out, "state.safetensors": saved, **more}


def same(name: str, a: bytes, b: bytes) -> bool:
    """Whether two contents mean the same; update files have one spelling."""
    if name.endswith(".safetensors") and not name.startswith("updates/"):
        return tensors_to_bytes(tensors_from_bytes(a)) == tensors_to_bytes(tensors_from_bytes(b))
    return a == b


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a file is not current"
    )
    check = parser.parse_args().check
    stale = []
    for name, content in files().items():
        path = FOLDER / name
        if path.exists() and same(name, path.read_bytes(), content):
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    if stale:
        print(("not current: " if check else "wrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
