"""Toolchains speak of their internals; what a user has to know, we say.

They speak through warnings, through logs, by printing, and from C++ straight to the descriptors of the process. What
they say is kept while it may explain a failure, and shown only where the user asked for all of it (``--verbose``).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from types import ModuleType
from typing import IO, Any, TextIO

#: Toolchains, and what is changed around them, are the process's: one export at a time.
ALONE = RLock()
#: Bytes at the end of what was said that are read again.
_TAIL = 1 << 16

_verbose: ContextVar[bool] = ContextVar("verbose", default=False)


class _Streams:
    """Standard output and error, of Python and of the process, that go to a file of ours for a while."""

    def __init__(self) -> None:
        self.heard: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with this)
        self._python: tuple[TextIO, TextIO] | None = None
        self._kept: list[tuple[int, int]] = []

    def take(self) -> None:
        """Send everything to our file."""
        self._python = sys.stdout, sys.stderr
        _flush(*self._python)
        for number in (1, 2):
            with contextlib.suppress(OSError):  # closed by whoever started us
                kept = os.dup(number)
                os.dup2(self.heard.fileno(), number)
                self._kept.append((number, kept))
        ours = io.TextIOWrapper(
            open(os.dup(self.heard.fileno()), "wb", buffering=0),  # noqa: SIM115
            errors="backslashreplace",
            write_through=True,
        )
        sys.stdout = sys.stderr = ours

    def give_back(self) -> None:
        """As it was before."""
        if self._python is None:
            return
        _flush(sys.stdout, sys.stderr)
        ours = sys.stdout
        sys.stdout, sys.stderr = self._python
        self._python = None
        for number, kept in self._kept:
            os.dup2(kept, number)
            os.close(kept)
        self._kept = []
        with contextlib.suppress(OSError, ValueError):
            ours.close()


def _flush(*streams: Any) -> None:
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


_taken: _Streams | None = None

#: What coremltools looks for in order to convert its models too, or to tell its version. Importing it takes a quarter
#: of the time that all tools take.
_CONVERTED_TOO = ("sklearn", "libsvm", "xgboost", "tensorflow", "torchvision", "torchaudio", "transformers")


#: A pass of PyTorch's that ExecuTorch imports, and with it the whole compiler behind ``torch.compile``.
_OF_THE_COMPILER = "torch.export._remove_auto_functionalized_pass"


def _imported_when_needed() -> ModuleType:
    """A module in the place of ``_OF_THE_COMPILER``, which imports it for a program that the pass changes."""
    module = ModuleType(_OF_THE_COMPILER)

    def unsafe_remove_auto_functionalized_pass(program: Any) -> Any:
        import torch
        from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2

        changed = {auto_functionalized, auto_functionalized_v2, torch.ops.aten.copy_.default}
        if any(node.target in changed for node in program.graph.nodes):
            stock = importlib.import_module(_OF_THE_COMPILER)
            return stock.unsafe_remove_auto_functionalized_pass(program)
        program.graph.eliminate_dead_code()  # what it does to every program
        return program

    vars(module)["unsafe_remove_auto_functionalized_pass"] = unsafe_remove_auto_functionalized_pass
    return module


@contextmanager
def lean() -> Iterator[None]:
    """Hide from toolchains that are imported now the libraries whose models they could convert besides PyTorch's, and
    the compiler that they need for few programs.

    Who converts those models in the same process imports coremltools before.
    """
    with ALONE:
        stands: dict[str, Any] = dict.fromkeys(_CONVERTED_TOO)  # None means: not installed
        stands[_OF_THE_COMPILER] = _imported_when_needed()
        hidden = {name: stand for name, stand in stands.items() if name not in sys.modules}
        sys.modules.update(hidden)
        try:
            yield
        finally:
            for name, stand in hidden.items():
                if sys.modules.get(name) is stand:
                    sys.modules.pop(name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, log messages and prints, also of C++; what went wrong is in the exception. One thread at a
    time. Nothing is kept from a user who asked for everything (see `verbose`)."""
    global _taken
    with ALONE:
        if _verbose.get() or _taken is not None:  # of several, the outermost
            yield
            return
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        _taken = _Streams()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _taken.take()
                yield
        finally:
            _taken.give_back()
            _taken.heard.close()
            _taken = None
            logging.disable(before)


def heard() -> str:
    """The end of what was said since `quiet` began; nothing outside of it."""
    if _taken is None:
        return ""
    end = _taken.heard.seek(0, os.SEEK_END)
    _taken.heard.seek(max(0, end - _TAIL))
    return _taken.heard.read().decode(errors="replace")


def aloud(report: Callable[[str], None]) -> Callable[[str], None]:
    """What we say ourselves reaches the user inside of `quiet` too."""

    def said(text: str) -> None:
        taken = _taken
        if taken is None:
            report(text)
            return
        taken.give_back()
        try:
            report(text)
        finally:
            taken.take()

    return said


@contextmanager
def verbose(everything: bool = True) -> Iterator[None]:
    """Whether `quiet` keeps anything from the user."""
    token = _verbose.set(everything)
    try:
        yield
    finally:
        _verbose.reset(token)


def terminal() -> TextIO | None:
    """The terminal that standard error is, to write to inside of `quiet` too; None where it is no terminal."""
    try:
        if not sys.stderr.isatty():
            return None
        return open(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    except (OSError, ValueError):
        return None
