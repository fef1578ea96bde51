"""What may be called private: the one rule of plans, aggregators, studies and devices.

A guarantee with a huge epsilon or a large delta guarantees nothing. With epsilon 20 an outcome may be 5 * 10^8 times as
probable with a device's data as without it; with delta of 1 / population one device's update may be published as it is.
"Ponomareva et al., How to DP-fy ML" (JAIR 2023) call up to 1 strong, up to 10 reasonable, and more weak or none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    from pfl_mobile.privacy.config import PrivacyConfig

#: The largest epsilon and delta that a device accepts where its user says nothing.
DEVICE_EPSILON, DEVICE_DELTA = 10.0, 1e-6
#: No guarantee is said, planned or accepted with a larger epsilon or delta.
MOST_EPSILON, MOST_DELTA = 20.0, 1e-3
#: Smaller ones are lost in the accountants' arithmetic.
LEAST_EPSILON, LEAST_DELTA = 1e-4, 1e-100
#: The largest delta, in parts of 1 / population.
POPULATION_SHARE = 0.1
#: Norms outside could not be told from zero or infinity in float32.
LEAST_CLIP_NORM, MOST_CLIP_NORM = 1e-12, 1e12


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value that came from elsewhere is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def epsilon_problem(epsilon: float, most: float = MOST_EPSILON) -> str:
    """Why an epsilon promises too little; empty where it does not.

    Args:
        epsilon: of a guarantee.
        most: the largest one.
    """
    return "" if 0 <= epsilon <= most else f"epsilon is {epsilon:.4g}, the most that is private is {most:g}"


def delta_problem(delta: float, population: int = 1) -> str:
    """Why a delta promises too little; empty where it does not.

    Args:
        delta: of a guarantee.
        population: the number of devices, or fewer.
    """
    if not LEAST_DELTA <= delta <= MOST_DELTA:
        return (
            f"delta is {delta:g}, which must lie between {LEAST_DELTA:g} and {MOST_DELTA:g}: it is the probability "
            "with which nothing is guaranteed"
        )
    if delta * population > POPULATION_SHARE * (1 + 1e-9):
        return (
            f"delta {delta:g} is not well below 1 / population = {1 / population:g}: it would allow to publish some "
            f"device's update as it is; lower delta to {POPULATION_SHARE / population:g} or less"
        )
    return ""


def rounded_up(value: float, digits: int = 4) -> float:
    """To so many significant digits, never down: a guarantee must not look better than it is."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    return math.ceil(value / unit * (1 - 1e-12)) * unit


def check_guarantee(config: PrivacyConfig, rounds: int | None) -> None:
    """Refuse rounds whose noise hides nobody, before the first one.

    Args:
        config: of the rounds; where it says that there is no noise, nothing is promised, and nothing refused.
        rounds: how many there will be; None: as many as the configuration plans.

    Raises:
        ConfigError: the rounds, or where a budget ends them the first one, cost more than may be called private.
        MissingDependencyError: the package ``dp-accounting`` is not installed.
    """
    if not config.guarantees:
        return
    from pfl_mobile.privacy.accounting import Ledger

    ledger, budget = Ledger(config), config.budget_epsilon
    planned = config.rounds if rounds is None else rounds
    if budget is not None:
        if problem := epsilon_problem(budget):
            raise ConfigError(
                f"the budget guarantees nothing: {problem}", mend="set a smaller budget, such as 8"
            )
        first = ledger.epsilon_after()
        if not first <= budget:
            raise ConfigError(
                f"the noise is too small: the first round costs epsilon {first:.4g}, and the budget is {budget:g}",
                mend="set more noise; `pfl privacy plan` computes how much a budget needs",
            )
        return
    if planned is None:
        raise ConfigError(
            "rounds without end cost more and more, and no budget ends them",
            mend="set budget_epsilon, or a number of rounds",
        )
    if problem := epsilon_problem(ledger.epsilon_after(planned)):
        raise ConfigError(
            f"the noise hides nobody: after {planned} rounds {problem}",
            mend="set more noise, fewer rounds, or a budget_epsilon that ends them before; `pfl privacy plan` computes "
            "the noise; without any, say so: mechanism 'none' (--no-privacy)",
        )
