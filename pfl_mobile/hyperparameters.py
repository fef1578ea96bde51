"""Hyper-parameters of strategies, rules and weightings: read from signatures, described, checked."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Param:
    """What a hyper-parameter means and which values it takes, as an annotation: ``Annotated[float, Param(...)]``.

    Attributes:
        text: what it is, with the limit case that anchors it ("0 is FedAvg").
        low, high: range, both ends allowed unless ``open``.
        open: which ends are not allowed: any of ``low``, ``high``.
        choices: the values allowed, for names.
    """

    text: str
    low: float | None = None
    high: float | None = None
    open: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """Why the value is not allowed, in words; None when it is."""
        if self.choices and value not in self.choices:
            return f"not one of {', '.join(self.choices)}"
        if self.low is None and self.high is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return "not a number"
        low, high = self.low, self.high
        if math.isinf(value) and high != value:
            return "not finite"
        if low is not None and (value < low or (value == low and "low" in self.open)):
            return f"not in {self.range}"
        if high is not None and (value > high or (value == high and "high" in self.open)):
            return f"not in {self.range}"
        return None

    @property
    def range(self) -> str:
        """The range as mathematicians write it, for instance ``[0, 1)``."""
        left = "(" if "low" in self.open or self.low is None else "["
        right = ")" if "high" in self.open or self.high is None else "]"
        low = "-inf" if self.low is None else f"{self.low:g}"
        high = "inf" if self.high is None else f"{self.high:g}"
        return f"{left}{low}, {high}{right}"


@functools.cache
def parameters(target: Callable[..., Any]) -> Mapping[str, tuple[Any, Any, Param]]:
    """Name -> (type, default, Param) of every annotated hyper-parameter of a class or function."""
    found: dict[str, tuple[Any, Any, Param]] = {}
    hints = typing.get_type_hints(target, include_extras=True)
    for name, parameter in inspect.signature(target).parameters.items():
        annotated = hints.get(name)
        params = [m for m in getattr(annotated, "__metadata__", ()) if isinstance(m, Param)]
        if annotated is not None and params:
            found[name] = (annotated.__origin__, parameter.default, params[0])
    return found


def described(target: Callable[..., Any]) -> list[dict[str, Any]]:
    """The hyper-parameters of a class or function as plain values."""
    return [
        {
            "name": name,
            "type": getattr(kind, "__name__", str(kind)),
            "default": default,
            "range": param.range if param.low is not None or param.high is not None else None,
            "choices": list(param.choices) or None,
            "meaning": param.text,
        }
        for name, (kind, default, param) in parameters(target).items()
    ]


def check_ranges(what: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters outside their range.

    Raises:
        ConfigError: naming the parameter, its value and its range.
    """
    for name, (kind, _, param) in parameters(target).items():
        if name not in values or (values[name] is None and _optional(kind)):
            continue
        problem = param.problem(values[name]) or _not_whole(kind, values[name])
        if problem:
            raise ConfigError(f"{what}: {name} is {values[name]!r}, {problem}", mend=f"{name}: {param.text}")


def _not_whole(kind: Any, value: Any) -> str | None:
    whole = kind is int or (isinstance(kind, types.UnionType) and int in kind.__args__)
    return "not a whole number" if whole and not isinstance(value, int) else None


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and type(None) in kind.__args__
