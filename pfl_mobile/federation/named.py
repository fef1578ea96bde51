"""A strategy in the words of a bundle, and back: a name and hyper-parameters that make the same one anywhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pfl_mobile.bundle.manifest import StrategyEntry
from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.bundle_plan import BUNDLE, BundlePlan
from pfl_mobile.federation.compose import named_fairness
from pfl_mobile.files.describe import describe
from pfl_mobile.strategies import Local, Strategy, create, entries

if TYPE_CHECKING:
    from pfl_mobile.strategies import RegisteredStrategy, Weighting

#: Name and hyper-parameters.
Named = tuple[str, dict[str, Any]]


def strategy_entry(strategy: Strategy, local: Local) -> StrategyEntry | None:
    """What a bundle says of a strategy and its local training; None where no name and JSON values say it."""
    found, fair = _named(strategy), None
    if found is None:  # perhaps with another fairness than its own
        fair = _fairness(strategy.weighting) if strategy.weighting.is_fairness else None
        found = None if fair is None else _named(strategy, strategy.weighting)
    if found is None:
        return None
    by_local = not strategy.for_steps(1)  # else the parameters say how long devices train
    return StrategyEntry(
        name=found[0],
        parameters=found[1],
        fairness=fair and fair[0],
        fairness_parameters=fair[1] if fair else {},
        epochs=local.epochs if by_local else None,
        steps=local.steps if by_local else None,
        optimizer=local.optimizer,
        clip=local.clip,
    )


def effective_strategy(config: StrategyEntry, bundle: StrategyEntry | None) -> StrategyEntry:
    """What a configuration means with a bundle: itself, or for ``bundle`` the strategy that the bundle names, if any.

    Raises:
        ConfigError: something is set that the bundle says, or a fairness's parameters without a fairness.
    """
    if config.fairness is None and config.fairness_parameters:
        raise ConfigError(
            "fairness_parameters are set, but no fairness", mend="name a fairness, or leave them out"
        )
    if config.name != BUNDLE:
        return config
    extra = sorted({**_training(config), **config.parameters})
    if extra:
        raise ConfigError(
            f"the bundle says how to train, so {extra[0]!r} cannot be set",
            mend="leave it out, or name a strategy (`pfl strategies`)",
        )
    if bundle is None or config.fairness is None:
        return bundle or config
    fair = {"fairness": config.fairness, "fairness_parameters": config.fairness_parameters}
    return bundle.model_copy(update=fair)


def make_strategy(said: StrategyEntry, plan: str) -> tuple[Strategy, Local]:
    """The strategy and the local training.

    Args:
        said: from `effective_strategy`.
        plan: the bundle's own plan, JSON.

    Raises:
        UnknownNameError, ConfigError: no such strategy or hyper-parameter, or it is out of range.
    """
    strategy: Strategy = (
        BundlePlan(text=plan) if said.name == BUNDLE else create(said.name, **said.parameters)
    )
    own = next(iter(strategy.for_steps(1)), None)
    if own is not None and (said.epochs is not None or said.steps is not None):
        raise ConfigError(
            f"epochs or steps are set, but how long devices train with {said.name} is its {own!r}",
            mend=f"set {own} among the strategy's parameters, and leave epochs and steps out",
        )
    if said.fairness is not None:
        fairness = named_fairness(said.fairness, said.fairness_parameters)
        strategy = replace(strategy, weighting=fairness)
    return strategy, Local(**_training(said))


def _training(said: StrategyEntry) -> dict[str, Any]:
    """The local training that is set."""
    names = ("epochs", "steps", "optimizer", "clip")
    return {name: value for name in names if (value := getattr(said, name)) is not None}


def _named(strategy: Strategy, weighting: Weighting | None = None) -> Named | None:
    """What makes the same strategy, or one that is the same with this weighting in the place of its own."""
    classes_first = sorted(entries(), key=lambda entry: not isinstance(entry.make, type))
    for entry in classes_first:
        if isinstance(entry.make, type) and entry.make is not type(strategy):
            continue
        parameters = _parameters(entry, strategy, strategy.weighting, strategy.optimizer)
        if parameters is not None:
            made = create(entry.name, **parameters)
            made = made if weighting is None else replace(made, weighting=weighting)
            if describe(made) == describe(strategy):
                return entry.name, parameters
    return None


def _fairness(weighting: Weighting) -> Named | None:
    """What makes a strategy that is federated averaging with this weighting, or nearly so."""
    for entry in entries():
        parameters = None if isinstance(entry.make, type) else _parameters(entry, weighting)
        if parameters is not None:
            made = create(entry.name, **parameters)
            if describe(made.weighting) == describe(weighting):
                return entry.name, parameters
    return None


def _parameters(entry: RegisteredStrategy, *holders: object) -> dict[str, Any] | None:
    """The entry's hyper-parameters as the holders have them; None where one is missing or no JSON value."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry.make).parameters.items():
        if name in ("weighting", "optimizer"):
            continue
        holder = next((h for h in holders if hasattr(h, name)), None)
        if holder is not None:
            found[name] = getattr(holder, name)
        elif parameter.default is parameter.empty:
            return None
    return found if all(map(_plain, found.values())) else None


def _plain(value: Any) -> bool:
    """Whether JSON holds the value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
