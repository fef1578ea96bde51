"""A strategy and a fairness, put together from what the user named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.hyperparameters import parameters as hyper_parameters
from pfl_mobile.strategies import Strategy, Weighting, create, entry, fairness_names

#: Before the name of a hyper-parameter that is the fairness's, whatever the strategy has.
_PREFIX = "fairness."


@dataclass(frozen=True)
class Composed:
    """What :func:`compose` made.

    Attributes:
        name: of the strategy.
        strategy: with the fairness in it.
        parameters: those of the strategy alone.
        fairness: with its own hyper-parameters; None where the strategy's own weighting stays.
    """

    name: str
    strategy: Strategy
    parameters: dict[str, Any]
    fairness: Weighting | None


def compose(
    strategy: str | Strategy, parameters: Mapping[str, Any], fairness: Weighting | str | None
) -> Composed:
    """A strategy that weighs devices as ``fairness`` says.

    Args:
        strategy: a name or an object.
        parameters: hyper-parameters by name. One that the strategy has is its own, as long as it is given by name;
            any other, and one named ``fairness.NAME``, is the fairness's.
        fairness: a weighting, or the name of a strategy that is federated averaging with one.

    Raises:
        UnknownNameError: no such strategy, or neither it nor the fairness has such a hyper-parameter.
        ConfigError: one is out of range; the fairness is none; parameters for a strategy that is built already.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError(
            f"parameters are {type(parameters).__name__}", mend="give a dict, for instance {'mu': 0.1}"
        )
    if not isinstance(strategy, Strategy | str):
        raise ConfigError(
            f"the strategy is {strategy!r}", mend="give a name (see `pfl strategies`) or a Strategy object"
        )
    weighting = None if fairness is None else _weighting(fairness)
    own, fair = _shared_out(strategy, weighting, parameters)
    if weighting is not None and fair:
        weighting = replace(weighting, **fair)
    if isinstance(strategy, Strategy):
        name, made = type(strategy).__name__, strategy
    else:
        name, made = strategy, create(strategy, **own)
    return Composed(name, made if weighting is None else replace(made, weighting=weighting), own, weighting)


def _shared_out(
    strategy: str | Strategy, weighting: Weighting | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The strategy's hyper-parameters and the weighting's."""
    make = None if isinstance(strategy, Strategy) else entry(strategy).make
    takes = {} if make is None else inspect.signature(make).parameters
    weigh: Callable[..., Any] = type(weighting)
    known = {} if weighting is None else hyper_parameters(weigh)
    own: dict[str, Any] = {}
    fair: dict[str, Any] = {}
    for name, value in given.items():
        short = str(name).removeprefix(_PREFIX)
        if name in takes:
            own[name] = value
        elif short in fair:
            raise ConfigError(f"{short!r} of the fairness is given twice", mend=f"leave {short!r} out")
        elif short in known:
            fair[short] = value
        elif weighting is None and short != name:
            raise ConfigError(
                f"{name!r} is given and no fairness",
                mend="name it: fairness=, on the command line --fairness",
            )
        elif make is None and weighting is None:
            raise ConfigError(
                f"parameters {sorted(given)} come with a strategy that is built already",
                mend="give them to the strategy itself",
            )
        else:
            what = f"strategy {strategy!r}" if make else type(strategy).__name__
            also = "" if weighting is None else f", nor has the fairness {type(weighting).__name__}"
            raise UnknownNameError(
                f"{what} has no hyper-parameter {name!r}{also}",
                mend=near(short, [*(hyper_parameters(make) if make else ()), *known]),
            )
    return own, fair


def _weighting(fairness: Weighting | str) -> Weighting:
    if isinstance(fairness, Weighting):
        return fairness
    if not isinstance(fairness, str):
        raise ConfigError(
            f"fairness is a {type(fairness).__name__}",
            mend="give a Weighting, for instance BoundedGroupLoss(...)",
        )
    return named_fairness(fairness)


def named_fairness(name: str, parameters: Mapping[str, Any] | None = None) -> Weighting:
    """The weighting of the strategy of this name, which is federated averaging with it.

    Raises:
        UnknownNameError: no such strategy, or it has no such hyper-parameter.
        ConfigError: a hyper-parameter is out of range; devices count by no more than their examples, or all alike.
    """
    weighting = create(name, **(parameters or {})).weighting
    if not weighting.is_fairness:
        raise ConfigError(
            f"{name!r} does not weight devices by how they fare, so it is no kind of fairness",
            mend=f"choose one of {', '.join(fairness_names())}",
        )
    return weighting
