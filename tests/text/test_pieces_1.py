"""Version 1 of the piece rules, which bundles from before version 2 keep."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.text.pieces_1 import cut

texts = st.text(st.sampled_from("abAB1'.’ !<>/\n\u0301é😂ß Σs"), max_size=60)


def reference(text: str) -> list[str]:
    """The rules of the docstring, code point by code point, without the tokenizers library."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    text = "".join(c.lower() for c in text)
    kind = [unicodedata.category(c)[0] if unicodedata.category(c) != "Cc" else "Z" for c in text]
    found: list[str] = []
    i = 0
    while i < len(text):
        start = i
        i += 1
        if kind[start] == "Z":
            continue
        if kind[start] in "LN":
            while i < len(text):
                if kind[i] in "LNM":
                    i += 1
                elif text[i] == "'" and i + 1 < len(text) and kind[i + 1] in "LN":
                    i += 2
                else:
                    break
        else:
            while i < len(text) and kind[i] == "M":
                i += 1
        found.append(text[start:i])
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("See you... there?", ["see", "you", ".", ".", ".", "there", "?"]),
        ("Don\u2019t 'quote' rock'n'roll", ["don't", "'", "quote", "'", "rock'n'roll"]),
        ("<#> :-)", ["<", "#", ">", ":", "-", ")"]),
        ("😂😂️", ["😂", "😂\ufe0f"]),
        ("ｆｕｌｌ\u00a0ﬁt…", ["full", "fit", ".", ".", "."]),
        ("ΟΔΟΣ İ 3.5kg", ["οδοσ", "i\u0307", "3", ".", "5kg"]),
        ("a\u200db\tc\x00d", ["a", "\u200d", "b", "c", "d"]),
        (" \n", []),
    ],
)
def test_pieces_of_texts(text: str, words: list[str]) -> None:
    assert cut(text) == words == reference(text)


@given(texts)
def test_pieces_follow_the_written_rules(text: str) -> None:
    assert cut(text) == reference(text)
