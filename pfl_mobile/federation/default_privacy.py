"""What protects a federation for which nobody says more than a budget, or nothing: in a study as on a server.

So a study prices what ships.
"""

from __future__ import annotations

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import Matrix
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.privacy.limits import DEVICE_DELTA
from pfl_mobile.privacy.plan import BAND, Scheme

#: What is spent over all rounds.
EPSILON, DELTA = 8.0, DEVICE_DELTA
CLIP_NORM = 1.0
#: The mechanism: noise of the aggregator that is correlated over the rounds. It counts on no sampling: whether devices
#: take part at random is seldom in the hands of who runs the federation.
MECHANISM = "matrix"


def named_scheme(mechanism: str | None, sampling: str | None) -> Scheme:
    """The mechanism and sampling that options name, or the default.

    Args:
        mechanism: None: gaussian where a sampling is named, as no other costs less by one, else the default.
        sampling: None: what the mechanism says.

    Raises:
        UnknownNameError: there is no mechanism or sampling of that name.
        ConfigError: the mechanism has no noise, or uses no sampling.
    """
    if mechanism is None:
        mechanism = MECHANISM if sampling is None else "gaussian"
    return Scheme.named(mechanism, sampling)


def default_privacy(
    *,
    cohort: int,
    rounds: int | None,
    population: int | None = None,
    min_separation: int = 1,
    epsilon: float = EPSILON,
    delta: float = DELTA,
    clip_norm: float = CLIP_NORM,
) -> Matrix:
    """Privacy that assumes nothing about who takes part when: noise correlated over the rounds.

    Args:
        cohort: updates of a round.
        rounds: all that there will be.
        population: devices in all, where that is known; it changes no noise, and delta must be well below its inverse.
        min_separation: rounds between two of one device; the larger, the less noise.
        epsilon, delta: the budget over all rounds, and the point at which training stops.
        clip_norm: L2 bound on an update.

    Raises:
        ConfigError: there is no last round, the numbers do not fit together, or no noise is enough.
        MissingDependencyError: dp-accounting is not installed.
    """
    if rounds is None:
        raise ConfigError(
            "noise is calibrated for a number of rounds, and there is none",
            mend="say --rounds R, or give --privacy FILE",
        )
    separation = min(min_separation, rounds)
    config = Matrix.checked(
        clip_norm=clip_norm,
        noise_multiplier=1.0,
        population=population,
        cohort=cohort,
        rounds=rounds,
        participation={"sampling": "none", "min_separation": separation},
        band=min(separation, BAND),
        delta=delta,
        budget_epsilon=epsilon,
    )
    return with_noise(config, required_noise(config, epsilon))
