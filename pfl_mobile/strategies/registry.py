"""The known strategies, by name, with the ranges of their hyper-parameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pfl_mobile.errors import ConfigError, PrivacyError, UnknownNameError, near

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfl_mobile.strategies.strategy import Strategy

T = TypeVar("T", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class Entry:
    """A registered strategy.

    Attributes:
        name: as users type it.
        title: one line.
        paper: authors, year, title, arXiv number where there is one.
        shares: what travels, in words.
        keeps: what stays on the device, in words; empty for nothing.
        split: whether it needs tensors with the role ``personal`` beside the shared ones.
        make: builds it from hyper-parameters.
    """

    name: str
    title: str
    paper: str
    shares: str
    keeps: str
    split: bool
    make: Callable[..., Strategy]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``pfl strategies --json``; ``private`` is null where nobody can tell.

        ``why_not_private`` says what its merge needs that a private round does not let out, null where nothing.
        """
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "make"}
        needed = [p for p in inspect.signature(self.make).parameters.values() if p.default is p.empty]
        strategy = None if needed else self.make()  # what needs hyper-parameters may depend on them
        out["private"], out["why_not_private"] = (None, None) if strategy is None else _private(strategy)
        out["parameters"] = described(self.make)
        return out


def _private(strategy: Strategy) -> tuple[bool, str | None]:
    try:
        strategy.check_private(())
    except PrivacyError as error:
        return False, error.message
    return True, None


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, *, title: str, paper: str, shares: str, keeps: str = "", split: bool = False
) -> Callable[[T], T]:
    """Make a strategy known: on a subclass of ``Strategy``, or on a function that returns one."""

    def known(make: T) -> T:
        if name in _ENTRIES:
            raise ConfigError(f"strategy {name!r} is registered twice", mend="give it another name")
        _ENTRIES[name] = Entry(name, title, paper, shares, keeps, split, make)
        return make

    return known


def _load() -> None:
    """Import every file of this package, so that each registers itself."""
    package = importlib.import_module("pfl_mobile.strategies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def names() -> list[str]:
    """All names, sorted."""
    _load()
    return sorted(_ENTRIES)


def entries() -> list[Entry]:
    """All strategies, in order of name."""
    return [_ENTRIES[name] for name in names()]


def fairness_names() -> list[str]:
    """Names of the strategies that are a weighting of devices, for ``fairness=``."""
    found = []
    for known in entries():
        required = [p for p in inspect.signature(known.make).parameters.values() if p.default is p.empty]
        if not required and known.make().weighting.is_fairness:
            found.append(known.name)
    return found


def entry(name: str) -> Entry:
    """The strategy of this name.

    Raises:
        UnknownNameError: there is none; the mend lists near names.
    """
    _load()
    if name not in _ENTRIES:
        raise UnknownNameError(f"no strategy is called {name!r}", mend=near(name, _ENTRIES))
    return _ENTRIES[name]


def create(name: str, **values: Any) -> Strategy:
    """Build a strategy by name.

    Raises:
        UnknownNameError: no such strategy, or it has no such hyper-parameter.
        ConfigError: a hyper-parameter is out of range.
    """
    found = entry(name)
    known = inspect.signature(found.make).parameters
    for key in values:
        if key not in known:
            raise UnknownNameError(
                f"strategy {name!r} has no hyper-parameter {key!r}", mend=near(key, parameters(found.make))
            )
    check_ranges(f"strategy {name!r}", found.make, values)
    return found.make(**values)
