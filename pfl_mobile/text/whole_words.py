"""The likeliest whole words of a language model over subwords, also while letters of the word are typed.

:func:`pfl_mobile.text.suggest.suggest` is what a device does with the few ids that a program gives. Here a word's
chance counts as a whole: that of its parts and of its end behind them. It needs a program with many ids (``top_k``) and
calls it more often: to measure a model over subwords by the words and symbols that people type, as keyboards are.

Spellings are gone on from in the order of their chance (uniform-cost search; Dijkstra, "A note on two problems in
connexion with graphs", 1959), so the first that ends is the likeliest word. Two spellings that the piece rules fold to
one word count as the likelier of both.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pfl_mobile.errors import ConfigError
from pfl_mobile.text.rules import NEWEST
from pfl_mobile.text.subwords import SubwordTokenizer

if TYPE_CHECKING:
    from pfl_mobile.text.encoder import Rows, TextEncoder

#: Inputs of ``predict`` to its outputs, ``top_ids`` int64 [1, K] and ``top_probs`` float32 [1, K] among them.
Outputs = Callable[["Rows"], Mapping[str, npt.NDArray[np.generic]]]

# What a subword begins with, which says whether it can go on a word.
_NOTHING, _SPACE, _LETTER, _SYMBOL = range(4)
# A spelling is gone on from with so many likeliest subwords.
_BRANCHES = 6
# Texts whose answers are kept: a word's letters are asked for one after another.
_KEPT = 4


@dataclass(frozen=True)
class _Spelling:
    """Subwords behind a text.

    Attributes:
        before: ids of the text, as far as they are kept.
        ids: of the spelling.
        text: that these add, with the space before it.
        word: the piece they begin, folded; empty while there is none.
        ended: nothing can be added to the piece.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    word: str
    ended: bool


class WholeWords:
    """Suggestions of whole words and symbols from a program over subwords.

    Args:
        outputs: the program ``predict``, with the user's tensors.
        encoder: over a :class:`SubwordTokenizer`.
        calls: of the program that one suggestion may take besides the first. When they are used up, what is spelled so
            far is taken for the word.

    Raises:
        ConfigError: the tokenizer is one of words, whose ids are words already.
    """

    def __init__(self, outputs: Outputs, encoder: TextEncoder, *, calls: int = 4) -> None:
        """Read how every subword begins."""
        if not isinstance(encoder.tokenizer, SubwordTokenizer):
            raise ConfigError(
                "the tokenizer's ids are words already", mend="take the program's top_ids as they are"
            )
        self._outputs, self._encoder, self._calls = outputs, encoder, calls
        self._added, self._begins = _beginnings(encoder.tokenizer)
        self._known: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        self._texts: dict[str, None] = {}
        #: How often the program was called.
        self.called = 0

    def suggest(self, text: str, begun: str = "", words: int = 3) -> list[str]:
        """Pieces that may come next, the likeliest first, until so many words are among them.

        Args:
            text: what was written up to the end of a piece, without the space behind it.
            begun: letters of the next piece that were typed, folded as the piece rules do: only pieces that begin so.
            words: how many; symbols that are likelier than the last of them are in the list, too.
        """
        self._keep(text)
        found: dict[str, None] = {}
        for piece in self._likeliest(text, begun):
            found[piece] = None
            if sum(not NEWEST.is_symbol(p) for p in found) >= words:
                break
        return list(found)

    def _likeliest(self, text: str, begun: str) -> Iterator[str]:
        order = itertools.count()
        heap: list[tuple[float, int, _Spelling]] = []

        def fits(spelling: _Spelling) -> bool:
            longer = not spelling.ended and begun.startswith(spelling.word)
            return longer or spelling.word.startswith(begun)

        def add(chance: float, spelling: _Spelling) -> None:
            heapq.heappush(heap, (-chance, next(order), spelling))

        left = self._calls
        for chance, spelling in self._first(text):
            if fits(spelling):
                add(chance, spelling)
        while heap:
            chance, _, spelling = heapq.heappop(heap)
            if spelling.ended:
                yield spelling.word
                continue
            new = (*spelling.before, *spelling.ids) not in self._known
            if new and left == 0:
                if spelling.word and spelling.word.startswith(begun):
                    yield spelling.word
                continue
            left -= new
            for share, further in self._further(spelling, fits):
                add(-chance * share, further)

    def _first(self, text: str) -> Iterator[tuple[float, _Spelling]]:
        """Beginnings of the piece behind a text, with their chances.

        A text that ends in a symbol may go on inside its last subword (``..`` is often one): then the subwords in its
        place that begin as it does count too.
        """
        before = tuple(self._encoder.ids(text))
        pieces = NEWEST.cut(text)
        behind_word = bool(pieces) and not NEWEST.is_symbol(pieces[-1])
        whole = 1.0
        if before and not behind_word and (last := self._added[before[-1]]):
            # at most the least that the program names, where it does not name the last subword
            whole = min((chance for _, chance in self._after(before[:-1])), default=1.0)
            for index, chance in self._after(before[:-1]):
                if index == before[-1]:
                    whole = chance
                elif len(self._added[index]) > len(last) and self._added[index].startswith(last):
                    yield from self._begun(before[:-1], index, self._added[index][len(last) :], chance)
        for index, chance in self._after(before):
            if not (behind_word and self._goes_on(index)):
                yield from self._begun(before, index, self._added[index], whole * chance)

    def _begun(
        self, before: tuple[int, ...], index: int, text: str, chance: float
    ) -> Iterator[tuple[float, _Spelling]]:
        if "\ufffd" not in text:
            yield chance, self._spelling(before, (index,), text)

    def _spelling(self, before: tuple[int, ...], ids: tuple[int, ...], text: str) -> _Spelling:
        word, ended = _first_piece(text)
        return _Spelling(before, ids, text, word, ended)

    def _further(
        self, spelling: _Spelling, fits: Callable[[_Spelling], bool]
    ) -> Iterator[tuple[float, _Spelling]]:
        """What a spelling becomes by one more subword, and with it its end, with the share of its chance."""
        after = self._after((*spelling.before, *spelling.ids))
        end, added = 0.0 if after else 1.0, 0
        for index, share in after:
            text = self._added[index]
            if spelling.word and not self._goes_on(index):
                end += share
            elif added < _BRANCHES and "\ufffd" not in text and self._begins[index] != _SPACE:
                longer = self._spelling(spelling.before, (*spelling.ids, index), spelling.text + text)
                if spelling.word and longer.word == spelling.word:  # as between characters of Chinese
                    end += share
                elif fits(longer):
                    added += 1
                    yield share, longer
        ended = replace(spelling, ended=True)
        if spelling.word and end and fits(ended):
            yield end, ended

    def _goes_on(self, index: int) -> bool:
        """Whether a subword behind a word is a part of it."""
        return self._begins[index] == _LETTER

    def _after(self, ids: tuple[int, ...]) -> list[tuple[int, float]]:
        """The subwords behind these, the likeliest first, with their chances."""
        if ids not in self._known:
            self.called += 1
            found = self._outputs(self._encoder.rows_after(ids))
            likeliest = zip(found["top_ids"][0].tolist(), found["top_probs"][0].tolist(), strict=True)
            self._known[ids] = [(i, chance) for i, chance in likeliest if chance > 0.0 and self._added[i]]
        return self._known[ids]

    def _keep(self, text: str) -> None:
        """Forget the answers of old texts."""
        if text not in self._texts:
            if len(self._texts) >= _KEPT:
                self._texts.clear()
                self._known.clear()
            self._texts[text] = None


@functools.lru_cache(maxsize=1 << 17)
def _first_piece(text: str) -> tuple[str, bool]:
    """The first piece of a text, empty where there is none, and whether nothing can be added to it."""
    pieces = NEWEST.cut(text)
    if not pieces:
        return "", False
    open_word = len(pieces) == 1 and not NEWEST.is_symbol(pieces[0]) and not text[-1].isspace()
    return pieces[0], not open_word


def _beginnings(tokenizer: SubwordTokenizer) -> tuple[Sequence[str], Sequence[int]]:
    """What each id adds to a text, and what that begins with."""
    anchor = next((i for i in range(tokenizer.size) if tokenizer.text([i]).strip().isalpha()), None)
    start = "" if anchor is None else tokenizer.text([anchor])
    added = [
        tokenizer.text([i] if anchor is None else [anchor, i]).removeprefix(start) if tokenizer.has(i) else ""
        for i in range(tokenizer.size)
    ]
    return added, [_beginning(text) for text in added]


def _beginning(text: str) -> int:
    if not text:
        return _NOTHING
    if text[0].isspace():
        return _SPACE
    # "n" stands for the word before: what is one word with it begins with letters, or an apostrophe before letters
    pieces = NEWEST.cut("n" + text)
    return _LETTER if pieces and pieces[0] != "n" else _SYMBOL
