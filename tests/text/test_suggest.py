"""Next words from next ids."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.text.encoder import Rows, TextEncoder, WordTokenizer
from pfl_mobile.text.suggest import MOST_PARTS, suggest

from .test_subwords import KINDS, subwords


def test_words_are_suggested_as_they_are_and_specials_never() -> None:
    tokenizer = WordTokenizer.train(["see you there"], 9)
    encoder = TextEncoder(tokenizer, 6, 9, 2, ("zorp",))

    def predict(rows: Rows) -> list[int]:
        assert rows["tokens"][0, :2].tolist() == [1, tokenizer.id("see")]
        return [3, 10, 2, 8, tokenizer.id("you"), 9, tokenizer.id("there"), tokenizer.id("see")]

    assert suggest(predict, encoder, "see", 3) == ["you", "zorp", "there"]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_joined_to_whole_words(kind: str) -> None:
    """A program that knows one sentence."""
    tokenizer = subwords(kind)
    encoder = TextEncoder(tokenizer, 32, tokenizer.size)
    sentence = encoder.ids("see you at the gym")

    def predict(rows: Rows) -> list[int]:
        place = int(rows["position"][0])
        return [sentence[place], tokenizer.specials.eos] if place < len(sentence) else []

    assert suggest(predict, encoder, "see you at the") == ["gym"]
    assert suggest(predict, encoder, "see") == ["you"]


def test_a_program_that_never_ends_a_word_is_cut_off() -> None:
    tokenizer = subwords("bpe")
    encoder = TextEncoder(tokenizer, 32, tokenizer.size)
    assert suggest(lambda _: np.array([tokenizer.id("z")]), encoder, "see") == ["z" * MOST_PARTS]
