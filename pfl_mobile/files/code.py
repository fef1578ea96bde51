"""What a user's functions and classes do, as a digest: two of the same name are told apart.

The digest follows bytecode, defaults, what closures hold, and the globals of the same package that are read; not
comments, line numbers or docstrings. Another Python version compiles to other bytecode, so it differs too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_OURS = __name__.partition(".")[0]


def is_users(kind: type) -> bool:
    """Whether a class is neither ours, nor of Python or an installed package."""
    return _is_users(getattr(kind, "__module__", None))


def _is_users(module: str | None) -> bool:
    top = (module or "builtins").partition(".")[0]
    if top == _OURS or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    where = str(getattr(sys.modules.get(module or ""), "__file__", "") or "")
    return "site-packages" not in where and "dist-packages" not in where


def code_digest(thing: Any, describe: Callable[[Any], Any]) -> str:
    """Digest of a function, a method or a class.

    Args:
        thing: what to look into.
        describe: any other value to JSON values.
    """
    sha = hashlib.sha256()
    _Walk(sha.update, describe).visit(thing)
    return sha.hexdigest()[:16]


class _Walk:
    """One use. What was visited is not visited again, so that functions may call each other."""

    def __init__(self, update: Callable[[bytes], None], describe: Callable[[Any], Any]) -> None:
        self.update, self.describe = update, describe
        self.seen: set[int] = set()

    def say(self, *parts: object) -> None:
        self.update(repr(parts).encode())

    def visit(self, thing: Any) -> None:
        if id(thing) in self.seen:
            return
        if isinstance(thing, FunctionType):
            self.seen.add(id(thing))
            self.function(thing)
        elif isinstance(thing, MethodType):
            self.visit(thing.__func__)
            self.value(thing.__self__)
        elif isinstance(thing, staticmethod | classmethod):
            self.visit(thing.__func__)
        elif isinstance(thing, property):
            for part in (thing.fget, thing.fset):
                self.visit(part)
        elif isinstance(thing, type):
            self.seen.add(id(thing))
            self.kind(thing)
        else:
            self.value(thing)

    def value(self, thing: Any) -> None:
        """What is neither function nor class; objects by what they hold."""
        if id(thing) in self.seen:
            return
        if isinstance(thing, ModuleType):
            self.say("module", thing.__name__)
        elif isinstance(thing, FunctionType | MethodType | type):
            self.visit(thing)
        elif hasattr(thing, "__dict__") and is_users(type(thing)):
            self.seen.add(id(thing))
            self.visit(type(thing))
            for name in sorted(vars(thing)):
                self.say(name)
                self.value(vars(thing)[name])
        elif isinstance(thing, list | tuple):
            self.say(type(thing).__name__, len(thing))
            for item in thing:
                self.value(item)
        elif isinstance(thing, Mapping):
            for key in thing:
                self.say(key if isinstance(key, str) else type(key).__name__)
                self.value(thing[key])
        else:
            self.say(self.describe(thing))

    def function(self, function: FunctionType) -> None:
        self.code(function.__code__, function.__doc__)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.value(default)
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # not set yet
                self.say("empty")
        for name in _names(function.__code__):
            if name in function.__globals__:
                self.read(name, function.__globals__[name])

    def read(self, name: str, value: Any) -> None:
        """A global that a function reads: of the user's own, or a plain value."""
        if isinstance(value, FunctionType | type):
            if _is_users(value.__module__):
                self.say(name)
                self.visit(value)
        elif isinstance(value, ModuleType):
            if _is_users(value.__name__):
                self.say(name)
                for inner, item in sorted(vars(value).items()):
                    if isinstance(item, FunctionType) and item.__module__ == value.__name__:
                        self.say(inner)
                        self.visit(item)
        elif isinstance(value, bool | int | float | str | bytes | list | tuple | np.ndarray | np.generic) or (
            is_users(type(value)) or hasattr(value, "detach")
        ):
            self.say(name)
            self.value(value)

    def kind(self, kind: type) -> None:
        for base in kind.__mro__:
            if not is_users(base):
                continue
            self.say(base.__qualname__)
            for name, value in sorted(vars(base).items()):
                if name.startswith("__") and not callable(value):
                    continue  # of the class itself, not of its instances
                if isinstance(value, FunctionType | staticmethod | classmethod | property):
                    self.say(name)
                    self.visit(value)
                elif isinstance(value, bool | int | float | str | tuple | np.ndarray):
                    self.say(name, self.describe(value))

    def code(self, code: CodeType, doc: str | None = None) -> None:
        self.say(code.co_code, code.co_names, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        for i, constant in enumerate(code.co_consts):
            if i == 0 and doc is not None and constant == doc:
                continue
            if isinstance(constant, CodeType):
                self.code(constant)
            elif isinstance(constant, frozenset):
                self.say(sorted(map(repr, constant)))
            else:
                self.say(constant)


def _names(code: CodeType) -> list[str]:
    """Names that a function reads, and those that functions inside it read."""
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c)]
    return sorted({*code.co_names, *inner})
