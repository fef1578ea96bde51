"""Schedules, good and bad (schedules.json), and a bundle that has one: bundles/blocks.

python conformance/schedule_vectors.py    export bundles/blocks anew, which generate.py takes as it is
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_mobile.bundle.manifest import ProgramSpec
from pfl_mobile.engines.schedule import last_readers, parse_schedule
from pfl_mobile.errors import PflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FOLDER = Path(__file__).parent / "bundles"

Json = dict[str, Any]


def spec(name: str, *shape: int, dtype: str = "float32") -> Json:
    """A tensor of a signature."""
    return {"name": name, "shape": list(shape), "dtype": dtype}


def program(name: str, inputs: Sequence[Json], outputs: Sequence[Json]) -> Json:
    """A signature."""
    return {"name": name, "inputs": list(inputs), "outputs": list(outputs)}


def call(part: str, inputs: str, *outputs: int) -> Json:
    """A call; its inputs with spaces between."""
    return {"part": part, "inputs": inputs.split(), "outputs": list(outputs)}


PROGRAMS = [
    program("evaluate", [spec("x", 2, 3), spec("w", 3)], [spec("loss_sum", 1)]),
    program("gradients", [spec("x", 2, 3), spec("w", 3)], [spec("loss_sum", 1), spec("grad.w", 3)]),
    program("predict", [spec("ids", 2, dtype="int64")], [spec("top_ids", 2, dtype="int64")]),
]
GOOD: Json = {
    "schema_version": 1,
    "kind": "pfl-schedule",
    "parts": [
        program("block", [spec("h", 2, 3), spec("k", 3, 3)], [spec("y", 2, 3)]),
        program("head", [spec("h", 2, 3), spec("w", 3)], [spec("loss", 1), spec("dw", 3)]),
        program(
            "add", [spec("a", 2, dtype="int64"), spec("b", 2, dtype="int64")], [spec("c", 2, dtype="int64")]
        ),
    ],
    "constants": {
        "k_0": {"shape": [3, 3], "dtype": "float32", "offset": 0},
        "k_1": {"shape": [3, 3], "dtype": "float32", "offset": 64},
        "one": {"shape": [2], "dtype": "int64", "offset": 128},
    },
    "programs": {
        "evaluate": {
            "calls": [
                call("block", "input:x constant:k_0", 0),
                call("block", "value:0 constant:k_1", 1),
                call("head", "value:1 input:w", 2, 3),
            ],
            "outputs": ["value:2"],
        },
        "gradients": {
            "calls": [
                call("block", "input:x constant:k_0", 7),
                call("block", "value:7 constant:k_1", 1),
                call("head", "value:7 input:w", 4, 2),
                call("head", "value:1 input:w", 3, 5),
            ],
            "outputs": ["value:3", "value:5"],
        },
        "predict": {
            "calls": [call("add", "input:ids constant:one", 0), call("add", "value:0 input:ids", 1)],
            "outputs": ["value:1"],
        },
    },
}


def changed(change: Callable[[Json], Any]) -> str:
    """The good schedule with a change."""
    content = copy.deepcopy(GOOD)
    change(content)
    return json.dumps(content)


def put(*path: str | int, **value: Any) -> str:
    """The good schedule with another value of a field (``to=``), or without it."""

    def change(content: Json) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        if value:
            place[path[-1]] = value["to"]
        else:
            del place[path[-1]]

    return changed(change)


def good() -> Iterator[tuple[str, str]]:
    """Schedules that are read."""
    yield "blocks in a row", json.dumps(GOOD)
    yield "with spaces and lines", "\n\t " + json.dumps(GOOD, indent=2) + "\r\n"
    yield (
        "inputs and constants as outputs",
        put("programs", "predict", "outputs", to=["constant:one"]),
    )
    yield "a value that is read, and an output", put("programs", "predict", "outputs", to=["value:0"])
    yield "an input as output", put("programs", "predict", "outputs", to=["input:ids"])
    yield (
        "no constants are read",
        put("constants", "unread", to={"shape": [0], "dtype": "bool", "offset": 1 << 53}),
    )
    yield "a program more than the bundle has", put("programs", "more", to=GOOD["programs"]["evaluate"])
    yield (
        "a part that nobody calls",
        changed(lambda c: c["parts"].append(program("unused", [], [spec("y", dtype="float16")]))),
    )


def bad() -> Iterator[tuple[str, str]]:
    """Schedules that are refused."""
    text = json.dumps(GOOD)
    first = ("programs", "evaluate", "calls")
    yield "no JSON", text[:-1]
    yield "empty", ""
    yield "a list", "[1]"
    yield "not plain UTF-8", "\ufeff" + text
    yield "a field twice", text.replace('"kind"', '"parts": [], "kind"', 1)
    yield "a half of a surrogate pair", text.replace('"a"', '"\\ud800"')
    yield "newer", put("schema_version", to=2)
    yield "newer in every way", '{"schema_version": 7}'
    yield "a version that is text", put("schema_version", to="1")
    yield "a version that is true", put("schema_version", to=True)
    yield "a version with a fraction", put("schema_version", to=1.0)
    yield "a version below one", put("schema_version", to=0)
    yield "of another kind", put("kind", to="pfl-bundle")
    yield "a field nobody knows", put("threads", to=1)
    yield "no constants", put("constants")
    yield "no parts", put("parts", to=[])
    yield "no programs", put("programs", to={})
    yield "a part twice", changed(lambda c: c["parts"].append(c["parts"][0]))
    yield "a part without outputs", put("parts", 0, "outputs", to=[])
    yield "two inputs of one name", put("parts", 0, "inputs", 1, "name", to="h")
    yield "a part that is no name", put("parts", 0, "name", to="Block")
    yield (
        "a part of a size that no device holds",
        changed(lambda c: c["parts"].append(program("huge", [spec("x", 1 << 20, 1 << 20)], [spec("y")]))),
    )
    yield (
        "a part of too many dimensions",
        changed(lambda c: c["parts"].append(program("deep", [spec("x", *[1] * 33)], [spec("y")]))),
    )
    yield "a constant that is no name", put("constants", "K", to=GOOD["constants"]["one"])
    yield "a constant that is not aligned", put("constants", "k_1", "offset", to=96)
    yield "a constant before the file", put("constants", "k_1", "offset", to=-64)
    yield "a constant beyond every file", put("constants", "k_1", "offset", to=(1 << 53) + 64)
    yield "a constant of another type", put("constants", "k_1", "dtype", to="float64")
    yield "a constant of no type", put("constants", "k_1", "dtype", to="complex64")
    yield "a constant of another shape", put("constants", "k_1", "shape", to=[9])
    yield (
        "a constant too large",
        put("constants", "big", to={"shape": [1 << 31], "dtype": "int64", "offset": 0}),
    )
    yield "no calls", put(*first, to=[])
    yield "no outputs", put("programs", "evaluate", "outputs", to=[])
    yield "a call without outputs", put(*first, 0, "outputs", to=[])
    yield "a call of no part", put(*first, 0, "part", to="blok")
    yield "an input too few", put(*first, 0, "inputs", to=["input:x"])
    yield "an output too many", put(*first, 0, "outputs", to=[0, 9])
    yield "a value twice", put(*first, 1, "outputs", to=[0])
    yield "a value twice in a call", put(*first, 2, "outputs", to=[2, 2])
    yield "a value below zero", put(*first, 2, "outputs", to=[2, -1])
    yield "a value that is not there", put(*first, 1, "inputs", 0, to="value:9")
    yield "a value before it is there", put(*first, 0, "inputs", 0, to="value:1")
    yield (
        "a value of another call's program",
        put("programs", "predict", "calls", 0, "inputs", 0, to="value:7"),
    )
    yield "a value of another shape", put("programs", "gradients", "calls", 3, "inputs", 0, to="value:2")
    yield "a value in another spelling", put(*first, 1, "inputs", 0, to="value:00")
    yield "a value of eight digits", put(*first, 1, "inputs", 0, to="value:10000000")
    yield "a value in other digits", put(*first, 1, "inputs", 0, to="value:\u0660")
    yield "a constant that is not there", put(*first, 0, "inputs", 1, to="constant:k_9")
    yield "a constant as an input", put(*first, 0, "inputs", 1, to="input:k_0")
    yield "an input of another shape", put(*first, 0, "inputs", 0, to="input:w")
    yield "an input with a control character", put(*first, 0, "inputs", 0, to="input:x\n")
    yield "a reference to something else", put(*first, 0, "inputs", 0, to="output:x")
    yield "a reference that is a number", put(*first, 0, "inputs", 0, to=0)
    yield "a program less", put("programs", "predict")
    yield "an output that is not there", put("programs", "evaluate", "outputs", to=["value:9"])
    yield "an output that is no input", put("programs", "evaluate", "outputs", to=["input:y"])
    yield "an output less", put("programs", "gradients", "outputs", to=["value:3"])
    yield "an output of another shape", put("programs", "evaluate", "outputs", to=["value:3"])
    yield "outputs in another order", put("programs", "gradients", "outputs", to=["value:5", "value:3"])


def outcome(text: str, programs: Sequence[ProgramSpec]) -> Json:
    """What reading gives: the code of the error, or what is dropped after each call of each program."""
    try:
        schedule = parse_schedule(text.encode(), programs)
    except PflError as error:
        return {"error": error.code}
    courses = sorted(schedule.programs.items())
    return {"drops": {name: [sorted(end) for end in last_readers(course)] for name, course in courses}}


def schedule_files() -> dict[str, bytes]:
    """schedules.json."""
    programs = [ProgramSpec.model_validate(each) for each in PROGRAMS]
    cases = [{"name": name, "text": text, **outcome(text, programs)} for name, text in (*good(), *bad())]
    assert [case["name"] for case in cases if "drops" in case] == [name for name, _ in good()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    return {"schedules.json": f'{{"programs": {json.dumps(PROGRAMS)},\n"cases": [\n{lines}\n]}}\n'.encode()}


def main() -> None:
    """Export a classifier of four equal blocks for ONNX Runtime, each kind of block once."""
    import sys

    from bundle_vectors import SECRET

    from pfl_exporters.export import export_bundle

    sys.path.insert(0, str(FOLDER.parents[1]))
    from tests import tiny

    export_bundle(tiny.blocks(), ["onnx"], FOLDER / "blocks", sign_key=SECRET, blocks=True)


if __name__ == "__main__":
    main()
