"""What typing costs with a predictor."""

from __future__ import annotations

import pytest

from pfl_recipes.keyboard.keystrokes import Score, Suggest, keystrokes, score


def fixed(offers: dict[str, list[str]]) -> Suggest:
    """A predictor that looks only at the typed letters."""
    return lambda context, prefix, k: offers.get(prefix, [])[:k]


def test_an_offered_word_costs_one_key() -> None:
    assert keystrokes(fixed({"": ["hello"]}), [], "hello") == 1


def test_letters_are_typed_until_the_word_is_offered() -> None:
    assert keystrokes(fixed({"he": ["hello"]}), [], "hello") == 3


def test_a_word_that_is_never_offered_costs_its_letters_and_the_space() -> None:
    assert keystrokes(fixed({"hello": ["hello"]}), [], "hello") == 6


def test_scores_by_hand() -> None:
    found = score(fixed({"": ["a", "hi"], "y": ["yo"]}), [["hi", "!", "yo"], ["a"]])
    assert found == Score(
        targets=4, top1=1, top3=2, words=3, word_top1=1, word_top3=2, keys_without=8, keys_with=4
    )
    assert found.rates() == {
        "top1": 25.0,
        "top3": 50.0,
        "word_top1": pytest.approx(100 / 3),
        "word_top3": pytest.approx(200 / 3),
        "keystroke_savings": 50.0,
    }
    assert (found + Score()) == found
    assert Score().rates()["top1"] == 0.0


def test_word_recall_lets_the_predictor_offer_words_only() -> None:
    found = score(fixed({"": ["!", "?", ".", "hi"]}), [["hi"]])
    assert (found.top1, found.top3, found.word_top1, found.word_top3, found.keys_with) == (0, 0, 1, 1, 1)


def test_without_typing_no_keys_are_counted() -> None:
    found = score(fixed({"": ["a"]}), [["a", "b"]], typing=False)
    assert (found.top1, found.keys_with, found.keys_without) == (1, 0, 0)
