"""Words, ids and fixed-size rows for next-word prediction.

**Tokenizer rules** (the same on every platform; Kotlin and Swift follow this list word for word):

1. normalize: Unicode NFKC; then U+2019 and U+2018 (curly single quotes) become U+0027; then each code
   point is replaced by its simple or full lower-case mapping, without looking at its neighbours
   (so a capital sigma always gives U+03C3).
2. split: matches of ``WORD`` or, where none starts, ``SYMBOLS``, left to right, are the pieces; what
   matches neither (separators and control characters) is dropped.
   ``WORD``: a letter or digit, then letters, digits and marks; parts joined by single apostrophes belong
   to one word (``don't``). ``SYMBOLS``: a run of anything that is not a letter, digit, separator or
   control character (``...``, ``:-)``, ``<#>``).
3. look up: a piece that is not in the vocabulary is ``<unk>``, or the id of its slot if the device gave
   it one.

No piece can read ``<pad>``, ``<s>``, ``<unk>`` or ``</s>``: a piece never mixes letters and symbols. The
special tokens are plain entries of the vocabulary, so nobody can type them.

**What is predicted.** A message ``w1 .. wn`` becomes tokens ``<s> w1 .. wn`` with labels ``w1 .. wn </s>``.
Words and symbols count (weight 1); ``</s>`` never does, as a keyboard offers no key for it. A label
outside the vocabulary counts in evaluation, where it can only be a miss, and is left out of training.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError

SPECIALS = ("<pad>", "<s>", "<unk>", "</s>")
PAD, BOS, UNK, EOS = range(4)

WORD = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:'[\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*"
SYMBOLS = r"[^\p{L}\p{N}\p{Z}\p{Cc}]+"

#: tokens int64 [R, T], labels int64 [R, T], weight float32 [R, T].
Rows = dict[str, npt.NDArray[np.generic]]


class WordTokenizer:
    """A word-level vocabulary with the rules above, kept in Hugging Face's ``tokenizer.json`` format.

    >>> tokenizer = WordTokenizer.train(["see you there"], size=100)
    >>> tokenizer.words("See you... there?")
    ['see', 'you', '...', 'there', '?']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer that :meth:`train` or :meth:`from_json` built."""
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._words = [""] * len(self._ids)
        for word, index in self._ids.items():
            if not 0 <= index < len(self._words):
                raise DataError("the tokenizer's ids have gaps", mend="train it with WordTokenizer.train")
            self._words[index] = word
        if tuple(self._words[: len(SPECIALS)]) != SPECIALS:
            raise DataError(
                f"the tokenizer's first ids are {self._words[:4]}, not {list(SPECIALS)}",
                mend="train it with WordTokenizer.train",
            )

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> WordTokenizer:
        """The ``size - 4`` most frequent pieces of the texts (ties in code point order) and the specials.

        The vocabulary is smaller where the texts have fewer different pieces.
        """
        if size <= len(SPECIALS):
            raise ConfigError(f"a vocabulary of {size} has no room for words", mend="give a size above 4")
        bare = _build({s: i for i, s in enumerate(SPECIALS)})
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(_pieces(bare, text))
        ranked = sorted(counts, key=lambda w: (-counts[w], w))[: size - len(SPECIALS)]
        return cls(_build({w: i for i, w in enumerate([*SPECIALS, *ranked])}))

    @classmethod
    def load(cls, path: str | Path) -> WordTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            DataError: it is missing or not a tokenizer of this kind.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the tokenizer {path}: {error}", mend="check the path") from error

    @classmethod
    def from_json(cls, text: str) -> WordTokenizer:
        """The tokenizer whose ``tokenizer.json`` reads ``text``.

        Raises:
            DataError: it is not a tokenizer with the rules of this module.
        """
        try:
            given = json.loads(text)
            vocabulary = given["model"]["vocab"]
            ours = json.loads(_build(vocabulary).to_str())
            same = all(given.get(k) == ours[k] for k in ("normalizer", "pre_tokenizer", "added_tokens"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"this is no word tokenizer: {error}", mend="train one anew") from error
        if not same or given["model"].get("type") != "WordLevel":
            raise DataError(
                "the tokenizer does not follow the rules of pfl_mobile.text",
                mend="train one with WordTokenizer.train",
            )
        return cls(_build(vocabulary))

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return str(self._tokenizer.to_str(pretty=True))

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``, all or nothing."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        part.write_text(self.to_json(), encoding="utf-8")
        os.replace(part, target)

    @property
    def size(self) -> int:
        """Number of ids, specials included."""
        return len(self._words)

    def words(self, text: str) -> list[str]:
        """The pieces of a text, in or out of the vocabulary."""
        return _pieces(self._tokenizer, text)

    def id(self, word: str) -> int:
        """The id of a piece, ``UNK`` where it has none."""
        return self._ids.get(word, UNK)

    def word(self, index: int) -> str:
        """The piece of an id."""
        if not 0 <= index < self.size:
            raise OutOfVocabularyError(
                f"token id {index} lies outside 0..{self.size - 1}", mend="use the tokenizer of this model"
            )
        return self._words[index]


def _build(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[UNK]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace("\u2019", "'"),
            normalizers.Replace("\u2018", "'"),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"{WORD}|{SYMBOLS}"), behavior="removed", invert=True
    )
    return tokenizer


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into rows of fixed length, and ids back into words.

    Args:
        tokenizer: its size is at most ``vocabulary``.
        length: T, tokens in a row.
        vocabulary: V, size of the model's base vocabulary; slot ids start here.
        slots: S, number of vocabulary slots behind it; 0 for none.
        words: the user's own words in slot order (see :meth:`choose_words`).
    """

    tokenizer: WordTokenizer
    length: int
    vocabulary: int
    slots: int = 0
    words: tuple[str, ...] = ()
    _slot_of: dict[str, int] = field(init=False, repr=False, compare=False)

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
        known = [w for w in self.words if self.tokenizer.id(w) != UNK or w in SPECIALS]
        if known:
            raise ConfigError(
                f"{known[0]!r} is in the base vocabulary", mend="give slots to other words only"
            )
        object.__setattr__(self, "_slot_of", {w: self.vocabulary + i for i, w in enumerate(self.words)})

    @property
    def total(self) -> int:
        """Ids in all: V + S."""
        return self.vocabulary + self.slots

    def with_words(self, words: Sequence[str]) -> TextEncoder:
        """This encoder with these words in the slots, in this order."""
        return replace(self, words=tuple(words))

    def choose_words(self, texts: Iterable[str], min_count: int = 2) -> list[str]:
        """The slot words for a user who wrote these texts.

        Words that have a slot keep it. The free slots go to other pieces outside the base vocabulary that
        occur at least ``min_count`` times: most frequent first, then first seen first. Pieces without a
        letter that hold a digit are left out (prices, times, codes: they seldom come back and may be secret).
        """
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(w for w in self.tokenizer.words(text) if self.id(w) == UNK and _may_have_slot(w))
        # Counter keeps the order of first appearance and sorted() is stable.
        ranked = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: -counts[w])
        return [*self.words, *ranked][: self.slots]

    def id(self, word: str) -> int:
        """The id of a piece in the base vocabulary or a slot, else ``UNK``."""
        return self._slot_of.get(word) or self.tokenizer.id(word)

    def ids(self, text: str) -> list[int]:
        """The ids of a text's pieces, without specials."""
        return [self.id(w) for w in self.tokenizer.words(text)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The pieces of ids, slots included; a free slot reads ``<unk>``.

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

    def encode(self, texts: Iterable[str], *, drop_unknown: bool = False) -> Rows:
        """Rows of all texts, in order; a text without pieces gives none.

        A text longer than a row goes on in further rows, each of which repeats the last quarter of the row
        before as context with weight 0: every label counts once.

        Args:
            texts: messages.
            drop_unknown: weight 0 for labels outside the vocabulary. For training, and for losses that a
                guard compares. Without it they count, which is right for recall (they are misses).

        Returns:
            tokens int64 [R, T], labels int64 [R, T], weight float32 [R, T].
        """
        windows = [w for text in texts for w in self._windows(self.ids(text))]
        tokens = np.full((len(windows), self.length), PAD, np.int64)
        labels = np.full((len(windows), self.length), PAD, np.int64)
        weight = np.zeros((len(windows), self.length), np.float32)
        for row, (sequence, context) in enumerate(windows):
            n = len(sequence) - 1
            tokens[row, :n] = sequence[:-1]
            labels[row, :n] = sequence[1:]
            weight[row, context:n] = 1.0
        weight[labels == EOS] = 0.0
        if drop_unknown:
            weight[labels == UNK] = 0.0
        return {"tokens": tokens, "labels": labels, "weight": weight}

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """Pieces of ``<s> ids </s>`` of at most T + 1 ids, with the number of labels counted before."""
        if not ids:
            return
        sequence = [BOS, *ids, EOS]
        overlap = self.length // 4
        start, context = 0, 0
        while True:
            yield sequence[start : start + self.length + 1], context
            if start + self.length + 1 >= len(sequence) - 1:  # only </s>, which never counts, could be left
                return
            start, context = start + self.length - overlap, overlap

    def context(self, text: str) -> Rows:
        """What ``predict`` takes to suggest the word after ``text``.

        Returns:
            tokens int64 [1, T] (the last T of ``<s>`` and the text's ids), position int64 [1] (index of the
            last of them).
        """
        ids = [BOS, *self.ids(text)][-self.length :]
        tokens = np.full((1, self.length), PAD, np.int64)
        tokens[0, : len(ids)] = ids
        return {"tokens": tokens, "position": np.array([len(ids) - 1], np.int64)}


def _may_have_slot(word: str) -> bool:
    return any(c.isalpha() for c in word) or not any(c.isnumeric() for c in word)
