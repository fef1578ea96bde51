"""When Python looks for garbage that refers to itself.

It does so after each few hundred new objects, and now and then goes through all that there are, of which toolchains
make a million when they are imported. That was a fifth of an export's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Bytes of weights from which on `among_new` looks.
LARGE = 1 << 26


@contextmanager
def never() -> Iterator[None]:
    """Look for no garbage, as while modules are imported, which all stay, nor soon after among what is new."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else whoever froze objects wants them to stay so
            gc.freeze()
            gc.unfreeze()  # everything is old now
        if before:
            gc.enable()


@contextmanager
def when_told() -> Iterator[None]:
    """Look for garbage when `among_new` is called only, and not among what was there before."""
    frozen = gc.get_freeze_count() == 0
    with never():
        if frozen:
            gc.freeze()
        try:
            yield
        finally:
            if frozen:
                gc.unfreeze()


def among_new(held: int) -> None:
    """Give back what a step of the export left: programs hold themselves, and with them their weights.

    Args:
        held: bytes of the weights; few are not worth the search.
    """
    if held >= LARGE:
        gc.collect()
