"""How much noise a budget needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import accounting_events as events
from pfl_mobile.privacy.accounting import Ledger, rdp_accountant
from pfl_mobile.privacy.device_noise import DeviceNoise
from pfl_mobile.privacy.gaussian import Gaussian
from pfl_mobile.privacy.limits import LEAST_EPSILON, MOST_EPSILON
from pfl_mobile.privacy.matrix import Matrix
from pfl_mobile.privacy.mechanism import Noisy
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.participation import Fixed, Poisson

if TYPE_CHECKING:
    from pfl_mobile.privacy.config import PrivacyConfig

Kind = TypeVar("Kind", bound=Noisy)

#: Noise multipliers are found to this share of their size, and never too small.
_RELATIVE = 1e-3
#: Of a sampled release: with less nothing useful is guaranteed, and accountants are slow.
_LEAST = 0.2


def required_noise(config: PrivacyConfig, epsilon: float, rounds: int | None = None) -> float:
    """The smallest noise multiplier with which so many rounds cost at most epsilon.

    Args:
        config: everything else; its own noise multiplier (of ``local`` the local one) does not matter.
        epsilon: at the configuration's delta.
        rounds: by default the configuration's.

    Returns:
        z, for ``with_noise``; relative to the clip norm.

    Raises:
        ConfigError: the mechanism has no noise; rounds are neither given nor planned; epsilon is out of range.
        MissingDependencyError: dp-accounting is not installed.
    """
    count = config.rounds if rounds is None else rounds
    if isinstance(config, NoNoise):
        raise ConfigError("the mechanism 'none' has no noise", mend="choose gaussian, matrix or local")
    if count is None or count < 1:
        raise ConfigError(f"noise for {count} rounds", mend="say how many rounds there shall be, 1 or more")
    if not LEAST_EPSILON <= epsilon <= MOST_EPSILON:
        raise ConfigError(
            f"epsilon is {epsilon:g}",
            mend=f"give a number from {LEAST_EPSILON:g} to {MOST_EPSILON:g}, such as 2; above 10 little is "
            "promised, and devices refuse it by default",
        )
    taken = config.participations(count)
    # what a plain Gaussian needs is exact without sampling, and enough with it
    plain = events.dp_accounting().get_sigma_gaussian(epsilon, config.delta) * math.sqrt(taken)
    doubled = 2.0 if config.relation == "replace_one" else 1.0
    found = plain * doubled * (1 + 1e-9)
    if isinstance(config.participation, Poisson):
        found = min(found, _poisson(config.sampling_rate, config.delta, epsilon, count))
    elif isinstance(config.participation, Fixed):
        # the formula's noise stands where sampling without replacement is not accounted to need less
        found = min(
            found, 2 * _fixed(config.population, config.cohort, config.delta, epsilon, count, found / 2)
        )
    return _enough(config, found, epsilon, count)


def with_noise(config: Kind, noise_multiplier: float) -> Kind:
    """The configuration with another multiplier of the noise that its guarantee rests on; checked anew.

    Raises:
        ConfigError: they do not fit together.
    """
    return config.replaced(**{config.noise_field: noise_multiplier})


# searched once a process: plans, their alternatives and studies ask for the same budget again
@lru_cache(maxsize=256)
def _poisson(sampling_rate: float, delta: float, epsilon: float, rounds: int) -> float:
    """By RDP first, which is fast and gives too much noise, then by PLD below that."""
    dp = events.dp_accounting()

    def event(z: float) -> Any:
        sampled = dp.PoissonSampledDpEvent(sampling_rate, dp.GaussianDpEvent(z))
        return dp.SelfComposedDpEvent(sampled, rounds)

    upper = _calibrated(_cost(lambda: rdp_accountant("add_or_remove_one"), event, delta), epsilon)
    if upper <= _LEAST:
        return upper

    # ten times as coarse as the ledger, and ten times as fast: less than a thousandth more noise
    cost = _cost(lambda: dp.pld.PLDAccountant(value_discretization_interval=1e-3), event, delta)
    if not cost(upper) <= epsilon:  # below the probabilities that it tells from 0
        return upper
    lower = 0.8 * upper
    while cost(lower) <= epsilon:
        lower *= 0.8
    return _calibrated(cost, epsilon, dp.ExplicitBracketInterval(lower, upper))


@lru_cache(maxsize=256)
def _fixed(population: int, cohort: int, delta: float, epsilon: float, rounds: int, enough: float) -> float:
    """By RDP; infinite without a search where even ``enough`` is too little for it, as then more is not wanted."""
    dp = events.dp_accounting()

    def event(z: float) -> Any:
        sampled = dp.SampledWithoutReplacementDpEvent(population, cohort, dp.GaussianDpEvent(z))
        return dp.SelfComposedDpEvent(sampled, rounds)

    cost = _cost(lambda: rdp_accountant("replace_one"), event, delta)
    if not cost(enough) <= epsilon:
        return math.inf
    return _calibrated(cost, epsilon)


#: Epsilon with a noise multiplier.
Cost = Callable[[float], float]


def _cost(accountant: Callable[[], Any], event: Callable[[float], Any], delta: float) -> Cost:
    """What is computed once for each noise multiplier: searches come back to the ends of their brackets."""
    return cache(lambda z: float(accountant().compose(event(z)).get_epsilon(delta)))


class _Search:
    """What dp-accounting's search takes for an accountant, and a noise multiplier for its event."""

    def __init__(self, cost: Cost) -> None:
        self._cost, self._noise_multiplier = cost, math.nan
        self.ledger = events.dp_accounting().NoOpDpEvent()

    def compose(self, noise_multiplier: float) -> _Search:
        self._noise_multiplier = noise_multiplier
        return self

    def get_epsilon(self, _: float) -> float:
        return self._cost(self._noise_multiplier)


def _calibrated(cost: Cost, epsilon: float, bracket: Any | None = None) -> float:
    dp = events.dp_accounting()
    if bracket is None:
        bracket = dp.LowerEndpointAndGuess(_LEAST, 1.0)
        if cost(_LEAST) <= epsilon:
            return _LEAST
    tolerance = _RELATIVE * (bracket.endpoint_1 if hasattr(bracket, "endpoint_1") else 1.0)
    from dp_accounting.mechanism_calibration import NoBracketIntervalFoundError

    try:
        return float(
            dp.calibrate_dp_mechanism(
                lambda: _Search(cost),
                lambda noise_multiplier: noise_multiplier,
                epsilon,
                0.0,  # what a cost is at delta is in it
                bracket_interval=bracket,
                tol=tolerance,
            )
        )
    except NoBracketIntervalFoundError as error:
        raise ConfigError(
            f"no noise that can be computed keeps epsilon at {epsilon:g} for so many rounds",
            mend="ask for fewer rounds, or for a larger epsilon",
        ) from error


def _enough(config: Gaussian | Matrix | DeviceNoise, found: float, epsilon: float, rounds: int) -> float:
    """A little more where the ledger, which decides, would still be above epsilon."""
    for _ in range(100):
        ledger = Ledger(_noised(config, found))
        ledger.record(rounds)
        if ledger.epsilon() <= epsilon:
            return found
        found *= 1 + _RELATIVE / 10
    raise ConfigError(
        f"no noise was found that keeps epsilon at {epsilon:g} for {rounds} rounds",
        mend="allow a larger epsilon or fewer rounds",
    )


def _noised(
    config: Gaussian | Matrix | DeviceNoise, noise_multiplier: float
) -> Gaussian | Matrix | DeviceNoise:
    """As ``with_noise``, without the checks of an adaptive clip norm, whose noise is chosen afterwards."""
    return with_noise(config.fixed_clipping(), noise_multiplier)
