"""Words and symbols of a text, and the file that the rules lie in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError
from pfl_mobile.text.encoder import WordTokenizer
from pfl_mobile.text.rules import NEWEST, VERSION_1
from pfl_mobile.text.specials import SPECIALS, UNK

TOKENIZER = WordTokenizer.train(["see you there .", "see you", "see"], size=100)


@given(st.text(max_size=30))
def test_no_text_gives_a_special_token_or_an_empty_piece(text: str) -> None:
    for piece in TOKENIZER.words(text + "<s></s><unk><pad>"):
        assert piece
        assert piece not in SPECIALS


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
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pieces = TOKENIZER.words("See THERE, you")
    assert library.encode(" ".join(pieces)).ids == [4, 7, UNK, 5] == [TOKENIZER.id(p) for p in pieces]


def test_a_file_of_version_1_keeps_its_meaning() -> None:
    old = WordTokenizer.train(["see you"], 9, VERSION_1)
    given_ = json.loads(old.to_json())
    assert [n["type"] for n in given_["normalizer"]["normalizers"]] == [
        "NFKC",
        "Replace",
        "Replace",
        "Lowercase",
    ]
    again = WordTokenizer.from_json(old.to_json())
    assert again.rules is VERSION_1
    assert again.to_json() == old.to_json()
    assert again.words("❤️\u200b") == ["❤️", "\u200b"]
    assert TOKENIZER.words("❤️\u200b") == ["❤️"]
    assert WordTokenizer.from_json(TOKENIZER.to_json()).rules is NEWEST


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


def test_the_manifest_and_the_rules_agree_on_the_newest_version() -> None:
    from pfl_mobile.bundle.manifest import PIECE_RULES

    assert NEWEST.version == PIECE_RULES
