"""Which scripts a model of text does not serve."""

from __future__ import annotations

import pytest

from pfl_mobile.text.rules import NEWEST, VERSION_1, PieceRules
from pfl_mobile.text.scripts import CHARACTERS, ENOUGH_CHARACTERS, SYLLABLES, scripts_not_served
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.tokenizer import WordTokenizer

ALL = sorted((*CHARACTERS, *SYLLABLES))


def words(count: int, rules: PieceRules = NEWEST) -> WordTokenizer:
    return WordTokenizer([*SPECIALS, "see", *(chr(0x4E00 + i) for i in range(count))], rules)


@pytest.mark.parametrize(
    ("tokenizer", "wanted"),
    [
        (None, ALL),
        (words(0), ALL),
        (words(ENOUGH_CHARACTERS - 1), ALL),
        (words(ENOUGH_CHARACTERS), sorted(SYLLABLES)),
        (words(ENOUGH_CHARACTERS, VERSION_1), ALL),
    ],
    ids=["subwords", "latin words", "a few characters", "characters", "rules of version 1"],
)
def test_scripts_without_spaces(tokenizer: WordTokenizer | None, wanted: list[str]) -> None:
    assert scripts_not_served(tokenizer) == wanted
