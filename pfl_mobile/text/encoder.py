"""Fixed-size rows for next-word prediction, and ids back to words.

**What is predicted.** A message ``w1 .. wn`` becomes tokens ``<s> w1 .. wn`` with labels ``w1 .. wn </s>``.
Words and symbols count (weight 1); ``</s>`` never does, as a keyboard offers no key for it. A label
outside the vocabulary (``<unk>``) counts in evaluation, where it must be a miss: special tokens are no
suggestions, so a metric or ``predict`` never lets one be among the best. It is left out of training.
Symbols are easier than words (after ``.`` often comes ``.``); ``words_only`` rows tell how much easier.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pfl_mobile.errors import ConfigError, OutOfVocabularyError
from pfl_mobile.text.blocked import BlockList
from pfl_mobile.text.pieces import holds_digit
from pfl_mobile.text.rules import NEWEST
from pfl_mobile.text.specials import SPECIALS, UNK
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.tokenizer import WordTokenizer

__all__ = ["Rows", "SubwordTokenizer", "TextEncoder", "WordTokenizer"]

#: Words with more code points get no slot: they are no words, and a keyboard could not show them.
LONGEST_SLOT_WORD = 64

#: tokens int64 [R, T], labels int64 [R, T], weight float32 [R, T].
Rows = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into rows of fixed length, and ids back into words.

    Args:
        tokenizer: its size is at most ``vocabulary``. Over subwords there are no slots.
        length: T, tokens in a row.
        vocabulary: V, size of the model's base vocabulary; slot ids start here.
        slots: S, number of vocabulary slots behind it; 0 for none.
        words: the user's own words in slot order (see :meth:`choose_words`).
        blocked: words that the user wants forgotten. They get no slot, and one of the base vocabulary reads as the
            unknown word, so nothing learns it. Over subwords, a text with one of them gives no rows.
    """

    tokenizer: WordTokenizer | SubwordTokenizer
    length: int
    vocabulary: int
    slots: int = 0
    words: tuple[str, ...] = ()
    blocked: BlockList | None = None
    _slot_of: dict[str, int] = field(init=False, repr=False, compare=False)
    _unlearned: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the sizes and index the slot words."""
        if self.length < 2 or self.slots < 0:
            raise ConfigError(
                f"length={self.length}, slots={self.slots}", mend="length is at least 2, slots at least 0"
            )
        if self.tokenizer.size > self.vocabulary:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.size} ids, the model's vocabulary {self.vocabulary}",
                mend="train the tokenizer with the model's vocabulary size",
            )
        if len(self.words) > self.slots or len(set(self.words)) != len(self.words):
            raise ConfigError(
                f"{len(self.words)} words for {self.slots} slots", mend="give each slot at most one word"
            )
        if self.slots and isinstance(self.tokenizer, SubwordTokenizer):
            raise ConfigError(
                f"{self.slots} vocabulary slots over a tokenizer of subwords, which spells every word already",
                mend="leave out the slots (slots=0, no VocabularySlots, no assign_slots phase); or use a WordTokenizer",
            )
        known = [w for w in self.words if self.tokenizer.id(w) != self.unknown or w in SPECIALS]
        if known:
            raise ConfigError(
                f"{known[0]!r} is in the base vocabulary", mend="give slots to other words only"
            )
        object.__setattr__(self, "_slot_of", {w: self.vocabulary + i for i, w in enumerate(self.words)})
        unlearned: frozenset[int] = frozenset()
        if self.blocked and isinstance(self.tokenizer, WordTokenizer):
            base = (self.tokenizer.word(i) for i in range(len(SPECIALS), self.tokenizer.size))
            unlearned = frozenset(self.tokenizer.id(w) for w in base if w in self.blocked)
        object.__setattr__(self, "_unlearned", unlearned)

    @property
    def total(self) -> int:
        """Ids in all: V + S."""
        return self.vocabulary + self.slots

    @property
    def unknown(self) -> int:
        """The id of what is outside the vocabulary; -1 where a tokenizer has none."""
        return self.tokenizer.specials.unk

    def with_words(self, words: Sequence[str]) -> TextEncoder:
        """This encoder with these words in the slots, in this order."""
        return replace(self, words=tuple(words))

    def with_blocked(self, blocked: BlockList) -> TextEncoder:
        """This encoder for a user who wants these words forgotten."""
        return replace(self, blocked=blocked)

    def choose_words(self, texts: Iterable[str], min_count: int = 2) -> list[str]:
        """The slot words for a user who wrote these texts.

        Words that have a slot keep it. The free slots go to other pieces outside the base vocabulary that
        occur at least ``min_count`` times: most frequent first, then first seen first. Left out are pieces with a
        digit, a code point of a Unicode category N (prices, times, codes, most passwords: they seldom come back and
        may be secret), and the blocked ones, also where a blocked word is a part between apostrophes
        (``greta's``), and pieces of more than 64 code points.
        """
        if not self.slots:
            return []
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            pieces = self.tokenizer.words(text)
            counts.update(
                w for w in pieces if w not in self._slot_of and self.tokenizer.id(w) == self.unknown
            )
        for word in [w for w in counts if self._gets_no_slot(w)]:
            del counts[word]
        # Counter keeps the order of first appearance and sorted() is stable.
        ranked = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: -counts[w])
        return [*self.words, *ranked][: self.slots]

    def _gets_no_slot(self, word: str) -> bool:
        hidden = self.blocked is not None and self.blocked.hides(word)
        return hidden or len(word) > LONGEST_SLOT_WORD or holds_digit(word)

    def id(self, word: str) -> int:
        """The id of a piece in the base vocabulary or a slot, else ``unknown``; blocked ones have none."""
        found = self._slot_of.get(word) or self.tokenizer.id(word)
        return self.unknown if found in self._unlearned else found

    def ids(self, text: str) -> list[int]:
        """The ids of a text's pieces, without specials."""
        return [self.id(w) for w in self.tokenizer.words(text)]

    def is_special(self, index: int) -> bool:
        """Whether an id stands for no word: padding, start, end, the unknown word, a free slot."""
        specials = self.tokenizer.specials
        free = index >= self.vocabulary + len(self.words) or self.tokenizer.size <= index < self.vocabulary
        return free or index in (specials.pad, specials.bos, specials.eos, specials.unk)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The pieces of ids, slots included; a free slot, or an id without a word, reads ``<unk>``.

        Raises:
            OutOfVocabularyError: an id is negative or not below V + S.
        """
        return [self._word(int(i)) for i in ids]

    def _word(self, index: int) -> str:
        if not 0 <= index < self.total:
            raise OutOfVocabularyError(
                f"token id {index} lies outside 0..{self.total - 1}", mend="use the encoder of this model"
            )
        if index >= self.vocabulary:
            slot = index - self.vocabulary
            return self.words[slot] if slot < len(self.words) else SPECIALS[UNK]
        return self.tokenizer.word(index) if index < self.tokenizer.size else SPECIALS[UNK]

    def encode(self, texts: Iterable[str], *, drop_unknown: bool = False, words_only: bool = False) -> Rows:
        """Rows of all texts, in order; a text without pieces gives none.

        A text longer than a row goes on in further rows, each of which repeats the last quarter of the row
        before as context with weight 0: every label counts once.

        Args:
            texts: messages.
            drop_unknown: weight 0 for labels outside the vocabulary. For training, and for losses that a
                guard compares. Without it they count, which is right for recall (they are misses).
            words_only: weight 0 for labels that are symbols.

        Returns:
            tokens int64 [R, T], labels int64 [R, T], weight float32 [R, T].
        """
        windows = [w for text in texts for w in self._windows(text, drop_unknown, words_only)]
        pad = self.tokenizer.specials.pad
        tokens = np.full((len(windows), self.length), pad, np.int64)
        labels = np.full((len(windows), self.length), pad, np.int64)
        weight = np.zeros((len(windows), self.length), np.float32)
        for row, (sequence, counted) in enumerate(windows):
            n = len(counted)
            tokens[row, :n] = sequence[:-1]
            labels[row, :n] = sequence[1:]
            weight[row, :n] = counted
        return {"tokens": tokens, "labels": labels, "weight": weight}

    def _windows(
        self, text: str, drop_unknown: bool, words_only: bool
    ) -> Iterator[tuple[list[int], list[bool]]]:
        """Parts of ``<s> ids </s>`` of at most T + 1 ids, with what counts of all ids but the first."""
        pieces = self.tokenizer.words(text)
        if not pieces or self._is_unlearned(text):
            return
        ids = [self.id(w) for w in pieces]
        kept = [not (drop_unknown and i == self.unknown) for i in ids]
        if words_only:
            kept = [k and not self.tokenizer.is_symbol(w) for k, w in zip(kept, pieces, strict=True)]
        specials = self.tokenizer.specials
        sequence, counted = [specials.bos, *ids, specials.eos], [*kept, False]
        overlap = self.length // 4
        start, seen = 0, 0
        while True:
            end = start + self.length
            yield sequence[start : end + 1], [False] * seen + counted[start + seen : end]
            if end >= len(ids):  # only </s>, which never counts, could be left
                return
            start, seen = end - overlap, overlap

    def _is_unlearned(self, text: str) -> bool:
        """Whether subwords of a blocked word are in the text: nothing of it is learned then.

        Over words only the blocked word itself is left out, as it is one id.
        """
        if not self.blocked or isinstance(self.tokenizer, WordTokenizer):
            return False
        return any(self.blocked.hides(word) for word in NEWEST.cut(text))

    def context(self, text: str) -> Rows:
        """What ``predict`` takes to suggest the word after ``text``.

        Returns:
            tokens int64 [1, T] (the last T of ``<s>`` and the text's ids), position int64 [1] (index of the
            last of them).
        """
        return self.rows_after(self.ids(text))

    def rows_after(self, ids: Sequence[int]) -> Rows:
        """As :meth:`context`, after these ids."""
        specials = self.tokenizer.specials
        ids = [specials.bos, *ids][-self.length :]
        tokens = np.full((1, self.length), specials.pad, np.int64)
        tokens[0, : len(ids)] = ids
        return {"tokens": tokens, "position": np.array([len(ids) - 1], np.int64)}
