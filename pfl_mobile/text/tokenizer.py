"""The word tokenizer.

**Rules** (the same on every platform; Kotlin and Swift follow this list word for word):

1. normalize: half of a surrogate pair without the other half becomes U+FFFD; Unicode NFKC; then U+2019
   and U+2018 (curly single quotes) become U+0027; then each code point is replaced by its simple or full
   lower-case mapping, without looking at its neighbours (so a capital sigma always gives U+03C3).
2. split: matches of ``WORD`` or, where none starts, ``SYMBOL``, left to right, are the pieces; what
   matches neither (separators and control characters) is dropped.
   ``WORD``: a letter or digit, then letters, digits and marks; parts joined by single apostrophes belong
   to one word (``don't``). ``SYMBOL``: one code point that is not a letter, digit, separator or control
   character, with the marks behind it (``...`` is three pieces, as on a keyboard it is three keys).
3. look up: a piece that is not in the vocabulary is ``<unk>``, or the id of its slot if the device gave
   it one.

No piece can read ``<pad>``, ``<s>``, ``<unk>`` or ``</s>``: a piece never mixes letters and symbols. The
special tokens are plain entries of the vocabulary, so nobody can type them.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError
from pfl_mobile.files.reading import parse_json, read_text, whole_text
from pfl_mobile.text.vocabulary import VocabularyReport, VocabularyRule, choose_words

SPECIALS = ("<pad>", "<s>", "<unk>", "</s>")
PAD, BOS, UNK, EOS = range(4)

WORD = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:'[\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*"
SYMBOL = r"[^\p{L}\p{N}\p{Z}\p{Cc}]\p{M}*"


class WordTokenizer:
    """A word-level vocabulary with the rules above, kept in Hugging Face's ``tokenizer.json`` format.

    >>> tokenizer = WordTokenizer.train(["see you there"], size=100)
    >>> tokenizer.words("See you... there?")
    ['see', 'you', '.', '.', '.', 'there', '?']

    Attributes:
        origin: how the vocabulary was chosen from users' words; None where nobody said (public text, a file).
    """

    def __init__(self, tokenizer: Tokenizer, origin: VocabularyReport | None = None) -> None:
        """Wrap a tokenizer that :meth:`of_users`, :meth:`train` or :meth:`from_json` built."""
        self._tokenizer = tokenizer
        self.origin = origin
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._words = [""] * len(self._ids)
        for word, index in self._ids.items():
            if not 0 <= index < len(self._words):
                raise DataError("the tokenizer's ids have gaps", mend="train it with WordTokenizer.train")
            self._words[index] = word
        if not all(self._words):
            raise DataError(
                "the tokenizer has an empty word, or two words of one id",
                mend="train it with WordTokenizer.train",
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

        Words are counted as the rules above cut and fold them, so no spelling of a word (case, width, curly quotes)
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
        counts = (
            collections.Counter(p for t in texts for p in _pieces(_BARE, t)) for texts in users.values()
        )
        chosen, report = choose_words(counts, size - len(SPECIALS), rule or VocabularyRule())
        return cls(_build({w: i for i, w in enumerate([*SPECIALS, *chosen])}), report)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> WordTokenizer:
        """The ``size - 4`` most frequent pieces of the texts (ties in code point order) and the specials.

        For text that is public, and for vocabularies that stay where the text is: every word can be one that a
        single person wrote. From messages of users use :meth:`of_users`.

        The vocabulary is smaller where the texts have fewer different pieces.
        """
        _check_size(size)
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(_pieces(_BARE, text))
        ranked = sorted(counts, key=lambda w: (-counts[w], w))[: size - len(SPECIALS)]
        return cls(_build({w: i for i, w in enumerate([*SPECIALS, *ranked])}))

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
            DataError: it is not a tokenizer with the rules of this module.
        """
        try:
            given = parse_json(text)
            vocabulary = given["model"]["vocab"]
            _check_ids(vocabulary)  # before anything is built: the library makes room for the largest id
            ours = json.loads(_build(vocabulary).to_str())
            same = all(given.get(k) == ours[k] for k in ("normalizer", "pre_tokenizer", "added_tokens"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"this is no word tokenizer: {error}", mend="train one anew") from error
        if not same or given["model"].get("type") != "WordLevel":
            raise DataError(
                "the tokenizer does not follow the rules of pfl_mobile.text.encoder",
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


def _check_ids(vocabulary: Mapping[str, int]) -> None:
    """Refuse what does not number its words 0, 1, 2, ...

    Raises:
        ValueError: it does not.
    """
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise ValueError("its vocabulary does not number words")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or "" in vocabulary:
        raise ValueError("its ids have gaps, or two words of one id, or a word is empty")


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
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{WORD}|{SYMBOL}"), behavior="removed", invert=True)
    return tokenizer


def _check_size(size: int) -> None:
    if size <= len(SPECIALS):
        raise ConfigError(f"a vocabulary of {size} has no room for words", mend="give a size above 4")


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(whole_text(text))
    return [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def cut(text: str) -> list[str]:
    """The pieces of a text by the rules above, whatever the vocabulary."""
    return _pieces(_BARE, text)


#: Knows no words: cutting needs none.
_BARE = _build({s: i for i, s in enumerate(SPECIALS)})


def is_symbol(piece: str) -> bool:
    """Whether a piece is a symbol (or a special token) and not a word."""
    return not piece[0].isalnum()
