"""The special tokens: where a row is padded, a text begins and ends, and what is outside the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

#: Of a word tokenizer, in the order of their ids.
SPECIALS = ("<pad>", "<s>", "<unk>", "</s>")
PAD, BOS, UNK, EOS = range(4)


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens of a tokenizer; several may be the same.

    Attributes:
        pad: fills rows.
        bos: stands before a text.
        eos: stands behind a text.
        unk: what is outside the vocabulary; -1 where the tokenizer has no such token.
    """

    pad: int
    bos: int
    eos: int
    unk: int = -1
