"""When Python looks for garbage that refers to itself.

It does so after each few hundred new objects, and now and then goes through all that there are, of which toolchains
make a million when they are imported. That was a fifth of an export's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def never() -> Iterator[None]:
    """Look for no garbage, as while modules are imported, which all stay."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def when_told() -> Iterator[None]:
    """Look for garbage when `among_new` is called only, and not among what was there before."""
    frozen = gc.get_freeze_count() == 0  # else whoever froze objects wants them to stay so
    with never():
        if frozen:
            gc.freeze()
        try:
            yield
        finally:
            if frozen:
                gc.unfreeze()


def among_new() -> None:
    """Give back what a step of the export left: programs hold themselves, and with them their weights."""
    gc.collect()
