"""The golden vectors are current, and follow from what is written about them, without NumPy's help."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from pfl_mobile import rows as batches
from pfl_mobile.errors import ConfigError
from pfl_mobile.files.tensors import metadata_from_bytes
from pfl_mobile.local import memory
from pfl_mobile.local.guard import before_training, decide
from pfl_mobile.local.state import ModelId, PersonalStateStore
from pfl_mobile.plan.schema import Guard, Plan

FOLDER = Path(__file__).parents[2] / "conformance"


def generator():
    spec = importlib.util.spec_from_file_location("conformance_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name):
    return json.loads((FOLDER / name).read_text())


def array(value):
    if "i64" in value:
        return np.array(value["i64"], np.int64).reshape(value["shape"])
    words = [int(w, 16) for w in value["f32"].split()]
    return np.array(words, np.uint32).view(np.float32).reshape(value["shape"])


def numbers(value):
    """The elements of a float32 array as Python floats."""
    return [struct.unpack(">f", bytes.fromhex(w))[0] for w in value["f32"].split()]


def r(x):
    """Round a float64 to float32; after one + - * / or sqrt of float32s this is the float32 operation."""
    return struct.unpack("f", struct.pack("f", x))[0]


def test_the_files_are_current():
    module = generator()
    stale = [
        name
        for name, content in module.files().items()
        if not module.same(name, (FOLDER / name).read_bytes(), content)
    ]
    assert stale == [], "run python conformance/generate.py and look at the difference"


def plain_step(theta, g, o, state, terms, sets):
    """The update rule from its documentation, one element after the other, in plain Python."""
    norm = math.sqrt(sum_of_squares(g))
    limit = terms.get("clip")
    scale = r(limit / norm) if limit is not None and norm > limit else None
    lr = terms.get("lr", o["lr"])
    state["step"] = state.get("step", 0) + 1
    out = {}
    for name in theta:
        out[name] = []
        mu = sets["mu"][name] if terms.get("mu") == "set" else [terms.get("mu", 0.0)]
        for i, x in enumerate(theta[name]):
            strength = r(mu[i] if len(mu) > 1 else mu[0])
            anchor, control, mask = (sets[k][name][i] for k in ("anchor", "control", "mask"))
            m = mask if "mask" in terms else 1.0
            d = g[name][i] if scale is None else r(g[name][i] * scale)
            if "anchor" in terms and not terms.get("implicit"):
                d = r(d + r(strength * r(x - anchor)))
            if "control" in terms:
                d = r(d + control)
            key = (name, i)
            if o["kind"] == "adamw":
                b1, b2 = o["betas"]
                first, second = state.get(key, (0.0, 0.0))
                first = r(first + r(r(d - first) * r(1 - b1)))
                second = r(r(second * r(b2)) + r(r(d * d) * r(1 - b2)))
                state[key] = (first, second)
                c1, c2 = 1 - power(b1, state["step"]), 1 - power(b2, state["step"])
                denominator = r(r(r(math.sqrt(second)) / r(math.sqrt(c2))) + r(o["eps"]))
                if o["weight_decay"]:
                    x = r(x - r(m * r(r(lr * o["weight_decay"]) * x)))
                change = r(r(lr / c1) * r(first / denominator))
            else:
                if o["weight_decay"]:
                    d = r(d + r(r(o["weight_decay"]) * x))
                if o["kind"] == "momentum":
                    first = r(r(r(o["momentum"]) * state.get(key, 0.0)) + d)
                    state[key] = first
                    d = r(d + r(r(o["momentum"]) * first)) if o["nesterov"] else first
                change = r(r(lr) * d)
            x = r(x - r(m * change))
            if terms.get("implicit"):
                s = r(r(lr) * strength)
                x = r(x - r(m * r(r(s / r(1 + s)) * r(x - anchor))))
            out[name].append(x)
    return out


def sum_of_squares(g):
    total = 0.0
    for name in sorted(g):
        for x in g[name]:
            total += x * x
    return total


def power(base, exponent):
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def test_the_update_rule_follows_from_its_documentation():
    file = load("update.json")
    gradients = [{n: numbers(v) for n, v in g.items()} for g in file["gradients"]]
    sets = {s: {n: numbers(v) for n, v in values.items()} for s, values in file["sets"].items()}
    for case in file["steps"]:
        theta, state = {n: numbers(v) for n, v in file["theta"].items()}, {}
        for g in gradients:
            theta = plain_step(theta, g, case["optimizer"], state, case["terms"], sets)
        assert theta == {n: numbers(v) for n, v in case["theta"].items()}, case["name"]
        assert case["state"]["step"]["i64"] == [3]
        for name, values in theta.items():
            if case["optimizer"]["kind"] == "adamw":
                slots = [state[name, i] for i in range(len(values))]
                assert numbers(case["state"][f"m.{name}"]) == [s[0] for s in slots]
                assert numbers(case["state"][f"v.{name}"]) == [s[1] for s in slots]
    norms = [struct.pack(">d", math.sqrt(sum_of_squares(g))).hex() for g in gradients]
    assert file["global_norm"][:3] == norms
    for base, exponent, bits in file["integer_power"]:
        assert struct.pack(">d", power(base, exponent)).hex() == bits


def test_random_numbers_follow_from_their_documentation():
    mask = 2**64 - 1

    def mix64(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    for case in load("random.json")["generators"]:
        for order in case["permutations"]:
            keys = [mix64(int(case["seed"]) + (i + 1) * 0x9E3779B97F4A7C15 & mask) for i in range(len(order))]
            assert order == sorted(range(len(order)), key=keys.__getitem__)
            assert [str(k) for k in keys[:6]] == case["splitmix64"][: len(order)]


def test_batches():
    file = load("batches.json")
    for case in file["epoch_order"]:
        order = batches.epoch_order(case["rows"], int(case["seed"]), case["phase"], case["epoch"])
        assert order.tolist() == case["order"]
    for n, fraction, size in file["holdout_size"]:
        assert batches.holdout_size(n, fraction) == size


def test_memory():
    file = load("memory.json")
    tokens, labels, weight = (array(file[k]) for k in ("tokens", "labels", "weight"))
    for case in file["cases"]:
        following, before, count = memory.memorize(
            tokens, labels, weight, case["capacity"], case["context_length"]
        )
        assert count == case["count"] == 7
        assert np.array_equal(following, array(case["next"]))
        assert np.array_equal(before, array(case["context"]))


def test_guard():
    file = load("guard.json")
    for case in file["decide"]:
        guard = Guard.model_validate(case["guard"])
        report = decide(guard, float(case["before"]), float(case["after"]), case["examples"])
        assert (report.adopted, report.reason) == (case["adopted"], case["reason"])
    for case in file["before_training"]:
        guard = Guard.model_validate(case["guard"])
        report = before_training(guard, case["value"], case["shipped"], case["examples"])
        assert (report and report.reason) == case["stop"]


def test_plans():
    file = load("plan.json")
    for case in file["valid"]:
        plan = Plan.load(json.dumps(case["plan"]))
        assert json.loads(plan.dump()) == case["full"]
        assert [phase.kind for phase in plan.steps()] == case["unrolled"]
    for case in file["invalid"]:
        with pytest.raises(ConfigError):
            Plan.load(json.dumps(case["plan"]))


def test_saved_state(tmp_path):
    meaning = load("state.json")
    saved = (FOLDER / "state.safetensors").read_bytes()
    store = PersonalStateStore(tmp_path, ModelId(*meaning["model"]))
    (tmp_path / "000004.safetensors").write_bytes(saved)
    (tmp_path / "CURRENT").write_text("4\n")
    state = store.load().state
    assert {n: array(v).tolist() for n, v in meaning["tensors"].items()} == {
        n: v.tolist() for n, v in state.tensors.items()
    }
    assert np.array_equal(state.copies["mine"]["a"], array(meaning["copies"]["mine"]["a"]))
    assert (list(state.words), state.metrics) == (meaning["words"], meaning["metrics"])
    assert json.loads(metadata_from_bytes(saved)["head"])["parent"] == meaning["parent"]


def test_trainer_vectors_cover_adopting_keeping_and_skipping():
    statuses = {case["name"]: case["status"] for case in load("trainer.json")["cases"]}
    assert statuses["guard keeps"] == "kept"
    assert statuses["appeal"] == "skipped"
    assert statuses["fedavg"] == statuses["pfedme"] == "adopted"


def test_strategy_vectors_cover_all_strategies_and_what_their_plans_do():
    cases = load("strategies.json")["cases"]
    assert len({case["strategy"] for case in cases}) == len(cases) == 34
    plans = [Plan.model_validate_json(json.dumps(run["plan"])) for case in cases for run in case["runs"]]
    assert {phase.kind for plan in plans for phase in plan.steps()} == {
        "train",
        "move",
        "combine",
        "measure",
        "choose",
    }
    assert {run["status"] for case in cases for run in case["runs"]} == {"adopted", "kept"}
    assert any(run["state"]["copies"] for case in cases for run in case["runs"])


def test_slots_hold_no_digits_and_no_blocked_words():
    import hashlib
    import hmac
    import unicodedata

    found = load("slots.json")
    for case in found["cases"]:
        assert len(case["chosen"]) <= case["slots"]
        assert case["chosen"][: len(case["words"])] == case["words"]
        for word in case["chosen"][len(case["words"]) :]:
            assert not any(unicodedata.category(c).startswith("N") for c in word)
            assert not {word, *word.split("'")} & set(case["blocked"])
            assert word not in found["vocabulary"]
    for word, digest in found["digests"]["words"].items():
        key = bytes.fromhex(found["digests"]["key"])
        assert hmac.new(key, word.encode(), hashlib.sha256).hexdigest() == digest


def test_a_forgotten_word_has_no_slot_and_no_entry():
    found = load("slots.json")["forget"]
    base = len(load("slots.json")["vocabulary"])
    old = found["state"]["words"]
    for case in found["cases"]:
        gone = [w for w in old if {w, *w.split("'")} & set(case["cut"])]
        assert case["words"] == [w for w in old if w not in gone]
        active = array(case["tensors"]["slots.active"])
        assert active.tolist() == [1.0] * len(case["words"]) + [0.0] * (4 - len(case["words"]))
        for name in ("memory.next", "memory.context"):
            assert array(case["tensors"][name]).max() < base + len(case["words"])


def test_texts_are_cut_as_their_kinds_say():
    """The digests are of the table that ships, and no piece is one that nobody can see."""
    import hashlib

    from pfl_mobile.text.table import PATH

    found = load("text.json")
    table = json.loads(PATH.read_text(encoding="utf-8"))
    kinds = bytearray(b"S" * 0x110000)
    for kind, ends in table["kinds"].items():
        for first, last in zip(ends[::2], ends[1::2], strict=True):
            kinds[first : last + 1] = kind.encode() * (last + 1 - first)
    assert hashlib.sha256(kinds).hexdigest() == found["table"]["sha256"]["kinds"]
    assert {chr(k) for k in kinds} == {chr(kinds[ord(c)]) for case in found["cut"] for c in case["text"]} | {
        "X"
    }
    for case in found["cut"]:
        for piece in case["2"]:
            assert chr(kinds[ord(piece[0])]) not in "MmoWXvztngk"
            assert not any(chr(kinds[ord(c)]) in "WX" for c in piece)
    for piece, symbol, _, script in found["pieces"]:
        assert (
            symbol == (chr(kinds[ord(piece[0])]) in "SEFRecab" or "\ufe0f" in piece) or "\U0001f3fd" in piece
        )
        assert script in (None, "characters", "clusters")
    for case in found["encode"]["cases"]:
        assert max(map(max, case["ids"][:2])) < len(found["encode"]["vocabulary"]) + len(case["words"])
