"""The known strategies, by name, with the ranges of their hyper-parameters.

A weighting that is a kind of fairness is a strategy too: federated averaging with that weighting.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pfl_mobile.errors import PrivacyError, UnknownNameError, near
from pfl_mobile.hyperparameters import check_ranges, described, parameters
from pfl_mobile.registry import Registry

if TYPE_CHECKING:
    from pfl_mobile.strategies.strategy import Strategy

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class RegisteredStrategy:
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


STRATEGIES: Registry[RegisteredStrategy] = Registry("strategy", "pfl_mobile.strategies")


def register(
    name: str, *, title: str, paper: str, shares: str, keeps: str = "", split: bool = False
) -> Callable[[T], T]:
    """Make a strategy known: on a subclass of ``Strategy``, or on a function that returns one."""

    def known(make: T) -> T:
        entry = RegisteredStrategy(name, title, paper, shares, keeps, split, make)
        STRATEGIES.add(name, entry, home=make.__module__)
        return make

    return known


def names() -> list[str]:
    """All names: ours sorted, then those of other distributions."""
    return STRATEGIES.names()


def entries() -> list[RegisteredStrategy]:
    """All strategies, in the order of their names."""
    return list(STRATEGIES.all().values())


def fairness_names() -> list[str]:
    """Names of the strategies that are a weighting of devices, for ``fairness=``."""
    found = []
    for known in entries():
        required = [p for p in inspect.signature(known.make).parameters.values() if p.default is p.empty]
        if not required and known.make().weighting.is_fairness:
            found.append(known.name)
    return found


def entry(name: str) -> RegisteredStrategy:
    """The strategy of this name.

    Raises:
        UnknownNameError: there is none; the mend lists near names.
    """
    return STRATEGIES.find(name)


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
