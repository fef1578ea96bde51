"""Settings as plain values: for printing, and for telling whether a checkpoint belongs to a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from pfl_mobile.files.code import code_digest, is_users


def describe(value: Any, *, exact: bool = False) -> Any:
    """A setting as JSON values: dataclasses by their fields, arrays by a digest, other objects by their name.

    Args:
        value: any.
        exact: tell a user's functions, classes and objects of the same name apart by what they do and hold.
    """

    def inner(item: Any) -> Any:
        return describe(item, exact=exact)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a tensor; aggregators have no PyTorch
        return {"torch": inner(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray):
        sha = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": sha}
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        code = {"code": code_digest(kind, inner)} if exact and is_users(kind) else {}
        return {"kind": kind.__name__} | code | {f.name: inner(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inner(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(inner(v)) for v in value)
    if isinstance(value, partial):
        return {
            "kind": "partial",
            "of": inner(value.func),
            "args": inner(value.args),
            "with": inner(value.keywords),
        }
    name = getattr(value, "__qualname__", type(value).__qualname__)
    users = isinstance(value, FunctionType | MethodType | type) or is_users(type(value))
    return {"name": name, "code": code_digest(value, inner)} if exact and users else name


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions differ: dotted path, value in the one, value in the other (None where missing)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path, one, other
