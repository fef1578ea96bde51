"""What command lines of several benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: ``A,B``, each one of ``known``."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return chosen

    return parse
