"""How much a device trains in a round, for strategies whose own hyper-parameters count it in steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.data.user_rows import known_size
from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.strategies import Local, Strategy

#: Users that the steps of an average device are counted on, evenly over the population, where there are more.
_COUNTED = 200


def for_local_length(
    strategy: Strategy, local: Local, data: Population, batch: int, *, given: Collection[str]
) -> Strategy:
    """The strategy with the local steps of a round that were asked for; itself where it trains as ``Local`` says.

    Args:
        strategy: to change.
        local: the epochs or steps that were asked for; epochs become the steps that they are on an average device,
            as these strategies take as many steps on each.
        data: whose devices they are.
        batch: examples in a batch.
        given: hyper-parameters that the user gave the strategy.

    Raises:
        ConfigError: a hyper-parameter was given that says the same, or its value for so many steps is out of range.
    """
    own = strategy.for_steps(1)
    if not own:
        return strategy
    unit, asked = ("steps", local.steps) if local.epochs is None else ("epochs", local.epochs)
    default = {field.name: field.default for field in fields(strategy)}
    for name in own:
        if name in given or getattr(strategy, name) != default[name]:
            raise ConfigError(
                f"{type(strategy).__name__} was given {name} and local_{unit}, which both say how long a round is",
                mend=f"leave one of them out; local_{unit}={asked} would set {name}",
            )
    steps = local.steps or max(1, round((local.epochs or 1) * _batches(data, batch)))
    return replace(strategy, **strategy.for_steps(steps))


def _batches(data: Population, batch: int) -> float:
    """Batches in an epoch, mean over users with examples; why others have none is told when they train."""
    count = len(data)
    sizes = (
        known_size(data, user)
        for user in np.linspace(0, count - 1, min(count, _COUNTED)).astype(int).tolist()
    )
    return float(np.mean([-(-rows // batch) for rows in sizes if rows] or [1]))
