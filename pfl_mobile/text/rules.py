"""The versions of the piece rules, by number. A bundle says the one that its words were cut by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pfl_mobile.text import pieces, pieces_1


@dataclass(frozen=True)
class PieceRules:
    """One version of the rules.

    Attributes:
        version: its number, as a bundle says it.
        cut: the pieces of a text.
        is_symbol: whether a piece is a symbol (or a special token) and not a word.
    """

    version: int
    cut: Callable[[str], list[str]]
    is_symbol: Callable[[str], bool]


VERSION_1 = PieceRules(1, pieces_1.cut, pieces_1.is_symbol)
#: The rules of what is made now.
NEWEST = PieceRules(2, pieces.cut, pieces.is_symbol)
