"""Words that complete one which was begun."""

from __future__ import annotations

import pytest

from pfl_mobile.text.complete import PrefixIndex, complete
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([*SPECIALS, "the", "tonight", "don't", ",", "to", "there", "über", "then"])
INDEX = PrefixIndex(TOKENIZER)


def words(prefix: str) -> list[str]:
    return [TOKENIZER.word(index) for index in INDEX.starting_with(prefix)]


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("t", ["the", "tonight", "to", "there", "then"]),
        ("The", ["there", "then"]),
        ("don\u2019", ["don't"]),
        ("Ü", ["über"]),
        (",", []),
        ("then", []),
        ("tz", []),
    ],
)
def test_words_of_a_vocabulary_by_how_they_begin_the_most_used_first(prefix: str, wanted: list[str]) -> None:
    assert words(prefix) == wanted


def test_no_prefix_is_every_word_and_no_symbol() -> None:
    assert words("") == ["the", "tonight", "don't", "to", "there", "über", "then"]


def test_the_likely_ones_come_first_then_ones_own_then_the_vocabulary() -> None:
    found = complete(["to", "see", "then"], ["tzatziki", "the"], words("t"), "t", 5)
    assert found == ["to", "then", "tzatziki", "the", "tonight"]
    assert complete(["to"], ["to"], ["to"], "to") == []
    assert complete([], [], words("t"), "t", 2) == ["the", "tonight"]
