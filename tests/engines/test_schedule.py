"""Schedules: what is read and refused (with the vectors of `conformance`), and how their calls are run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import errors
from pfl_mobile.bundle import Bundle
from pfl_mobile.bundle.manifest import ProgramSpec
from pfl_mobile.engines import open_session
from pfl_mobile.engines.base import EngineSession
from pfl_mobile.engines.compare import golden_check
from pfl_mobile.engines.schedule import (
    ALIGNMENT,
    CONSTANTS,
    SCHEDULE,
    Course,
    PartCall,
    ScheduledSession,
    last_readers,
    parse_schedule,
    scheduled,
)
from pfl_mobile.errors import (
    EngineError,
    InvalidManifestError,
    TensorMismatchError,
    UnknownNameError,
)

VECTORS = json.loads((Path(__file__).parents[2] / "conformance" / "schedules.json").read_text())
PROGRAMS = [ProgramSpec.model_validate(each) for each in VECTORS["programs"]]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_what_is_written_down_is_read_or_refused(case):
    if "error" in case:
        with pytest.raises(getattr(errors, case["error"])) as caught:
            parse_schedule(case["text"].encode(), PROGRAMS)
        assert caught.value.code == case["error"]
        return
    schedule = parse_schedule(case["text"].encode(), PROGRAMS)
    drops = {name: [sorted(end) for end in last_readers(c)] for name, c in schedule.programs.items()}
    assert drops == case["drops"]
    assert parse_schedule(schedule.to_json(), PROGRAMS) == schedule


@st.composite
def courses(draw):
    """Calls that read what is there already."""
    there = ["input:a", "input:b", "constant:c"]
    calls, number = [], 0
    for _ in range(draw(st.integers(1, 8))):
        read = tuple(draw(st.lists(st.sampled_from(there), max_size=4)))
        made = tuple(range(number, number := number + draw(st.integers(1, 3))))
        calls.append(PartCall(part="p", inputs=read, outputs=made))
        there += [f"value:{n}" for n in made]
    return Course(
        calls=tuple(calls), outputs=tuple(draw(st.lists(st.sampled_from(there), min_size=1, max_size=3)))
    )


@given(courses())
def test_a_value_is_there_as_long_as_somebody_will_read_it_and_no_longer(course):
    held = {"input:a", "input:b"}
    for number, (call, end) in enumerate(zip(course.calls, last_readers(course), strict=True)):
        assert {name for name in call.inputs if not name.startswith("constant:")} <= held
        held |= {f"value:{n}" for n in call.outputs}
        assert end <= held
        held -= end
        rest = course.calls[number + 1 :]
        later = {*course.outputs, *(name for c in rest for name in c.inputs)}
        made = {f"value:{n}" for c in course.calls[: number + 1] for n in c.outputs}
        # inputs that no call ever reads are the caller's
        inputs = {name for c in course.calls for name in c.inputs} & {"input:a", "input:b"}
        assert held & (made | inputs) == later & (made | inputs)


class Parts(EngineSession):
    """Adds what it is given; a part of another name does other things."""

    name = "adding"

    def __init__(self, files, specs):
        super().__init__(specs)
        self.files, self.closed, self.seen = files, False, []

    def _execute(self, program, inputs):
        self.seen.append((program, inputs))
        if program == "fails":
            raise RuntimeError("boom")
        if program == "wide":
            return [np.zeros(3, np.float32)]
        return [np.sum(inputs, axis=0, dtype=np.float32)] * len(self.programs[program].outputs)

    def close(self):
        super().close()
        self.closed = True


def two(*names):
    return [{"name": name, "shape": [2], "dtype": "float32"} for name in names]


ALL = ProgramSpec.model_validate(
    {"name": "all", "inputs": two("x", "y"), "outputs": two("sum", "again", "in", "c")}
)
X = {"x": np.array([1, 2], np.float32), "y": np.array([10, 20], np.float32)}


@pytest.fixture
def made(tmp_path):
    """Opens a schedule of three calls, of which the second is of a part of this name."""
    opened = []

    def open_(part="add", content=None, offset=ALIGNMENT, **files):
        schedule = {
            "schema_version": 1,
            "kind": "pfl-schedule",
            "parts": [{"name": n, "inputs": two("a", "b"), "outputs": two("s")} for n in {"add", part}],
            "constants": {"c": {"shape": [2], "dtype": "float32", "offset": offset}},
            "programs": {
                "all": {
                    "calls": [
                        {"part": "add", "inputs": ["input:x", "constant:c"], "outputs": [5]},
                        {"part": part, "inputs": ["value:5", "value:5"], "outputs": [0]},
                        {"part": "add", "inputs": ["value:0", "input:y"], "outputs": [1]},
                    ],
                    "outputs": ["value:1", "value:1", "input:y", "constant:c"],
                }
            },
        }
        place = tmp_path / "schedule.json"
        place.write_text(json.dumps(schedule))
        constants = tmp_path / "constants.bin"
        constants.write_bytes(
            bytes(ALIGNMENT) + np.array([100, 200], "<f4").tobytes() if content is None else content
        )
        names = {SCHEDULE: str(place), CONSTANTS: str(constants), "model": "m", **files}

        def load(given, specs):
            opened.append(Parts(given, specs))
            return opened[-1]

        return scheduled({n: path for n, path in names.items() if path}, [ALL], load), opened[-1]

    return open_


def test_calls_are_run_one_after_another(made):
    session, parts = made()
    for _ in range(2):
        found = session.run("all", X)
        assert {name: value.tolist() for name, value in found.items()} == {
            "sum": [212, 424],
            "again": [212, 424],
            "in": [10, 20],
            "c": [100, 200],
        }
    assert [program for program, _ in parts.seen] == ["add"] * 6
    assert session.name == "adding"
    assert list(session.programs) == ["all"]


def test_constants_are_views_of_the_mapped_file_and_outputs_are_not(made):
    session, parts = made()
    found = session.run("all", X)
    given = parts.seen[0][1][1]
    assert not given.flags.owndata
    assert not given.flags.writeable
    assert not np.shares_memory(given, found["c"])
    assert found["c"].flags.writeable
    found["in"][:] = 0
    assert X["y"].tolist() == [10, 20]


def test_closing_closes_the_parts(made):
    session, parts = made()
    session.run("all", X)
    session.close()
    assert parts.closed
    with pytest.raises(UnknownNameError):
        session.run("all", X)


@pytest.mark.parametrize(("part", "error"), [("fails", EngineError), ("wide", TensorMismatchError)])
def test_an_engine_that_fails_in_a_part_names_it_and_the_program(made, part, error):
    session, _ = made(part)
    with pytest.raises(error, match=f"call 1 of program 'all', part '{part}': .*'{part}'") as caught:
        session.run("all", X)
    assert type(caught.value) is error
    with pytest.raises(error, match=r"^call 1 of") as again:  # and each time in the same words
        session.run("all", X)
    assert again.value.message == caught.value.message


@pytest.mark.parametrize("content", [b"", bytes(ALIGNMENT), bytes(ALIGNMENT + 7)])
def test_a_file_of_constants_that_is_too_short_is_refused_before_anything_runs(made, content):
    with pytest.raises(EngineError, match=f"has {len(content)} bytes, and 'c' ends at {ALIGNMENT + 8}"):
        made(content=content)


def test_parts_are_closed_when_the_constants_are_refused(monkeypatch, made):
    closed = []
    monkeypatch.setattr(Parts, "close", lambda self: closed.append(self))
    with pytest.raises(EngineError):
        made(offset=1 << 40)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({CONSTANTS: "/no/such"}, EngineError, "the file of constants"),
        ({CONSTANTS: ""}, EngineError, "'constants'"),
        ({SCHEDULE: "/no/such"}, EngineError, "the schedule"),
        ({SCHEDULE: __file__}, InvalidManifestError, "not valid JSON"),
    ],
)
def test_files_that_are_gone_or_something_else_are_typed_errors(made, files, error, words):
    with pytest.raises(error, match=words) as caught:
        made(**files)
    assert caught.value.mend


def test_files_without_a_schedule_go_to_the_engine_as_they_are():
    session = scheduled({"model": "m"}, [ALL], Parts)
    assert isinstance(session, Parts)
    assert session.files == {"model": "m"}
    assert list(session.programs) == ["all"]


def test_no_file_of_constants_is_asked_for_where_there_are_none(tmp_path):
    schedule = {
        "schema_version": 1,
        "kind": "pfl-schedule",
        "parts": [{"name": "one", "inputs": two("a", "b"), "outputs": two("s", "t", "u", "v")}],
        "constants": {},
        "programs": {
            "all": {
                "calls": [{"part": "one", "inputs": ["input:x", "input:y"], "outputs": [0, 1, 2, 3]}],
                "outputs": ["value:0", "value:1", "value:2", "value:3"],
            }
        },
    }
    place = tmp_path / "s.json"
    place.write_text(json.dumps(schedule))
    session = scheduled({SCHEDULE: str(place)}, [ALL], Parts)
    assert isinstance(session, ScheduledSession)
    assert session.run("all", X)["c"].tolist() == [11, 22]


def test_a_bundle_whose_blocks_are_one_part_gives_what_pytorch_gave():
    pytest.importorskip("onnxruntime")
    folder = Path(__file__).parents[2] / "conformance" / "bundles" / "blocks"
    with (
        Bundle.open(folder) as bundle,
        open_session(bundle, "onnxruntime", threads=1, trusted=True) as session,
    ):
        assert isinstance(session, ScheduledSession)
        calls = parse_schedule(
            (folder / "parts" / "schedule.json").read_bytes(), bundle.manifest.programs
        ).programs["gradients"]
        assert len({call.part for call in calls.calls}) < len(calls.calls)
        report = golden_check(bundle, session)
    assert report.ok
    assert report.worst_rel_err < 1e-5
