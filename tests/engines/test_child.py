"""The child process's side of the conversation, in this process."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest

from pfl_mobile.engines import child
from pfl_mobile.engines.frames import BrokenFrameError, receive, send
from tests.engines.test_base import SPEC, A, Adding, B

HEAD = {"engine": "made", "files": {}, "programs": [SPEC.model_dump(mode="json")], "threads": 1, "memory": 0}


def talk(monkeypatch, *frames, loader=None):
    """What the child answers to frames."""
    found = loader or (lambda files, programs, threads: Adding())
    monkeypatch.setattr(child, "load_engine", lambda name: found)
    asked, told = io.BytesIO(), io.BytesIO()
    for head, arrays in frames:
        send(asked, head, arrays)
    asked.seek(0)
    child.serve(asked, told)
    told.seek(0)
    answers = []
    while True:
        try:
            answers.append(receive(told, 1 << 20))
        except BrokenFrameError:
            return answers


def test_it_loads_runs_and_ends_with_the_other_side(monkeypatch):
    answers = talk(monkeypatch, (HEAD, []), ({"program": "add"}, [A, B]), ({"program": "add"}, [B, A]))
    assert [head for head, _ in answers] == [{}, {}, {}]
    np.testing.assert_array_equal(answers[1][1][0], A + 2 * B)
    np.testing.assert_array_equal(answers[2][1][0], B + 2 * A)


def test_errors_of_a_program_are_told_and_the_next_call_is_answered(monkeypatch):
    answers = talk(monkeypatch, (HEAD, []), ({"program": "add"}, [A[:1], B]), ({"program": "add"}, [A, B]))
    kind, message, _ = answers[1][0]["error"]
    assert "input 'a'" in message
    assert kind == "TensorMismatchError"
    assert answers[2][0] == {}


def refuse(*_):
    raise ValueError("not one of mine")


def too_large(*_):
    raise MemoryError


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (refuse, ("EngineError", "ValueError: not one of mine", False)),
        (too_large, ("ProgramDiedError", "", True)),
    ],
)
def test_a_file_that_does_not_load_is_told_as_what_it_is(monkeypatch, loader, told):
    answers = talk(monkeypatch, (HEAD, []), loader=loader)
    head = answers[0][0]
    assert (head["error"][0], head["error"][1], head.get("memory", False)) == told


def test_memory_is_limited_before_the_file_is_read(monkeypatch):
    order = []
    monkeypatch.setattr(child, "limit_this_process", lambda more: order.append(("limit", more)))

    def loader(*_):
        order.append("load")
        return SimpleNamespace(programs={})

    talk(monkeypatch, ({**HEAD, "memory": 1 << 30}, []), loader=loader)
    assert order == [("limit", 1 << 30), "load"]
