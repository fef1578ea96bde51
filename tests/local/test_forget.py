"""Forgetting words: nothing of them is left in any file of the store, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, StateError
from pfl_mobile.local import checkpoint
from pfl_mobile.local.forget import forget, forget_words, words_to_forget
from pfl_mobile.local.phases import Work
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.text.blocked import BlockList
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_mobile.text.specials import SPECIALS, UNK
from tests.local.fake import Tensor

TOKENIZER = WordTokenizer.train(["see you there"], 16)
ENCODER = TextEncoder(TOKENIZER, 8, TOKENIZER.size, 4)
TABLE = (
    Tensor("embed.slot_rows", "personal", (4, 2), module="slots"),
    Tensor("slots.bias", "personal", (4,), module="slots"),
    Tensor("slots.active", "personal", (4,), update="assign", module="slots"),
    Tensor("memory.next", "personal", (9,), "int64", "memorize", "memory"),
    Tensor("memory.context", "personal", (9, 2), "int64", "memorize", "memory"),
    Tensor("q.lora_A", "personal", (2, 2), module="lora"),
)
MODEL = ModelId.of("toy", "1", TABLE)
INITIAL = {t.name: np.full(t.shape, -1 if t.update == "gradient" else 0, t.dtype) for t in TABLE}
WORDS = ("zorp", "blick", "greta's", "ok")


def state(words: tuple[str, ...] = WORDS, seed: int = 0) -> PersonalState:
    draw = np.random.default_rng(seed)
    top = TOKENIZER.size + len(words)
    own: dict[str, np.ndarray] = {
        "embed.slot_rows": draw.normal(size=(4, 2)).astype(np.float32),
        "slots.bias": np.arange(4, dtype=np.float32),
        "slots.active": (np.arange(4) < len(words)).astype(np.float32),
        "memory.next": draw.integers(0, top, 9),
        "memory.context": draw.integers(0, top, (9, 2)),
        "q.lora_A": draw.normal(size=(2, 2)).astype(np.float32),
    }
    copies = {"mine": {"slots.bias": 10 + own["slots.bias"], "q.lora_A": own["q.lora_A"] + 1}}
    return PersonalState(own, copies, words, {"loss": 1.0})


def remembered(found: PersonalState) -> list[tuple[str, ...]]:
    """The memory's entries as words."""
    encoder = ENCODER.with_words(found.words)
    table = np.concatenate([found.tensors["memory.next"][:, None], found.tensors["memory.context"]], axis=1)
    return [tuple(encoder.decode(row)) for row in table]


def test_a_freed_slot_moves_the_others_up_everywhere() -> None:
    found = forget_words(state(), ["blick"], ENCODER, TABLE, INITIAL)
    assert found.words == ("zorp", "greta's", "ok")
    assert found.tensors["slots.active"].tolist() == [1, 1, 1, 0]
    assert found.tensors["slots.bias"].tolist() == [0, 2, 3, -1]
    assert found.copies["mine"]["slots.bias"].tolist() == [10, 12, 13, -1]
    old = state()
    assert np.array_equal(found.tensors["embed.slot_rows"][:3], old.tensors["embed.slot_rows"][[0, 2, 3]])
    assert found.tensors["embed.slot_rows"][3].tolist() == [-1, -1]
    assert np.array_equal(found.tensors["q.lora_A"], old.tensors["q.lora_A"])


@settings(max_examples=60)
@given(st.integers(0, 99), st.sets(st.sampled_from([*WORDS, "see", "you", "never"]), min_size=1))
def test_no_entry_names_a_forgotten_word_and_all_others_stay(seed: int, gone: set[str]) -> None:
    old = state(seed=seed)
    new = forget_words(old, sorted(gone), ENCODER, TABLE, INITIAL)
    assert not gone & set(new.words)
    for before, after in zip(remembered(old), remembered(new), strict=True):
        expected = (SPECIALS[0],) * 3 if gone & set(before) else before
        assert after == expected
    assert {n: v.shape for n, v in new.tensors.items()} == {n: v.shape for n, v in old.tensors.items()}
    assert {n: v.dtype for n, v in new.tensors.items()} == {n: v.dtype for n, v in old.tensors.items()}


@pytest.mark.parametrize(
    ("given_words", "words"),
    [
        (["Zorp"], ("zorp",)),
        (["ＺＯＲＰ"], ("zorp",)),
        (["Greta\u2019s"], ("greta's",)),
        (["kestrel_77Fly!"], ("kestrel", "77fly")),
        (["\U0001f602"], ("\U0001f602",)),
        ([" zorp ", "blick", "zorp"], ("zorp", "blick")),
    ],
)
def test_words_are_cut_and_folded_as_the_keyboard_does(
    given_words: list[str], words: tuple[str, ...]
) -> None:
    assert words_to_forget(given_words) == words


@pytest.mark.parametrize("given_words", [[], [""], ["two words"], ["\n"]])
def test_what_is_no_single_word_is_refused(given_words: list[str]) -> None:
    with pytest.raises(ConfigError):
        words_to_forget(given_words)


def test_a_word_is_forgotten_with_its_forms_behind_an_apostrophe() -> None:
    assert forget_words(state(), ["greta"], ENCODER, TABLE, INITIAL).words == ("zorp", "blick", "ok")


def everything(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_no_file_of_the_store_holds_the_word_afterwards(tmp_path: Path) -> None:
    store = PersonalStateStore(tmp_path, MODEL)
    for seed in range(3):
        store.save(state(seed=seed))
    checkpoint.save(store.checkpoint_path(), Work(dict(state().tensors), words=WORDS), "job")
    (tmp_path / ".000002.safetensors.0123456789ab.tmp").write_bytes(b"half of blick")
    (tmp_path / "000009.safetensors").write_bytes(b"damaged, with blick in it")
    before = store.versions()[:3]
    done = forget(store, ["Blick"], ENCODER, TABLE, INITIAL)
    assert b"blick" not in everything(tmp_path)
    assert (done.slots, done.versions, done.trained) == (1, (1, 2, 3), True)
    assert store.current == 3
    assert [(v.version, v.parent, v.created, v.problem) for v in store.versions()] == [
        (v.version, v.parent, v.created, None) for v in before
    ]
    for version in (1, 2, 3):
        assert store.read(version).words == ("zorp", "greta's", "ok")
    assert "blick" in store.blocked
    assert not store.checkpoint_path().exists()


def test_forgetting_again_changes_nothing_and_an_empty_store_only_blocks(tmp_path: Path) -> None:
    store = PersonalStateStore(tmp_path, MODEL)
    done = forget(store, ["zorp"], ENCODER, TABLE, INITIAL)
    assert (done.slots, done.entries, done.versions, done.trained) == (0, 0, (), False)
    store.save(state(("blick",)))
    forget(store, ["blick"], ENCODER, TABLE, INITIAL)
    first = store.read(1)
    again = forget(store, ["blick"], ENCODER, TABLE, INITIAL)
    assert (again.slots, again.entries) == (0, 0)
    for name, value in store.read(1).tensors.items():
        assert np.array_equal(value, first.tensors[name])


def test_retrain_gives_trained_tensors_their_shipped_values(tmp_path: Path) -> None:
    store = PersonalStateStore(tmp_path, MODEL)
    store.save(state())
    forget(store, ["zorp"], ENCODER, TABLE, INITIAL, retrain=True)
    found = store.read(1)
    assert np.array_equal(found.tensors["q.lora_A"], INITIAL["q.lora_A"])
    assert found.copies == {}
    assert found.words == ("blick", "greta's", "ok")


def test_a_state_trained_while_the_word_was_forgotten_is_not_saved(tmp_path: Path) -> None:
    store = PersonalStateStore(tmp_path, MODEL)
    store.save(state())
    store.block(["ok"])
    with pytest.raises(StateError, match="forgotten while it was trained"):
        store.save(state(seed=1))
    assert store.current == 1


def test_forgotten_words_are_not_learned_again() -> None:
    blocked = BlockList().plus(["zorp", "you"])
    encoder = ENCODER.with_blocked(blocked)
    assert encoder.choose_words(["zorp zorp's yo", "zorp zorp's yo"]) == ["yo"]
    rows = encoder.encode(["see you there"], drop_unknown=True)
    assert rows["tokens"][0, :4].tolist() == [1, TOKENIZER.id("see"), UNK, TOKENIZER.id("there")]
    assert rows["weight"][0, :3].tolist() == [1, 0, 1]
    assert encoder.with_words(["yo"]).ids("you yo") == [UNK, ENCODER.vocabulary]


def test_the_block_list_does_not_spell_the_words_out_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    store = PersonalStateStore(tmp_path, MODEL)
    store.block(["zorp"])
    store.block(["blick"])
    path = tmp_path / "FORGOTTEN"
    text = path.read_text()
    assert "zorp" not in text
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert len(store.blocked) == 2
    raw = json.loads(text)
    for broken in (
        "",
        "{}",
        "[]",
        json.dumps({**raw, "schema_version": 2}),
        json.dumps({**raw, "key": "00"}),
        json.dumps({**raw, "words": ["zorp"]}),
        json.dumps({**raw, "words": None}),
    ):
        path.write_text(broken)
        with pytest.raises(StateError):
            _ = store.blocked
        with pytest.raises(StateError):
            forget(store, ["ok"], ENCODER, TABLE, INITIAL)


def test_states_of_another_model_are_left_alone(tmp_path: Path) -> None:
    PersonalStateStore(tmp_path, ModelId("other", "1", "f" * 64)).save(state())
    before = everything(tmp_path)
    with pytest.raises(StateError, match="belongs to model other"):
        forget(PersonalStateStore(tmp_path, MODEL), ["zorp"], ENCODER, TABLE, INITIAL)
    assert everything(tmp_path) == before
