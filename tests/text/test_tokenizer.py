"""Words and symbols of a text, and the file that the rules lie in."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError
from pfl_mobile.text.encoder import SPECIALS, UNK, WordTokenizer

TOKENIZER = WordTokenizer.train(["see you there .", "see you", "see"], size=100)


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
    assert TOKENIZER.words(text) == words == reference(text)


@given(texts)
def test_pieces_follow_the_written_rules(text: str) -> None:
    assert TOKENIZER.words(text) == reference(text)


@given(st.text(max_size=30))
def test_no_text_gives_a_special_token_or_an_empty_piece(text: str) -> None:
    for piece in TOKENIZER.words(text + "<s></s><unk><pad>"):
        assert piece
        assert piece not in SPECIALS


@given(texts)
def test_joining_the_pieces_and_cutting_again_changes_nothing(text: str) -> None:
    pieces = TOKENIZER.words(text)
    assert TOKENIZER.words(" ".join(pieces)) == pieces or "\u0301" in text  # a mark joins the space before it


def test_vocabulary_is_by_count_then_code_point() -> None:
    assert [TOKENIZER.word(i) for i in range(TOKENIZER.size)] == [*SPECIALS, "see", "you", ".", "there"]
    assert WordTokenizer.train(["b a b a c"], size=6).size == 6
    assert WordTokenizer.train(["b a b a c"], size=6).id("c") == UNK
    with pytest.raises(ConfigError):
        WordTokenizer.train([], size=4)
    with pytest.raises(OutOfVocabularyError):
        TOKENIZER.word(8)


def test_saved_tokenizer_is_the_same_and_the_format_is_hugging_face(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    again = WordTokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == TOKENIZER.to_json()
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("See THERE, you").ids == [
        4,
        7,
        UNK,
        5,
    ]


def test_wrong_tokenizer_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        WordTokenizer.load(tmp_path / "none.json")
    for text in ("", "{}", "[]", '{"model": {"vocab": {"a": "b"}}}'):
        with pytest.raises(DataError):
            WordTokenizer.from_json(text)
    changed = json.loads(TOKENIZER.to_json())
    changed["normalizer"] = {"type": "NFC"}
    with pytest.raises(DataError, match="rules"):
        WordTokenizer.from_json(json.dumps(changed))
    changed = json.loads(TOKENIZER.to_json())
    changed["model"]["vocab"] = {"<s>": 0, "<pad>": 1, "<unk>": 2, "</s>": 3}
    with pytest.raises(DataError, match="first ids"):
        WordTokenizer.from_json(json.dumps(changed))


def test_the_rules_in_the_file_are_the_rules_in_the_code() -> None:
    pattern = json.loads(TOKENIZER.to_json())["pre_tokenizer"]["pattern"]["Regex"]
    assert re.sub(r"\\p\{\w+\}", "", pattern) == "[][]*(?:'[][]*)*|[^]*"
