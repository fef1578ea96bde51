"""Takes words out of a personal state: their slots, their entries of the n-gram memory, and whatever holds either.

What cannot be taken out is what gradients made of a word: values of LoRA and other trained tensors have no place that
is this word's alone. ``retrain=True`` gives them their shipped values again, to be trained anew without the word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.local import memory
from pfl_mobile.local.state import PersonalState
from pfl_mobile.text.rules import NEWEST, PieceRules
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.vocabulary import is_blocked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfl_mobile.local.state import PersonalStateStore
    from pfl_mobile.plan.select import TensorEntry
    from pfl_mobile.text.encoder import TextEncoder

    Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Forgotten:
    """What forgetting did to the state that serves.

    Attributes:
        words: the words, as the keyboard cuts and folds them.
        slots: slots that were freed.
        entries: entries of n-gram memories that were emptied.
        versions: numbers of the saved versions, all of which were rewritten.
        trained: whether values that gradients trained on the words are still there.
    """

    words: tuple[str, ...]
    slots: int
    entries: int
    versions: tuple[int, ...]
    trained: bool


def words_to_forget(given: Sequence[str], rules: PieceRules = NEWEST) -> tuple[str, ...]:
    """The words as the keyboard knows them: ``Kestrel_77!`` is ``kestrel`` and ``77``; symbols beside words stay.

    Args:
        given: words as the user writes them.
        rules: by which the keyboard cuts.

    Raises:
        ConfigError: there is no word, or one has a space in it: several words are to be given one by one, as each is
            forgotten wherever it stands.
    """
    found: dict[str, None] = {}
    for text in given:
        if len(text.split()) > 1:
            raise ConfigError(
                f"{text!r} is several words",
                mend="give them one by one; each is forgotten wherever it stands",
            )
        pieces = rules.cut(text)
        if not pieces:
            raise ConfigError(f"{text!r} is no word", mend="give a word as the keyboard shows it")
        found |= dict.fromkeys([p for p in pieces if not rules.is_symbol(p)] or pieces)
    if not found:
        raise ConfigError("no word was given", mend="give at least one")
    return tuple(found)


def forget(
    store: PersonalStateStore,
    given: Sequence[str],
    encoder: TextEncoder,
    table: Sequence[TensorEntry],
    initial: Tensors,
    *,
    retrain: bool = False,
) -> Forgotten:
    """Forget words in every saved version, and never learn them again.

    The words go on the store's block list first, so a process killed on the way leaves nothing that learns them;
    repeating the call finishes. Then a checkpoint is removed, and every version is rewritten in its place. Versions
    that are damaged, and cannot be looked into, are removed.

    Args:
        store: of the device.
        given: words as the user writes them.
        encoder: of the bundle, without words.
        table: the bundle's device tensors.
        initial: their shipped values.
        retrain: also give every tensor that gradients train its shipped value and drop copies of them.

    Raises:
        ConfigError: see `words_to_forget`.
        StateError: the state is of another model, or no version can be used; nothing changes.
        StorageFullError: the disk is full; call again once there is space.
    """
    words = words_to_forget(given, encoder.tokenizer.rules)
    serving = store.load()
    store.block(words)
    slots = entries = 0
    if serving.state is not None:
        slots, entries = _count(serving.state, words, encoder, table)

    def without(state: PersonalState) -> PersonalState:
        cleaned = forget_words(state, words, encoder, table, initial)
        return shipped_again(cleaned, table, initial) if retrain else cleaned

    versions = store.rewrite(without)
    return Forgotten(words, slots, entries, versions, bool(versions) and not retrain)


def forget_words(
    state: PersonalState,
    words: Sequence[str],
    encoder: TextEncoder,
    table: Sequence[TensorEntry],
    initial: Tensors,
) -> PersonalState:
    """The state without the words.

    The slots behind a freed one move up, with their rows in every tensor and copy and their ids in the memory; the
    rows that become free get shipped values. An entry of a memory that has a forgotten id in it, as the word or in
    its context, becomes empty. Every other value stays bit for bit.
    """
    gone = {i for i, w in enumerate(state.words) if is_blocked(w, words)}
    kept = [i for i in range(len(state.words)) if i not in gone]
    ids = _ids(state, words, encoder)
    moved = {encoder.vocabulary + old: encoder.vocabulary + new for new, old in enumerate(kept) if old != new}
    slot_modules = {t.module for t in table if t.update == "assign"}
    tensors = dict(state.tensors)
    copies = {name: dict(values) for name, values in state.copies.items()}
    for module in {t.module for t in table if t.update == "memorize"}:
        _clean_memory(tensors, module, table, ids, moved)
    for tensor in table if gone else ():
        if tensor.module not in slot_modules or tensor.name not in tensors:
            continue
        if tensor.update == "assign":
            tensors[tensor.name] = memory.active(len(kept), tensor.shape[0])
            continue
        for values in (tensors, *copies.values()):
            if tensor.name in values:
                values[tensor.name] = _moved_up(values[tensor.name], kept, len(gone), initial[tensor.name])
    return PersonalState(tensors, copies, tuple(state.words[i] for i in kept), state.metrics)


def shipped_again(state: PersonalState, table: Sequence[TensorEntry], initial: Tensors) -> PersonalState:
    """The state with the shipped values of all tensors that gradients train, and without copies of them."""
    fresh = {t.name: initial[t.name] for t in table if t.update == "gradient"}
    return PersonalState({**state.tensors, **fresh}, {}, state.words, {})


def _ids(state: PersonalState, words: Sequence[str], encoder: TextEncoder) -> set[int]:
    """Ids that stand for a forgotten word: of the base vocabulary, and of the slots of this state.

    Of subwords every one that spells it, though it may be in other words too: rather too much than too little.
    """
    if isinstance(encoder.tokenizer, SubwordTokenizer):
        return encoder.tokenizer.spellings(words) - {encoder.unknown}
    base = {encoder.tokenizer.id(w) for w in words} - {encoder.unknown}
    slots = {encoder.vocabulary + i for i, w in enumerate(state.words) if is_blocked(w, words)}
    return {i for i in base if i >= len(SPECIALS)} | slots


def _memories(tensors: Tensors, module: str | None, table: Sequence[TensorEntry]) -> list[str]:
    return [t.name for t in table if t.module == module and t.update == "memorize" and t.name in tensors]


def _touched(tensors: Tensors, names: Sequence[str], ids: set[int]) -> np.ndarray:
    """bool [capacity]: entries that hold one of the ids anywhere."""
    touched = np.zeros(len(tensors[names[0]]), dtype=bool)
    for name in names:
        found = np.isin(tensors[name], sorted(ids)).reshape(len(touched), -1)
        touched |= found.sum(axis=1) > 0
    return touched


def _clean_memory(
    tensors: dict[str, np.ndarray],
    module: str | None,
    table: Sequence[TensorEntry],
    ids: set[int],
    moved: Mapping[int, int],
) -> None:
    names = _memories(tensors, module, table)
    if not names or not (ids or moved):
        return
    touched = _touched(tensors, names, ids)
    for name in names:
        old = tensors[name]
        new = old.copy()
        for before, after in moved.items():
            new[old == before] = after
        new[touched] = 0
        tensors[name] = new


def _moved_up(rows: np.ndarray, kept: Sequence[int], freed: int, shipped: np.ndarray) -> np.ndarray:
    """Rows of the kept slots, then of those that were free before, then shipped ones for those freed now."""
    free = rows[len(kept) + freed :]
    return np.concatenate([rows[list(kept)], free, shipped[len(rows) - freed :]]).astype(rows.dtype)


def _count(
    state: PersonalState, words: Sequence[str], encoder: TextEncoder, table: Sequence[TensorEntry]
) -> tuple[int, int]:
    ids, entries = _ids(state, words, encoder), 0
    for module in {t.module for t in table if t.update == "memorize"}:
        names = _memories(state.tensors, module, table)
        entries += int(_touched(state.tensors, names, ids).sum()) if names and ids else 0
    return sum(is_blocked(w, words) for w in state.words), entries
