"""The likeliest next words, from a program that gives the likeliest next ids.

Over words an id is a word. Over subwords one call gives the first part of a word; it is gone on from, one call for each
further part, until a part begins another word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pfl_mobile.text.subwords import SubwordTokenizer

if TYPE_CHECKING:
    from pfl_mobile.text.encoder import Rows, TextEncoder

#: Inputs of ``predict`` to ids, the likeliest first.
Predict = Callable[["Rows"], Sequence[int]]
#: A word of more subwords is cut off here.
MOST_PARTS = 8


def suggest(predict: Predict, encoder: TextEncoder, text: str, k: int = 3) -> list[str]:
    """At most k different next words or symbols, the likeliest first.

    Args:
        predict: the program, with the user's tensors.
        encoder: with the user's words in its slots.
        text: what was typed, up to the end of a word.
        k: words at most.
    """
    tokenizer = encoder.tokenizer
    before = encoder.ids(text)
    found: dict[str, None] = {}
    for index in predict(encoder.rows_after(before)):
        if len(found) >= k:
            break
        if encoder.is_special(int(index)):
            continue
        word = (
            _whole(predict, encoder, tokenizer, before, int(index))
            if isinstance(tokenizer, SubwordTokenizer)
            else encoder.decode([index])[0]
        )
        found |= {word: None} if word else {}
    return list(found)


def _whole(
    predict: Predict, encoder: TextEncoder, tokenizer: SubwordTokenizer, before: list[int], first: int
) -> str:
    """The word that begins with a subword; empty where it begins none."""
    parts = [first]
    while len(parts) < MOST_PARTS:
        following = predict(encoder.rows_after([*before, *parts]))
        best = int(following[0]) if len(following) else None
        if best is None or encoder.is_special(best) or len(tokenizer.text([*parts, best]).split()) > 1:
            break
        parts.append(best)
    return tokenizer.text(parts).strip()
