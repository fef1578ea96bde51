"""Folders of personal states that were damaged, and what loading them gives: states.json."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bundle_vectors import Step, apply, step

from pfl_mobile.bundle import Bundle
from pfl_mobile.errors import PflError
from pfl_mobile.files.sealed import seal
from pfl_mobile.local.state import FORMAT, ModelId, PersonalState, PersonalStateStore
from pfl_mobile.text.blocked import BlockList

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = ModelId("toy", "1", "ab" * 32)
TENSORS: dict[str, np.ndarray] = {
    "a": np.array([1.5, -0.0], np.float32),
    "copy:mine:a": np.array([0.1, 2.0], np.float32),
    "n": np.array([3], np.int64),
}
HEAD = {
    "schema_version": 1,
    "model": [MODEL.name, MODEL.version, MODEL.fingerprint],
    "parent": 1,
    "created": 1700000000.25,
    "words": ["zoë"],
    "metrics": {"loss": 0.1},
}
NEWEST = "000002.safetensors"


def _sealed(head: Any = HEAD, form: str | None = FORMAT, tensors: dict[str, np.ndarray] = TENSORS) -> bytes:
    text = head if isinstance(head, str) else json.dumps(head, sort_keys=True)
    return seal(tensors, text, form=form)


def folder() -> dict[str, bytes]:
    """Two versions, the second of which serves."""
    return {
        "000001.safetensors": _sealed({**HEAD, "parent": 0, "words": [], "metrics": {}}),
        NEWEST: _sealed(),
        "CURRENT": b"2\n",
        "FORGOTTEN": BlockList(bytes(range(32))).plus(["zorp"]).to_json(),
    }


def _put(file: str, data: bytes) -> list[Step]:
    return [step("write", file, text=""), step("insert", file, at=0, hex=data.hex())]


def cases() -> Iterator[dict[str, Any]]:
    """Damage by name."""

    def head(name: str, value: Any, **more: Any) -> dict[str, Any]:
        return {"name": name, "steps": _put(NEWEST, _sealed(value, **more))}

    def field(name: str, field: str, value: Any) -> dict[str, Any]:
        return head(name, {**HEAD, field: value})

    def current(name: str, text: str) -> dict[str, Any]:
        return {"name": name, "steps": [step("write", "CURRENT", text=text)]}

    yield {"name": "as it is", "steps": []}
    yield {"name": "no CURRENT", "steps": [step("remove", "CURRENT")]}
    for text in ("0", "1", " 2 ", "2", "", "-1", "x", "3", "2\n2", "99999999999999999999", "٢", "1" * 200):
        yield current(f"CURRENT is {text[:25]!r}", text)
    yield {"name": "CURRENT is a folder", "steps": [step("remove", "CURRENT"), step("folder", "CURRENT")]}
    yield {"name": "the newest is gone", "steps": [step("remove", NEWEST)]}
    yield {"name": "the newest is empty", "steps": [step("write", NEWEST, text="")]}
    yield {"name": "the newest is cut", "steps": [step("drop", NEWEST, bytes=1)]}
    yield {
        "name": "the newest has another byte",
        "steps": [step("replace", NEWEST, at=len(_sealed()) - 1, hex="01")],
    }
    yield {"name": "the newest is longer", "steps": [step("insert", NEWEST, at=-1, hex="00")]}
    yield {
        "name": "both are cut",
        "steps": [step("drop", n, bytes=1) for n in (NEWEST, "000001.safetensors")],
    }
    yield {"name": "both are gone", "steps": [step("remove", n) for n in (NEWEST, "000001.safetensors")]}
    yield head("a newer schema", {**HEAD, "schema_version": 2})
    yield head("a newer schema with other fields", {"schema_version": 3})
    yield head("no schema", {k: v for k, v in HEAD.items() if k != "schema_version"})
    for value in (True, 1.0, "1", None):
        yield field(f"schema {value!r}", "schema_version", value)
    yield head("another format", HEAD, form="pfl-checkpoint")
    yield head("no format", HEAD, form=None)
    yield head("a head that is a list", [1])
    yield head("a head that is no JSON", "{")
    yield head("a head with a key twice", json.dumps(HEAD)[:-1] + ', "parent": 1}')
    yield head("no head", "")
    for name in ("model", "parent", "created", "words", "metrics"):
        yield head(f"no {name}", {k: v for k, v in HEAD.items() if k != name})
        yield field(f"{name} is null", name, None)
        yield field(f"{name} is an object", name, {"x": {}})
    yield field("another model", "model", ["other", "1", "ab" * 32])
    yield field("another version of the model", "model", ["toy", "2", "ab" * 32])
    yield field("other tensors", "model", ["toy", "1", "cd" * 32])
    yield field("a model of two parts", "model", ["toy", "1"])
    yield field("a model with a number", "model", ["toy", 1, "ab" * 32])
    yield field("a word that is a number", "words", [1])
    yield field("a metric that is text", "metrics", {"loss": "low"})
    yield field("a metric that is NaN", "metrics", {"loss": float("nan")})
    yield field("created is a whole number", "created", 1700000000)
    yield field("empty metrics", "metrics", {})
    yield field("many words", "words", ["a", "b", "😀"])
    yield field("a parent that is not there", "parent", 7)
    yield head("a copy of no tensor", HEAD, tensors={"copy:x": TENSORS["a"]})
    yield head("no tensor", HEAD, tensors={})
    yield head("not finite", HEAD, tensors={"a": np.array([np.nan], np.float32)})
    bad_parent = _sealed({**HEAD, "parent": 0})
    yield {
        "name": "a damaged version whose file says 0 as its parent",
        "steps": [*_put("000003.safetensors", bad_parent[:-1]), step("write", "CURRENT", text="3")],
    }
    forgotten: dict[str, Any] = json.loads(folder()["FORGOTTEN"])
    for name, text in {
        "empty": "",
        "a list": "[]",
        "newer": json.dumps({**forgotten, "schema_version": 2}),
        "of another kind": json.dumps({**forgotten, "kind": "x"}),
        "of a short key": json.dumps({**forgotten, "key": "00"}),
        "of a key that is no hex": json.dumps({**forgotten, "key": "z" * 64}),
        "of a word that is none": json.dumps({**forgotten, "words": ["zorp"]}),
        "without words": json.dumps({**forgotten, "words": []}),
    }.items():
        yield {
            "name": f"forgotten words that are {name}",
            "steps": [step("write", "FORGOTTEN", text=text)],
            "ask": "blocked",
        }
    yield {"name": "forgotten words as they are", "steps": [], "ask": "blocked"}
    yield {"name": "no forgotten words", "steps": [step("remove", "FORGOTTEN")], "ask": "blocked"}

    for name, model in {
        "this model": [MODEL.name, MODEL.version, MODEL.fingerprint],
        "an older version": ["toy", "0", MODEL.fingerprint],
        "other tensors": ["toy", "0", "cd" * 32],
        "another name": ["other", "1", MODEL.fingerprint],
    }.items():
        for carry in (
            {"same_weights": True},
            {"same_weights": False},
            {"same_weights": True, "discard": True},
        ):
            yield {
                "name": f"carried over from {name}: {', '.join(k for k, v in carry.items() if v) or 'nothing known'}",
                "steps": _put(NEWEST, _sealed({**HEAD, "model": model})),
                "carry_over": carry,
            }
    yield {
        "name": "carried over, with a damaged version",
        "steps": [
            *_put(NEWEST, _sealed({**HEAD, "model": ["toy", "0", MODEL.fingerprint]})),
            step("drop", "000001.safetensors", bytes=1),
        ],
        "carry_over": {"same_weights": True, "discard": True},
    }


def outcome(case: dict[str, Any], where: Path) -> dict[str, Any]:
    """What Python makes of a folder."""
    for name, data in folder().items():
        (where / name).write_bytes(data)
    apply(case["steps"], where)
    try:
        store = PersonalStateStore(where, MODEL)
        if "carry_over" in case:
            store.carry_over(**case["carry_over"])
        if case.get("ask") == "blocked":
            blocked = store.blocked
            return {"hides": {word: blocked.hides(word) for word in ("zorp", "zorp's", "zorps", "été")}}
        found = store.load()
    except PflError as error:
        return {"code": error.code}
    state = found.state or PersonalState({})
    return {
        "version": found.version,
        "warned": [[w.version, w.used] for w in found.warnings],
        "words": list(state.words),
        "metrics": sorted(state.metrics),
        "tensors": sorted([*state.tensors, *(f"{c}:{n}" for c, v in state.copies.items() for n in v)]),
    }


def state_files() -> dict[str, bytes]:
    """states.json."""
    listed = []
    for case in cases():
        where = Path(tempfile.mkdtemp())
        try:
            listed.append({**case, "outcome": outcome(case, where)})
        finally:
            shutil.rmtree(where)
    names = [case["name"] for case in listed]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    with Bundle.open(Path(__file__).parent / "bundles" / "small.pflb") as bundle:
        manifest = bundle.manifest
        small = ModelId.of(manifest.name, manifest.version, manifest.tensors, manifest.frozen_sha256)
    about = {
        "small": [small.name, small.version, small.fingerprint],
        "model": [MODEL.name, MODEL.version, MODEL.fingerprint],
        "folder": {name: data.hex() for name, data in folder().items()},
    }
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in listed)
    return {"states.json": f'{{"about": {json.dumps(about)},\n"cases": [\n{lines}\n]}}\n'.encode()}
