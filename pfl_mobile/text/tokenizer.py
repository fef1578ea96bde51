"""The word tokenizer: a vocabulary over the pieces that the piece rules cut.

A text is cut into pieces by the rules of one version (:mod:`pfl_mobile.text.pieces` states the newest); a piece that is
not in the vocabulary is ``<unk>``, or the id of its slot if the device gave it one.

The file is Hugging Face's ``tokenizer.json`` with a ``WordLevel`` model. For version 1 it holds the rules themselves.
Those of version 2 cannot be said in that format, so such a file splits at white space: give it pieces joined by spaces.

The special tokens are plain entries of the vocabulary, and no piece reads like one: nobody can type them.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError
from pfl_mobile.files.reading import parse_json, read_text
from pfl_mobile.text import pieces_1
from pfl_mobile.text.rules import NEWEST, VERSION_1, PieceRules
from pfl_mobile.text.specials import BOS, EOS, PAD, SPECIALS, UNK, SpecialIds
from pfl_mobile.text.vocabulary import VocabularyReport, VocabularyRule, choose_words

__all__ = ["BOS", "EOS", "PAD", "SPECIALS", "UNK", "SpecialIds", "WordTokenizer"]


class WordTokenizer:
    """A word-level vocabulary, kept in Hugging Face's ``tokenizer.json`` format.

    >>> tokenizer = WordTokenizer.train(["see you there"], size=100)
    >>> tokenizer.words("See you... there?")
    ['see', 'you', '.', '.', '.', 'there', '?']

    Attributes:
        rules: by which texts are cut.
        origin: how the vocabulary was chosen from users' words; None where nobody said (public text, a file).
        specials: ids of the special tokens.
    """

    specials = SpecialIds(PAD, BOS, EOS, UNK)

    def __init__(
        self, words: Iterable[str], rules: PieceRules = NEWEST, origin: VocabularyReport | None = None
    ) -> None:
        """The tokenizer of these words, in the order of their ids; :meth:`of_users` and :meth:`train` choose them.

        Raises:
            DataError: the first are not the special tokens, or a word is there twice or empty.
        """
        self._words = list(words)
        self._ids = {word: index for index, word in enumerate(self._words)}
        self.rules, self.origin = rules, origin
        if len(self._ids) != len(self._words) or "" in self._ids:
            raise DataError(
                "the tokenizer has an empty word, or a word twice", mend="train it with WordTokenizer.train"
            )
        if tuple(self._words[: len(SPECIALS)]) != SPECIALS:
            raise DataError(
                f"the tokenizer's first ids are {self._words[:4]}, not {list(SPECIALS)}",
                mend="train it with WordTokenizer.train",
            )

    @classmethod
    def of_users(
        cls, users: Mapping[str, Iterable[str]], size: int, rule: VocabularyRule | None = None
    ) -> WordTokenizer:
        """The words of users that may ship to everybody, at most ``size - 4``, and the specials.

        Words are counted as the rules cut and fold them, so no spelling of a word (case, width, curly quotes)
        is another word.

        Args:
            users: texts by user.
            size: ids at most, specials included.
            rule: which words may ship; by default those of ``MIN_USERS`` users.

        Raises:
            TooFewUsersError: too few users for the rule; the mend says the way out.
            ConfigError: the size leaves no room, or the rule does not fit the users.
        """
        _check_size(size)
        counts = (collections.Counter(p for t in texts for p in NEWEST.cut(t)) for texts in users.values())
        chosen, report = choose_words(counts, size - len(SPECIALS), rule or VocabularyRule())
        return cls([*SPECIALS, *chosen], origin=report)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, rules: PieceRules = NEWEST) -> WordTokenizer:
        """The ``size - 4`` most frequent pieces of the texts (ties in code point order) and the specials.

        For text that is public, and for vocabularies that stay where the text is: every word can be one that a
        single person wrote. From messages of users use :meth:`of_users`.

        The vocabulary is smaller where the texts have fewer different pieces.
        """
        _check_size(size)
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(rules.cut(text))
        ranked = sorted(counts, key=lambda w: (-counts[w], w))[: size - len(SPECIALS)]
        return cls([*SPECIALS, *ranked], rules)

    @classmethod
    def load(cls, path: str | Path) -> WordTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            DataError: it is missing or not a tokenizer of this kind.
        """
        try:
            return cls.from_json(read_text(path))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the tokenizer {path}: {error}", mend="check the path") from error

    @classmethod
    def from_json(cls, text: str) -> WordTokenizer:
        """The tokenizer whose ``tokenizer.json`` reads ``text``.

        Raises:
            DataError: it is not a word tokenizer with the piece rules of a version.
        """
        try:
            given = parse_json(text)
            vocabulary = given["model"]["vocab"]
            _check_ids(vocabulary)  # before anything is built: the library makes room for the largest id
            rules = next((r for r in (NEWEST, VERSION_1) if _same(given, r)), None)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"this is no word tokenizer: {error}", mend="train one anew") from error
        if rules is None or given["model"].get("type") != "WordLevel":
            raise DataError(
                "the tokenizer does not follow the piece rules of pfl_mobile.text",
                mend="train one with WordTokenizer.train; or, to use a tokenizer of another kind, "
                "SubwordTokenizer",
            )
        return cls(sorted(vocabulary, key=vocabulary.__getitem__), rules)

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return str(_build(self._ids, self.rules).to_str(pretty=True))

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
        return self.rules.cut(text)

    def is_symbol(self, piece: str) -> bool:
        """Whether a piece is a symbol (or a special token) and not a word."""
        return self.rules.is_symbol(piece)

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


def _check_ids(vocabulary: Mapping[str, int]) -> None:
    """Refuse what does not number its words 0, 1, 2, ...

    Raises:
        ValueError: it does not.
    """
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise ValueError("its vocabulary does not number words")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or "" in vocabulary:
        raise ValueError("its ids have gaps, or two words of one id, or a word is empty")


def _build(vocabulary: Mapping[str, int], rules: PieceRules) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=SPECIALS[UNK]))
    if rules is VERSION_1:
        tokenizer.normalizer = pieces_1.NORMALIZER
        tokenizer.pre_tokenizer = pieces_1.PRE_TOKENIZER
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _same(given: Mapping[str, Any], rules: PieceRules) -> bool:
    ours = json.loads(_build({s: i for i, s in enumerate(SPECIALS)}, rules).to_str())
    return all(given.get(k) == ours[k] for k in ("normalizer", "pre_tokenizer", "added_tokens"))


def _check_size(size: int) -> None:
    if size <= len(SPECIALS):
        raise ConfigError(f"a vocabulary of {size} has no room for words", mend="give a size above 4")
