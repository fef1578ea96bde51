from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile import errors
from pfl_mobile.bundle import Manifest, json_schema, parse_manifest, schema
from pfl_mobile.bundle.paths import check_distinct, check_path

from .conftest import make_files, make_parts, spec


def fields() -> dict[str, Any]:
    files = {path: {"sha256": "0" * 64, "bytes": 3} for path in make_files()}
    return {
        "schema_version": 1,
        "kind": "pfl-bundle",
        **copy.deepcopy(make_parts()),
        "files": files,
        "measured": {"total_bytes": 15},
    }


def parse(raw: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(raw).encode())


def test_round_trip() -> None:
    manifest = parse(fields())
    assert parse_manifest(manifest.to_json()) == manifest
    assert manifest.to_json() == parse_manifest(manifest.to_json()).to_json()


def test_the_version_of_the_piece_rules() -> None:
    """Bundles from before version 2 do not say one, and keep version 1."""
    old = parse(fields())
    assert old.encoder is not None
    assert old.encoder.kind == "text"
    assert (old.encoder.rules, old.encoder.subwords) == (1, None)
    raw = fields()
    raw["encoder"]["rules"] = 2
    assert parse(raw).encoder != old.encoder
    raw["encoder"]["rules"] = 3
    with pytest.raises(errors.SchemaVersionError, match="version 3 of the piece rules"):
        parse(raw)
    raw["encoder"]["rules"] = 0
    with pytest.raises(errors.InvalidManifestError, match="rules"):
        parse(raw)


def test_subwords_have_ids_and_no_slots() -> None:
    raw = fields()
    raw["encoder"] |= {"slots": 0, "vocabulary": 12, "subwords": {"pad": 0, "bos": 1, "eos": 1, "unk": None}}
    encoder = parse(raw).encoder
    assert encoder is not None
    assert encoder.kind == "text"
    assert encoder.subwords is not None
    assert encoder.subwords.ids() == {"pad": 0, "bos": 1, "eos": 1, "unk": -1}
    raw["encoder"] |= {"slots": 2, "vocabulary": 10}
    with pytest.raises(errors.InvalidManifestError, match="slots over subwords"):
        parse(raw)


def test_published_schema_is_current() -> None:
    assert schema.PATH.read_text() == schema.text(), "run: python -m pfl_mobile.bundle.schema"


def test_published_schema_takes_what_is_valid_and_refuses_what_is_not() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    validator.validate(json.loads(parse(fields()).to_json()))
    validator.validate(fields())
    for change in (
        {"schema_version": 2},
        {"extra": 1},
        {"files": {"../x": {"sha256": "0" * 64, "bytes": 0}}},
        {"encoder": {"kind": "text"}},
        {"tensors": [{**fields()["tensors"][0], "role": "frozen"}]},
    ):
        assert not validator.is_valid({**fields(), **change})
    for missing in ("schema_version", "kind", "programs", "files"):
        assert not validator.is_valid({k: v for k, v in fields().items() if k != missing})


def _set(*path: Any) -> Any:
    """A change of the manifest: keys down to a place, then its new value."""

    def change(raw: dict[str, Any]) -> None:
        *keys, last, value = path
        node: Any = raw
        for key in keys:
            node = node[key]
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return change


BROKEN = [
    (_set("extra", 1), "extra"),
    (_set("tensors", 0, "extra", 1), r"tensors\.0\.extra"),
    (_set("kind", "other"), "kind"),
    (_set("schema_version", ...), "schema_version"),
    (_set("schema_version", 0), "schema_version"),
    (_set("schema_version", True), "schema_version"),
    (_set("name", ...), "name"),
    (_set("name", ""), "name"),
    (_set("programs", []), "programs"),
    (_set("engines", {}), "engines"),
    (_set("tensors", 0, "role", "frozen"), "role"),
    (_set("tensors", 0, "role", "group"), "group is named"),
    (_set("tensors", 0, "group", "g"), "group is named"),
    (_set("tensors", 0, "update", "sometimes"), "update"),
    (_set("tensors", 0, "dtype", "bfloat16"), "dtype"),
    (_set("tensors", 0, "shape", [-1]), "shape"),
    (_set("tensors", 0, "shape", ["3"]), "shape"),
    (_set("tensors", 0, "shape", [2, 3]), r"float32 \[3, 2\], but the device tensor is float32 \[2, 3\]"),
    (_set("tensors", 0, "dtype", "float16"), "float16"),
    (_set("tensors", 0, "module", "lor"), "did you mean 'lora'"),
    (_set("tensors", 0, "update", "assign"), "not the gradient of a tensor"),
    (_set("tensors", 1, "name", "out.lora_A"), "'out.lora_A' is listed 2 times"),
    (_set("modules", 1, "name", "lora"), "module 'lora' is listed 2 times"),
    (_set("modules", 0, "config", {"a": float("nan")}), "NaN"),
    (_set("programs", 1, "name", "gradients"), "program 'gradients' is listed 2 times"),
    (_set("programs", 0, "name", "a.b"), "programs.0.name"),
    (_set("programs", 0, "inputs", 1, "name", "tokens"), "input of program 'gradients' 'tokens' is listed 2"),
    (_set("programs", 0, "outputs", 1, "name", "loss_sum"), "'loss_sum' is listed 2"),
    (_set("programs", 0, "outputs", 2, spec("grad.out.lora_B", [3, 2])), "grad.out.lora_B"),
    (_set("programs", 0, "outputs", 2, spec("grad.out.lora_A", [1])), "grad.out.lora_A"),
    (_set("programs", 0, "inputs", 0, spec("tokens", [2, 5], "int64")), r"encoder gives \[2, 4\]"),
    (_set("engines", "executorch", "files", {}), "files"),
    (_set("engines", "executorch", "files", "model", "modl.pte"), "did you mean 'model.pte'"),
    (_set("plan", "other.json"), "other.json.*for plan"),
    (_set("tokenizer", None), "no tokenizer"),
    (_set("task", "vocabulary", 13), "words and slots are 12"),
    (_set("encoder", "kind", "images"), "encoder"),
    (_set("measured", "total_bytes", 14), "total_bytes"),
    (_set("measured", "total_bytes", 15.0), "total_bytes"),
    (_set("files", "plan.json", "sha256", "xyz"), "sha256"),
    (_set("files", "plan.json", "sha256", "A" * 64), "sha256"),
    (_set("limits", {"max_steps": 0}), "max_steps"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_each_fault_is_named(change: Any, words: str) -> None:
    raw = fields()
    change(raw)
    with pytest.raises(errors.InvalidManifestError, match=words):
        parse(raw)


def test_other_valid_forms() -> None:
    raw = fields()
    raw["tensors"][0] |= {"role": "group", "group": "north", "module": None}
    raw |= {"encoder": {"kind": "arrays", "batch": 2}, "tokenizer": None, "limits": {"max_examples": 100}}
    assert parse(raw).tensors[0].group == "north"
    raw["encoder"] = None
    assert parse(raw).encoder is None


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(fields()).name = "other"


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@settings(max_examples=25)
@given(raw=anything)
def test_any_value_in_any_field_is_refused_or_taken(raw: Any) -> None:
    for field in fields():
        with contextlib.suppress(errors.BundleError):
            parse({**fields(), field: raw})


@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(errors.BundleError):
        parse_manifest(data)


safe = st.from_regex(r"[a-z0-9_][A-Za-z0-9_.+-]{0,8}", fullmatch=True).filter(
    lambda p: not p.endswith(".") and p.split(".")[0].lower() not in {"con", "prn", "aux", "nul"}
)
shapes = st.lists(st.integers(0, 150), max_size=4)  # no tensor has more than 4 GiB


@settings(max_examples=50)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1), unique=True),
    shape=shapes,
    config=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(-(2**53), 2**53) | st.none()),
    paths=st.lists(safe, unique_by=str.lower, max_size=4),
    size=st.integers(0, 2**40),
)
def test_round_trip_of_any_manifest(
    names: list[str], shape: list[int], config: dict[str, Any], paths: list[str], size: int
) -> None:
    raw = fields()
    raw["modules"] = [{"name": n, "kind": "lora", "config": config} for n in names]
    raw["modules"] += fields()["modules"] if not {"lora", "slots"} & set(names) else []
    raw["tensors"] = [
        {**spec(n, shape), "role": "personal", "update": "memorize", "module": n if raw["modules"] else None}
        for n in names
    ]
    raw["programs"] = [{"name": "p", "inputs": [spec(n, shape) for n in names], "outputs": [spec("o", [])]}]
    raw["files"] |= {f"x/{p}": {"sha256": "f" * 64, "bytes": size} for p in paths}
    raw["measured"]["total_bytes"] += size * len(paths)
    manifest = parse(raw)
    assert parse_manifest(manifest.to_json()) == manifest
    assert [t.name for t in manifest.tensors] == names


@given(path=st.text(alphabet="ab./\\:~ \0-é", max_size=12))
def test_a_path_that_is_accepted_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except errors.UnsafePathError:
        return
    assert not set(path.split("/")) & {"", ".", ".."}
    assert not set(path) & set("\\:~ \0é")


def test_paths_that_are_one_file() -> None:
    check_distinct(["a", "b/a", "b/c"])
    for paths in (["a", "A"], ["b/a", "B/a"], ["a/b", "a"], ["a/b", "A"], ["a", "a"]):
        with pytest.raises(errors.UnsafePathError):
            check_distinct(paths)
