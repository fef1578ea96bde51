"""Messages in JSONL."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_mobile.data.jsonl import read
from pfl_mobile.errors import DataError


def test_jsonl_with_times_as_numbers_and_words(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"user": "ann", "text": "later", "time": "2026-01-02T00:00:00+01:00"}\n\n'
        '{"user": "ann", "text": "sooner", "time": 5}\n{"user": 3, "text": "x"}\n'
    )
    found = read(path)
    assert found.texts("ann") == ["sooner", "later"]
    assert found.texts("3") == ["x"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 has no"),
        ('{"user": "a"}', "line 2 has no"),
        ('{"user": null, "text": "x"}', "line 2: user is None"),
        ('{"user": "a", "text": "x", "time": "soon"}', "line 2: "),
        ('{"user": "a", "text": "x", "time": true}', "line 2: time is True"),
        ('{"user": "a", "text": "x", "time": NaN}', "line 2: time is nan"),
    ],
)
def test_a_wrong_jsonl_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"user": "a", "text": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        read(path)


def test_jsonl_without_messages_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no messages"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        read(path)
