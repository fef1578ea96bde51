"""Version 1 of the rules that cut a text into pieces, for bundles that were exported with it; it never changes.

Bundles of today have version 2 (:mod:`pfl_mobile.text.pieces`). Version 1 breaks emoji sequences and words with a
zero width non-joiner, and leans on the Unicode version of the tokenizers library:

1. normalize: half of a surrogate pair without the other half becomes U+FFFD; Unicode NFKC; then U+2019
   and U+2018 (curly single quotes) become U+0027; then each code point is replaced by its simple or full
   lower-case mapping, without looking at its neighbours (so a capital sigma always gives U+03C3).
2. split: matches of ``WORD`` or, where none starts, ``SYMBOL``, left to right, are the pieces; what
   matches neither (separators and control characters) is dropped.
   ``WORD``: a letter or digit, then letters, digits and marks; parts joined by single apostrophes belong
   to one word (``don't``). ``SYMBOL``: one code point that is not a letter, digit, separator or control
   character, with the marks behind it.
"""

from __future__ import annotations

from tokenizers import Regex, normalizers, pre_tokenizers

from pfl_mobile.files.reading import whole_text

WORD = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:'[\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*"
SYMBOL = r"[^\p{L}\p{N}\p{Z}\p{Cc}]\p{M}*"

NORMALIZER = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.Replace("\u2019", "'"),
        normalizers.Replace("\u2018", "'"),
        normalizers.Lowercase(),
    ]
)
PRE_TOKENIZER = pre_tokenizers.Split(Regex(f"{WORD}|{SYMBOL}"), behavior="removed", invert=True)


def cut(text: str) -> list[str]:
    """The pieces of a text by the rules above."""
    normal = NORMALIZER.normalize_str(whole_text(text))
    return [piece for piece, _ in PRE_TOKENIZER.pre_tokenize_str(normal)]


def is_symbol(piece: str) -> bool:
    """Whether a piece is a symbol (or a special token) and not a word."""
    return not piece[0].isalnum()
