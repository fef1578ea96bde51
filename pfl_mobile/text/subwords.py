"""Any Hugging Face ``tokenizer.json`` (BPE, WordPiece, Unigram, ...), as a pretrained language model brings it.

The tokenizers library cuts; phones have the same library. Nothing is added to what it gives but one rule: tokens that
the file marks as special, and padding, start and end, are left out wherever they come from a text, so nobody can type
them. Truncation, padding and the template of the file are not used.

There are no vocabulary slots over subwords: they spell every word already.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pfl_mobile.errors import DataError, OutOfVocabularyError
from pfl_mobile.files.reading import parse_json, read_text, whole_text
from pfl_mobile.text.pieces import is_symbol
from pfl_mobile.text.rules import NEWEST, PieceRules
from pfl_mobile.text.specials import SPECIALS, UNK, SpecialIds

#: The library makes room for every id up to the largest; no vocabulary in use is larger.
MOST_IDS = 1 << 21
#: Values in a ``tokenizer.json``; the largest in use, of 262,144 tokens with 514,906 merges, has 2.1 million.
MOST_TOKENIZER_VALUES = 8_000_000


class SubwordTokenizer:
    """A tokenizer of subwords.

    Attributes:
        specials: ids of the special tokens.
        left_out: ids that no text gives: padding, start and end, and what the file marks as special.
        rules: by which words are told apart in what the user blocks or wants forgotten.
    """

    rules: PieceRules = NEWEST

    def __init__(self, json: str, specials: SpecialIds) -> None:
        """The tokenizer whose ``tokenizer.json`` reads ``json``.

        Raises:
            DataError: it is no tokenizer, or has no tokens of these ids.
        """
        try:
            _check_ids(parse_json(json, values=MOST_TOKENIZER_VALUES))
            tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(
                f"this is no tokenizer.json: {error}", mend="save it with a current version of tokenizers"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._json, self._tokenizer, self.specials = json, tokenizer, specials
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._tokens = {index: token for token, index in self._ids.items()}
        self.size = max(self._tokens, default=-1) + 1
        wanted = {"pad": specials.pad, "bos": specials.bos, "eos": specials.eos}
        wanted |= {} if specials.unk == -1 else {"unk": specials.unk}
        missing = [f"{name} {index}" for name, index in wanted.items() if index not in self._tokens]
        if missing:
            raise DataError(
                f"the tokenizer has no token with the id of {', '.join(missing)}",
                mend="give SpecialIds of tokens that are in it; one token may be several of them",
            )
        added = tokenizer.get_added_tokens_decoder()
        marked = {index for index, token in added.items() if token.special}
        self.left_out = (marked - {specials.unk}) | {specials.pad, specials.bos, specials.eos}

    @classmethod
    def load(cls, path: str | Path, specials: SpecialIds) -> SubwordTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            DataError: it is missing, no tokenizer, or has no tokens of these ids.
        """
        try:
            return cls(read_text(path), specials)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the tokenizer {path}: {error}", mend="check the path") from error

    def to_json(self) -> str:
        """The content of ``tokenizer.json``, as it was given."""
        return self._json

    def words(self, text: str) -> list[str]:
        """The subwords of a text, without special tokens.

        Raises:
            DataError: the tokenizer cannot cut the text, as it lacks an unknown token.
        """
        try:
            found = self._tokenizer.encode(whole_text(text), add_special_tokens=False).ids
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(
                f"the tokenizer cannot cut a text: {error}", mend="give it an unknown token, or byte fallback"
            ) from error
        return [self._tokens[i] for i in found if i not in self.left_out]

    def id(self, word: str) -> int:
        """The id of a subword; that of the unknown token where it has none."""
        return self._ids.get(word, self.specials.unk)

    def has(self, index: int) -> bool:
        """Whether a subword has this id."""
        return index in self._tokens

    def word(self, index: int) -> str:
        """The subword of an id, as the file spells it; ``<unk>`` where the ids have a gap."""
        if not 0 <= index < self.size:
            raise OutOfVocabularyError(
                f"token id {index} lies outside 0..{self.size - 1}", mend="use the tokenizer of this model"
            )
        return self._tokens.get(index, SPECIALS[UNK])

    def text(self, ids: Sequence[int]) -> str:
        """The text that subwords spell together."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def spellings(self, words: Iterable[str]) -> set[int]:
        """Ids of all subwords that spell one of the words at the beginning of a text or behind a space.

        Written small, with a capital or all in capitals; without those that are only a space or symbols. A subword is
        often part of other words too.
        """
        cases = {case for w in words for case in (w, w.capitalize(), w.upper())}
        spelled = {piece for case in cases for text in (case, f" {case}") for piece in self.words(text)}
        return {self.id(piece) for piece in spelled if not self.is_symbol(piece)}

    def is_symbol(self, piece: str) -> bool:
        """Whether no letter and no digit is in a subword."""
        return self._is_symbol(self.id(piece))

    @functools.lru_cache(maxsize=1 << 16)  # noqa: B019 - a tokenizer lives as long as the process
    def _is_symbol(self, index: int) -> bool:
        pieces = NEWEST.cut(self.text([index]))
        return all(is_symbol(piece) for piece in pieces)


def _check_ids(given: Any) -> None:
    """Refuse ids that would take much memory before the library sees them."""
    vocabulary = given["model"]["vocab"]
    added = [token["id"] for token in given.get("added_tokens") or []]
    ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary)]), *added]
    if not all(type(i) is int and 0 <= i < MOST_IDS for i in ids):
        raise ValueError(f"its ids do not lie from 0 to {MOST_IDS - 1}")
