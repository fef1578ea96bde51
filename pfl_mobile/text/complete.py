"""Words that complete one which was begun.

A program gives only so many next words as it was exported for, and the word that was begun may be none of them: then
the user's own words and the vocabulary complete it.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain, islice
from typing import TYPE_CHECKING

from pfl_mobile.text.specials import SPECIALS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pfl_mobile.text.tokenizer import WordTokenizer


class PrefixIndex:
    """The words of a vocabulary by how they begin; upper and lower case, and the kinds of apostrophe, are one.

    Args:
        tokenizer: of the words; its symbols are left out.
    """

    def __init__(self, tokenizer: WordTokenizer) -> None:
        """Sort the words."""
        words = ((tokenizer.word(index), index) for index in range(len(SPECIALS), tokenizer.size))
        self._sorted = sorted((_folded(w), i) for w, i in words if not tokenizer.rules.is_symbol(w))

    def starting_with(self, prefix: str) -> list[int]:
        """Ids of the words that begin with ``prefix`` and are longer, in the order of the ids: the most used first."""
        start = _folded(prefix)
        found = []
        for word, index in islice(self._sorted, bisect_left(self._sorted, (start, 0)), None):
            if not word.startswith(start):
                break
            if word != start:
                found.append(index)
        return sorted(found)


def complete(
    likely: Iterable[str], own: Iterable[str], vocabulary: Iterable[str], prefix: str, k: int = 3
) -> list[str]:
    """At most k different words that begin with ``prefix`` and are longer.

    Args:
        likely: what the model suggests, the likeliest first; these come first.
        own: the user's words; these are next.
        vocabulary: words of :class:`PrefixIndex`, the most used first; empty over subwords, which are no words.
        prefix: what was typed of the word.
        k: words at most.
    """
    start = _folded(prefix)
    found: dict[str, None] = {}
    for word in chain(likely, own, vocabulary):
        if len(found) >= k:
            break
        folded = _folded(word)
        if folded.startswith(start) and folded != start:
            found[word] = None
    return list(found)


def _folded(word: str) -> str:
    return word.lower().replace("\u2019", "'").replace("\u2018", "'")
