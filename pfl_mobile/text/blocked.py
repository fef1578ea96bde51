"""Words that a user wants forgotten, kept so that they are not learned again, without being spelled out.

The list must not be the place where a forgotten word is read, so it holds keyed digests: HMAC-SHA-256 of the word
in UTF-8 under a key of 32 random bytes that lies beside them. Whoever has the file can test a guess, and so find a
word that can be guessed; nobody can read a list of words out of it.

    {"schema_version": 1, "kind": "pfl-blocked-words", "key": "<64 hex>", "words": ["<64 hex>", ...]}
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pfl_mobile.errors import StateError
from pfl_mobile.files.reading import parse_json
from pfl_mobile.text.vocabulary import is_blocked

if TYPE_CHECKING:
    from collections.abc import Iterable

KIND, SCHEMA_VERSION = "pfl-blocked-words", 1
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class BlockList:
    """Blocked words, as the tokenizer cuts and folds them.

    >>> blocked = BlockList().plus(["zorp"])
    >>> "zorp" in blocked, blocked.hides("zorp's"), blocked.hides("zorps")
    (True, True, False)

    Attributes:
        key: of the digests.
        digests: of the words, 64 hex digits each.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    digests: frozenset[str] = frozenset()

    def __contains__(self, word: object) -> bool:
        """Whether exactly this word is blocked."""
        return isinstance(word, str) and self._digest(word) in self.digests

    def __len__(self) -> int:
        """How many words are blocked; an empty list is false."""
        return len(self.digests)

    def hides(self, word: str) -> bool:
        """Whether the word, or a part of it between apostrophes, is blocked."""
        return is_blocked(word, self)

    def plus(self, words: Iterable[str]) -> BlockList:
        """This list with more words."""
        return BlockList(self.key, self.digests | {self._digest(w) for w in words})

    def to_json(self) -> bytes:
        """The content of the file."""
        content = {"schema_version": SCHEMA_VERSION, "kind": KIND, "key": self.key.hex()}
        return (json.dumps({**content, "words": sorted(self.digests)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, what: str) -> BlockList:
        """Read ``to_json``.

        Args:
            data: content of the file.
            what: its name, for messages.

        Raises:
            StateError: it is damaged or newer. Without it words would be learned that must not be, so it is never
                taken for empty.
        """
        try:
            raw = parse_json(data)
            version, kind = raw["schema_version"], raw["kind"]
            if kind == KIND and type(version) is int and version > SCHEMA_VERSION:
                raise StateError(f"{what} has schema {version}, newer than 1", mend="update pfl-mobile")
            key, words = bytes.fromhex(raw["key"]), frozenset(raw["words"])
            whole = (version, kind, len(key)) == (SCHEMA_VERSION, KIND, 32)
            if not whole or not all(isinstance(w, str) and len(w) == 64 and set(w) <= _HEX for w in words):
                raise ValueError("it is not a list of blocked words")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StateError(
                f"the list of forgotten words {what} is damaged: {error}",
                mend="restore it from a backup; or remove it and forget the words again, before anything is trained",
            ) from error
        return cls(key, words)

    def _digest(self, word: str) -> str:
        return hmac.digest(self.key, word.encode(errors="surrogatepass"), "sha256").hex()
