"""Speeches on the state of the union."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_mobile import data
from pfl_mobile.data import sotu
from pfl_mobile.errors import DataError
from tests.data.conftest import Pin


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


def test_a_truncated_archive_is_an_error(sotu_tgz: Path) -> None:
    sotu_tgz.write_bytes(sotu_tgz.read_bytes()[:-60])
    with pytest.raises(DataError):
        list(sotu.parse(sotu_tgz, lambda *_: None))
