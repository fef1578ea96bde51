"""None"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, OutOfVocabularyError
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_mobile.text.pieces import is_symbol
from pfl_mobile.text.specials import BOS, EOS, PAD, UNK

TOKENIZER = WordTokenizer.train(["see you there .", "see you", "see"], size=100)


known = st.lists(st.sampled_from(["see", "you", "there", ".", "zzz", "😂", "42"]), max_size=50).map(" ".join)


def encoder(length: int = 4, slots: int = 2) -> TextEncoder:
    return TextEncoder(TOKENIZER, length=length, vocabulary=10, slots=slots)


def test_a_message_is_one_row_that_starts_with_bos() -> None:
    rows = encoder().encode(["See you", ""])
    assert rows["tokens"].tolist() == [[BOS, 4, 5, PAD]]
    assert rows["labels"].tolist() == [[4, 5, EOS, PAD]]
    assert rows["weight"].tolist() == [[1, 1, 0, 0]]
    assert [rows[k].dtype for k in ("tokens", "labels", "weight")] == [np.int64, np.int64, np.float32]


def test_unknown_labels_count_in_evaluation_and_not_in_training() -> None:
    assert encoder().encode(["see zzz ."])["weight"].tolist() == [[1, 1, 1, 0]]
    assert encoder().encode(["see zzz ."], drop_unknown=True)["weight"].tolist() == [[1, 0, 1, 0]]
    assert encoder().encode(["see zzz ."], words_only=True)["weight"].tolist() == [[1, 1, 0, 0]]


def test_no_texts_give_no_rows_of_the_right_shape() -> None:
    assert encoder().encode([])["tokens"].shape == (0, 4)


@settings(max_examples=200)
@given(st.lists(known, max_size=4), st.integers(2, 12), st.booleans(), st.booleans())
def test_every_label_counts_once_whatever_the_length(
    messages: list[str], length: int, drop_unknown: bool, words_only: bool
) -> None:
    enc = TextEncoder(TOKENIZER, length, 10, 1, ("zzz",))
    rows = enc.encode(messages, drop_unknown=drop_unknown, words_only=words_only)
    wanted = [
        enc.id(w)
        for m in messages
        for w in TOKENIZER.words(m)
        if not (drop_unknown and enc.id(w) == UNK) and not (words_only and is_symbol(w))
    ]
    assert rows["labels"][rows["weight"] > 0].tolist() == wanted
    assert set(np.unique(rows["weight"])) <= {0.0, 1.0}
    # Inside a row each label is the next token, and nothing counts on padding.
    for tokens, labels, weight in zip(rows["tokens"], rows["labels"], rows["weight"], strict=True):
        for t in range(length - 1):
            if labels[t] not in (PAD, EOS):
                assert tokens[t + 1] == labels[t]
        assert (weight[tokens == PAD] == 0).all()


def test_a_long_message_goes_on_with_a_quarter_row_of_context() -> None:
    enc = encoder(length=8)
    rows = enc.encode(["see you there . see you there . see you"])
    assert rows["weight"][1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert rows["tokens"][1, :2].tolist() == rows["tokens"][0, 6:].tolist()


def test_slots_hold_the_users_words_by_count_then_first_appearance() -> None:
    history = ["yo bla zzz bla", "zzz see 42 42 42", "yo once", "😂😂😂"]
    assert encoder(slots=3).choose_words(history) == ["😂", "yo", "bla"]
    assert encoder(slots=9).choose_words(history) == ["😂", "yo", "bla", "zzz"]
    assert encoder(slots=9).choose_words(history, min_count=3) == ["😂"]
    assert encoder(slots=0).choose_words(history) == []


def test_words_keep_their_slots() -> None:
    enc = encoder(slots=3).with_words(["zzz"])
    assert enc.choose_words(["bla bla zzz yo yo yo"]) == ["zzz", "yo", "bla"]


def test_slot_ids_lie_behind_the_base_vocabulary() -> None:
    enc = encoder().with_words(["zzz", "bla"])
    assert enc.total == 12
    assert enc.ids("see zzz bla yo") == [4, 10, 11, UNK]
    assert enc.decode([4, 10, 11, 1]) == ["see", "zzz", "bla", "<s>"]
    assert encoder().decode([10, 9]) == ["<unk>", "<unk>"]  # free slot, unused row
    for wrong in (-1, 12):
        with pytest.raises(OutOfVocabularyError):
            enc.decode([wrong])


@given(known)
def test_decoding_gives_the_pieces_back(text: str) -> None:
    enc = TextEncoder(TOKENIZER, 4, 10, 3, ("zzz", "😂", "42"))
    assert enc.decode(enc.ids(text)) == TOKENIZER.words(text)


@given(known, st.integers(2, 9))
def test_context_is_the_end_of_the_text(text: str, length: int) -> None:
    enc = encoder(length)
    given_ = [BOS, *enc.ids(text)]
    found = enc.context(text)
    (position,) = found["position"].tolist()
    assert found["tokens"].shape == (1, length)
    assert found["tokens"][0, : position + 1].tolist() == given_[-length:]
    assert (found["tokens"][0, position + 1 :] == PAD).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 1},
        {"slots": -1},
        {"vocabulary": 7},
        {"slots": 1, "words": ("a", "b")},
        {"slots": 2, "words": ("a", "a")},
        {"slots": 1, "words": ("see",)},
        {"slots": 1, "words": ("<unk>",)},
    ],
)
def test_impossible_encoders_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TextEncoder(**{"tokenizer": TOKENIZER, "length": 4, "vocabulary": 10, **wrong})  # type: ignore[arg-type]
