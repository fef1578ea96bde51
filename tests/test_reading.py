"""Reading what may be anything; errors that can be shown; faults of our own."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import reading
from pfl_mobile.cli import common
from pfl_mobile.errors import ConfigError, near
from pfl_mobile.local.groups import _fits
from pfl_mobile.plain_json import json_text
from pfl_mobile.text import WordTokenizer

ANY = st.characters(exclude_categories=())  # broken surrogates too
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(value=VALUES)
def test_all_json_that_others_write_is_read(value: object) -> None:
    assert reading.parse_json(json.dumps(value)) == value
    assert (
        reading.parse_json(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
        == value
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_may_begin_with_a_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes('{"a": "é"}\r\n'.encode(encoding))
    assert reading.read_json(path) == {"a": "é"}
    assert reading.read_text(path) == '{"a": "é"}\r\n'
    with reading.open_text(path) as lines:
        assert [line.strip() for line in lines] == ['{"a": "é"}']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "stands 2 times"),
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested deeper"),
        ("NaN", "not JSON"),
        ("1e999", "too large"),
        ("9" * 5000, "too large"),
        ("[" + "0," * 3_000_000 + "0]", "more than"),
        (b"\xff\xff", "codec"),
        (b"\xff\xfe1", "codec"),
        ("", "Expecting"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_a_value_error(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reading.parse_json(text)


def test_brackets_in_strings_are_no_nesting() -> None:
    assert reading.parse_json('["' + '[{\\"' * 500 + '"]') == ['[{"' * 500]
    assert reading.parse_json("NaN", finite=False) != 0


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "regular"),
        (tmp_path, "directory"),
        (tmp_path / "none", "No such"),
    ):
        with pytest.raises(OSError, match=says):
            reading.read_bytes(path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(OSError, match="more than 10"):
        reading.read_bytes(tmp_path / "large", 10)


@given(text=st.text(ANY))
def test_any_text_becomes_whole_and_whole_text_stays(text: str) -> None:
    whole = reading.whole_text(text)
    whole.encode()
    assert reading.whole_text(whole) == whole
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert whole == text


def test_halves_of_pairs_are_joined() -> None:
    assert reading.whole_text("a\ud83d\ude00b\udc00") == "a\U0001f600b\ufffd"
    tokenizer = WordTokenizer.train(["see you"], 10)
    assert tokenizer.words("see\ud800 \ud83d\ude00 you\udfff") == [
        "see",
        "\ufffd",
        "\U0001f600",
        "you",
        "\ufffd",
    ]


@given(text=st.text(ANY, max_size=50))
def test_any_text_can_be_a_message_and_json(text: str) -> None:
    error = ConfigError(f"no {text}", mend=text)
    str(error).encode()
    assert not any(c < " " and c not in "\t\n" for c in error.message)
    found = json_text({"a": text})
    found.encode()
    assert json.loads(found) == {"a": text}


def test_a_message_is_not_without_end() -> None:
    assert len(ConfigError("x" * 10**6, mend="y").message) < 10_000
    assert near("a" * 10**6, ["b" * 10**6, "ab"]) == "known: ab"


@given(name=st.text("ab.", max_size=8), pattern=st.text("ab.*?", max_size=6))
def test_patterns_fit_as_regular_expressions_do(name: str, pattern: str) -> None:
    import re

    expression = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert _fits(pattern, name) == (re.fullmatch(expression, name, re.DOTALL) is not None)


def _fails() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail(kind: str) -> None:
        raise {"value": ValueError, "pipe": BrokenPipeError, "memory": MemoryError}[kind](
            "\ud800 odd\x1b[31m"
        )

    return app


def test_a_fault_of_ours_is_told_in_a_few_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(common.DEBUG, raising=False)
    assert common.run(_fails(), "pfl", ["value"]) == 70
    err = capsys.readouterr().err
    assert "ValueError" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert common.run(_fails(), "pfl", ["memory"]) == 70
    capsys.readouterr()
    assert common.run(_fails(), "pfl", ["--debug", "value"]) == 70
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv(common.DEBUG, "1")
    assert common.run(_fails(), "pfl", ["value"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_nobody_reading_the_output_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert common.run(_fails(), "pfl", ["pipe"]) == 1
