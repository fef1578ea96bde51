"""Whole words from a program over subwords."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pfl_mobile.errors import ConfigError
from pfl_mobile.text.encoder import Rows, TextEncoder, WordTokenizer
from pfl_mobile.text.specials import SpecialIds
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.whole_words import Outputs, WholeWords

from .test_subwords import KINDS, subwords

BPE = subwords("bpe")
SENTENCES = ["see you at the gym", "see you there..", "see them! you", "see the gym", "they see 2 of you :)"]


def encoder(tokenizer: SubwordTokenizer) -> TextEncoder:
    return TextEncoder(tokenizer, 32, tokenizer.size)


def program(chances: Mapping[tuple[int, ...], Mapping[int, float]]) -> Outputs:
    """Gives what is written for the ids behind the start."""

    def outputs(rows: Rows) -> dict[str, np.ndarray]:
        place = int(rows["position"][0])
        known = tuple(int(i) for i in rows["tokens"][0, 1 : place + 1])
        found = sorted(chances.get(known, {}).items(), key=lambda item: -item[1])
        return {"top_ids": np.array([[i for i, _ in found]], np.int64),
                "top_probs": np.array([[c for _, c in found]], np.float32)}  # fmt: skip

    return outputs


def of_sentences(tokenizer: SubwordTokenizer, sentences: list[str]) -> Outputs:
    """Each sentence is as likely; what comes next is counted."""
    counts: dict[tuple[int, ...], dict[int, float]] = {}
    for sentence in sentences:
        ids = encoder(tokenizer).ids(sentence)
        for place, index in enumerate(ids):
            here = counts.setdefault(tuple(ids[:place]), {})
            here[index] = here.get(index, 0.0) + 1.0
    return program(
        {known: {i: n / sum(here.values()) for i, n in here.items()} for known, here in counts.items()}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_next_piece_of_known_sentences_is_found_letter_by_letter(kind: str) -> None:
    tokenizer = subwords(kind)
    rules = tokenizer.rules
    for sentence in ["see you at the gym", "they see the gym there"]:
        words = WholeWords(of_sentences(tokenizer, [sentence + " and"]), encoder(tokenizer))
        pieces = rules.cut(sentence)
        for place, piece in enumerate(pieces):
            text = " ".join(pieces[:place])
            for typed in range(len(piece) + 1):
                assert words.suggest(text, piece[:typed]) == [piece]
            assert words.suggest(text, "zz") == []


def test_the_likeliest_words_come_first_and_symbols_are_among_them() -> None:
    words = WholeWords(
        of_sentences(BPE, [*SENTENCES, "see you at home", "see the gym"]), encoder(BPE), calls=30
    )
    assert words.suggest("see", "", 1) == ["you"]
    # they begin alike, so the chance that a word ends decides
    assert words.suggest("see", "th", 3) == ["the", "them"]
    assert words.suggest("see them") == ["!"]
    assert words.suggest("they see", "", 1) == ["2"]


def test_a_symbol_inside_a_subword_of_several_is_found() -> None:
    """Where ``..`` is one subword, the second dot is the next piece behind the first all the same."""
    made = Tokenizer(models.BPE(vocab={"<e>": 0, "s": 1, ".": 2, "..": 3, "a": 4}, merges=[(".", ".")]))
    made.decoder = decoders.ByteLevel()
    tokenizer = SubwordTokenizer(made.to_str(), SpecialIds(0, 0, 0))
    known = {(1,): {2: 0.25, 3: 0.75}, (1, 2): {4: 1.0}}
    assert WholeWords(program(known), encoder(tokenizer)).suggest("s.") == [".", "a"]
    assert WholeWords(program({**known, (1,): {3: 1.0}}), encoder(tokenizer)).suggest("s.") == [".", "a"]


def test_a_word_is_not_gone_on_behind_its_end() -> None:
    """The text ends behind a whole word: subwords without a space would make another word of it."""
    see = tuple(encoder(BPE).ids("see"))
    letter, apostrophe, you = BPE.id("n"), BPE.id("'"), encoder(BPE).ids("see you")[len(see)]
    words = WholeWords(program({see: {letter: 0.6, apostrophe: 0.3, you: 0.1}}), encoder(BPE))
    assert words.suggest("see") == ["'", "you"]


def test_calls_are_few_and_what_is_spelled_then_is_taken_for_the_word() -> None:
    def forever(rows: Rows) -> dict[str, np.ndarray]:
        return {"top_ids": np.array([[BPE.id("z")]]), "top_probs": np.array([[1.0]], np.float32)}

    for calls in (0, 1, 5):
        words = WholeWords(forever, encoder(BPE), calls=calls)
        assert words.suggest("") == ["z" * (calls + 1)]
        assert words.called == calls + 1
        assert words.suggest("", "z" * (calls + 1)) == ["z" * (2 * calls + 1)]  # what is known costs no call


@given(st.integers(0, 10_000))
def test_as_an_enumeration_of_all_spellings(seed: int) -> None:
    """Words of one to three letters, a space before them; every spelling's chance is known."""
    draw = np.random.default_rng(seed)
    letters = [BPE.id(c) for c in "xqz"]
    space, end = BPE.id("\u0120"), BPE.id("!")
    known: dict[tuple[int, ...], dict[int, float]] = {(): {space: 1.0}}
    want: dict[str, float] = {}

    def grow(ids: tuple[int, ...], word: str, chance: float) -> None:
        shares = draw.dirichlet(np.ones(4))
        if len(word) == 3:
            shares = np.array([0.0, 0.0, 0.0, 1.0])
        if not word:
            shares[3], shares[0] = 0.0, shares[0] + shares[3]
        known[ids] = {i: float(np.float32(s)) for i, s in zip([*letters, end], shares, strict=True) if s > 0}
        if word:
            want[word] = chance * shares[3]
        for index, letter, share in zip(letters, "xqz", shares[:3], strict=True):
            if share > 0:
                grow((*ids, index), word + letter, chance * share)

    grow((space,), "", 1.0)
    words = WholeWords(program(known), encoder(BPE), calls=1000)
    for begun in ("", "x", "qz"):
        found = words.suggest("", begun, 5)
        expected = sorted((w for w in want if w.startswith(begun)), key=lambda w: -want[w])[:5]
        assert [round(want[w], 5) for w in found] == [round(want[w], 5) for w in expected]


def test_a_tokenizer_of_words_is_refused() -> None:
    tokenizer = WordTokenizer.train(["see you"], 9)
    with pytest.raises(ConfigError, match="words already"):
        WholeWords(program({}), TextEncoder(tokenizer, 8, 9))
