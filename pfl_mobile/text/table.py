"""Reads ``unicode.json``, the table of code points that :mod:`pfl_mobile.text.pieces` explains."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

PATH = Path(__file__).with_name("unicode.json")
_TABLE = json.loads(PATH.read_text(encoding="utf-8"))
_LAST = 0x10FFFF


class Ranges:
    """A set of code points, from [first, last, first, last, ...] in order."""

    def __init__(self, ends: list[int]) -> None:
        """The set of these ranges."""
        #: Where a range begins, and where it is over: the number of bounds up to a point is odd inside the set.
        self._bounds = [end + i % 2 for i, end in enumerate(ends)]

    def __contains__(self, point: int) -> bool:
        """Whether a code point is in the set."""
        return bisect_right(self._bounds, point) % 2 == 1

    def within(self, last: int) -> list[tuple[int, int]]:
        """The ranges up to ``last``, each with its last code point."""
        starts, ends = self._bounds[::2], self._bounds[1::2]
        return [(a, min(b - 1, last)) for a, b in zip(starts, ends, strict=True) if a <= last]

    def gaps(self, last: int) -> list[tuple[int, int]]:
        """The ranges up to ``last`` that are not in the set."""
        bounds = [0, *self._bounds, _LAST + 1]
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        return [(a, min(b - 1, last)) for a, b in pairs if a <= last and a < b]

    def runs(self, text: str) -> Iterator[tuple[str, bool]]:
        """The longest parts of a text whose code points all are in the set, or all are not, with which it is."""
        for inside, run in itertools.groupby(text, lambda c: ord(c) in self):
            yield "".join(run), inside


class _Kinds(dict[int, int]):
    """The kind of each code point, for ``str.translate``; filled as code points are met."""

    def __missing__(self, point: int) -> int:
        kind = _KINDS[point]
        if len(self) < _MOST_CACHED:
            self[point] = kind
        return kind


class _Lower(dict[int, int]):
    """What each code point is folded to, for ``str.translate``."""

    def __missing__(self, point: int) -> int:
        if len(self) < _MOST_CACHED:
            self[point] = point
        return point


def _kinds() -> bytes:
    kinds = bytearray(b"S" * (_LAST + 1))
    for kind, ends in _TABLE["kinds"].items():
        for first, last in zip(ends[::2], ends[1::2], strict=True):
            kinds[first : last + 1] = kind.encode() * (last + 1 - first)
    return bytes(kinds)


def _lower() -> _Lower:
    lower, runs = _Lower(), _TABLE["lower"]
    for first, last, step, delta in zip(runs[::4], runs[1::4], runs[2::4], runs[3::4], strict=True):
        lower |= {p: p + delta for p in range(first, last + 1, step)}
    ends = _TABLE["kinds"]["a"]
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        lower |= dict.fromkeys(range(first, last + 1), 0x27)
    return lower


_MOST_CACHED = 1 << 16
_KINDS = _kinds()

#: The kind of a code point, as the number of its letter.
KIND = _Kinds()
#: The simple lower-case mapping; apostrophes of every kind become U+0027.
LOWER = _lower()
#: Code points of Unicode 8.0.
ASSIGNED = Ranges(_TABLE["assigned"])
#: Code points whose NFKC begins with a space and a mark.
ACCENTS = Ranges(_TABLE["accents"])
#: The Unicode version of the kinds.
UNICODE = str(_TABLE["unicode"])
