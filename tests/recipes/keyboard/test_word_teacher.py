"""A language model that teaches: it expects the right words at the right places, and the backbone learns them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_recipes.keyboard.model import KeyboardConfig
from pfl_recipes.keyboard.recipe import prepare
from pfl_recipes.keyboard.training import TrainConfig, counted_rows, train_backbone
from pfl_recipes.keyboard.word_teacher import WordTeacher, _batches, _Cutter, _load, _Message, expectations
from tests.exporters.test_hugging_face import llama
from tests.recipes.keyboard.test_recipe import SMALL, write

TEXTS = ["see you at home", "home you see at", "see you at home soon !", "at home"] * 6
TOKENIZER = WordTokenizer.train(TEXTS, 12)
ENCODER = TextEncoder(TOKENIZER, 5, TOKENIZER.size, 0)


def language_model(place: Path, **changes: float) -> Path:
    made = llama(place, **changes)
    # as transformers itself writes it
    (made / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("teacher") / "model")


@given(st.lists(st.lists(st.sampled_from(["see", "you", "kestrel", "at", "!"]), max_size=14), max_size=5))
def test_its_words_are_the_labels_that_count_in_their_order(texts: list[list[str]]) -> None:
    """Also of messages that are cut into several rows, and of words that the keyboard does not have."""

    class Letters:
        bos_token_id = 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return list(map(ord, text))

    cut = _Cutter(ENCODER, Letters())
    written = [" ".join(words) for words in texts]
    messages = [cut.message(text) for text in written]
    _, labels, weight = counted_rows(ENCODER.encode(written))
    assert [word for m in messages for word in m.words] == labels[weight > 0].tolist()
    for message, text in zip(messages, written, strict=True):
        read = "".join(map(chr, message.subwords[1:]))
        assert read == text
        # what stands before each word
        for place, words in zip(message.before, range(len(message.words)), strict=True):
            assert read[:place] == " ".join(text.split()[:words])


def test_it_learns_the_words_and_says_so_in_their_order(folder: Path) -> None:
    told: list[float] = []
    teacher = WordTeacher(str(folder), epochs=30, rank=4, lr=5e-3, head_lr=5e-2, subwords=80)
    found = expectations(teacher, ENCODER, TEXTS, lambda _, share: told.append(share or 0.0))
    _, labels, weight = counted_rows(ENCODER.encode(TEXTS))
    right = labels[weight > 0].numpy()
    assert found.shape == (len(right), TOKENIZER.size)
    np.testing.assert_allclose(found.astype(np.float64).sum(1), 1.0, atol=5e-3)
    often = np.bincount(right, minlength=TOKENIZER.size) / len(right)
    gained = np.log(found[np.arange(len(right)), right].astype(np.float64)) - np.log(often[right])
    assert gained.mean() > 0.5
    assert max(told) > 0.9


def test_it_repeats_exactly_and_leaves_the_random_state(folder: Path) -> None:
    teacher = WordTeacher(str(folder), epochs=1, rank=2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = expectations(teacher, ENCODER, TEXTS)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, expectations(teacher, ENCODER, TEXTS))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 60))
def test_each_message_is_in_one_batch_of_so_many_subwords(lengths: list[int], most: int) -> None:
    messages = [_Message([0] * length, [], []) for length in lengths]
    batches = _batches(messages, most, None)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= most for b in batches)


def test_the_backbone_learns_what_is_expected() -> None:
    """All that is told is the word "at", whatever the text says."""
    rows = ENCODER.encode(TEXTS)
    count = int((counted_rows(rows)[2] > 0).sum())
    expected = np.zeros((count, TOKENIZER.size), np.float16)
    expected[:, ENCODER.id("at")] = 1.0
    sizes = KeyboardConfig(TOKENIZER.size, 5, 16, 1, 2, 32)
    train = TrainConfig(epochs=20, taught=1.0)
    model = train_backbone(rows, sizes, train, expected=expected)
    tokens, _, weight = counted_rows(rows)
    assert (model(tokens)[weight > 0].argmax(-1) == ENCODER.id("at")).all()
    with pytest.raises(ConfigError, match="teachers=1 beside"):
        train_backbone(rows, sizes, replace(train, teachers=1), expected=expected)


def test_expectations_of_other_messages_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 distributions for"):
        train_backbone(ENCODER.encode(TEXTS), expected=np.zeros((3, 9), np.float16))


def test_a_recipe_with_it_is_another_one_by_what_the_folder_holds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    source = str(write(tmp_path / "messages.jsonl", 12))
    teacher = WordTeacher(str(folder), rank=2, subwords=4000)
    taught = replace(SMALL.taught_by(str(folder)), word_teacher=teacher)
    said: list[str] = []
    prepare(source, recipe=SMALL)
    prepare(source, recipe=taught, report=lambda what, _: said.append(what))
    assert any("language model" in what for what in said)
    assert len(list((tmp_path / "cache/keyboard").glob("*.pt"))) == 2
    said.clear()
    prepare(source, recipe=taught, report=lambda what, _: said.append(what))
    assert "load the trained backbone" in said
    other = language_model(tmp_path / "other", rope_theta=77.0)
    assert WordTeacher(str(other)).settings() != WordTeacher(str(folder)).settings()


@pytest.mark.parametrize(
    "holds", [None, {}, {"config.json": "{}"}, {"config.json": '{"model_type": "llama"}'}]
)
def test_a_folder_without_a_model_is_named(holds: dict[str, str] | None, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if holds is not None:
        place.mkdir()
        for name, text in holds.items():
            (place / name).write_text(text)
    with pytest.raises(ConfigError, match="place") as refused:
        _load(place)
    assert "folder" in refused.value.mend


def test_nothing_to_teach_and_wrong_settings_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        expectations(WordTeacher(str(folder)), ENCODER, [""])
    with pytest.raises(ConfigError, match="nowhere is no folder"):  # before anything is trained
        prepare(
            recipe=replace(SMALL, word_teacher=WordTeacher("nowhere")),
            source=str(write(folder / "m.jsonl", 12)),
        )
    with pytest.raises(ConfigError, match="epochs=0"):
        WordTeacher(str(folder), epochs=0)
