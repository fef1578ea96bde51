"""Versions of runtimes: numbers with points between; what builds put behind them (``1.5.1+cpu``) does not count."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}(?![0-9])")


def plain(version: str) -> str | None:
    """The numbers of a version as bundles write them; None where it does not begin with any."""
    found = _NUMBERS.match(version)
    return found and found.group()


def release(version: str) -> str:
    """Major and minor number of a version that begins with them.

    Raises:
        ValueError: it does not.
    """
    numbers = plain(version)
    if numbers is None or "." not in numbers:
        raise ValueError(f"{version!r} does not begin with a major and a minor number")
    return ".".join(numbers.split(".")[:2])


def is_older(version: str, than: str) -> bool:
    """Whether a runtime is older than a version; numbers that are missing are 0.

    A runtime whose version does not begin with numbers was built by somebody who knows what it is: it is not older.
    """
    first, second = (plain(value) for value in (version, than))
    if first is None or second is None:
        return False
    pair = [[int(number) for number in value.split(".")] for value in (first, second)]
    length = max(map(len, pair))
    one, other = (numbers + [0] * (length - len(numbers)) for numbers in pair)
    return one < other
