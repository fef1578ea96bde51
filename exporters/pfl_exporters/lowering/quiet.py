"""Toolchains speak of their internals; what a user has to know, we say."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

#: Toolchains, and what is changed around them, are the process's: one export at a time.
ALONE = RLock()

#: What coremltools looks for in order to convert its models too, or to tell its version. Importing it takes a quarter
#: of the time that all tools take.
_CONVERTED_TOO = ("sklearn", "libsvm", "xgboost", "tensorflow", "torchvision", "torchaudio", "transformers")


@contextmanager
def lean() -> Iterator[None]:
    """Hide from toolchains that are imported now the libraries whose models they could convert besides PyTorch's.

    Who converts those models in the same process imports coremltools before.
    """
    with ALONE:
        hidden = [name for name in _CONVERTED_TOO if name not in sys.modules]
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None means: not installed
        try:
            yield
        finally:
            for name in hidden:
                if sys.modules.get(name) is None:
                    sys.modules.pop(name, None)


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
