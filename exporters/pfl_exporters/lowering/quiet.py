"""Toolchains speak of their internals; what a user has to know, we say."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

#: Toolchains, and what is changed around them, are the process's: one export at a time.
ALONE = RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and log messages; what went wrong is in the exception. One thread at a time."""
    with ALONE:
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
