"""Planning a private federation: the noise that a budget needs, beside other ways to spend it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.privacy.config import MECHANISMS
from pfl_mobile.privacy.device_noise import DeviceNoise
from pfl_mobile.privacy.gaussian import Gaussian
from pfl_mobile.privacy.matrix import Matrix, prefix_noise
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.participation import SAMPLINGS, Fixed, Poisson, Unsampled

if TYPE_CHECKING:
    from pfl_mobile.privacy.config import PrivacyConfig

#: Rounds that correlated noise spans where nobody says: more helps little and needs more memory.
BAND = 32


@dataclass(frozen=True)
class Scheme:
    """Whose noise there is, and who takes part.

    Attributes:
        mechanism: type of the configurations.
        participation: who takes part; only ``Gaussian`` costs less by sampling.
    """

    mechanism: type[Gaussian | Matrix | DeviceNoise]
    participation: type[Poisson | Fixed | Unsampled]

    @classmethod
    def named(cls, mechanism: str, sampling: str | None = None) -> Scheme:
        """The scheme that options name.

        Args:
            mechanism: ``gaussian``, ``matrix`` or ``local``.
            sampling: ``poisson``, ``fixed`` or ``none``; None: Poisson sampling where the mechanism costs less by it.

        Raises:
            UnknownNameError: there is no mechanism or sampling of that name.
            ConfigError: the mechanism has no noise, or uses no sampling.
        """
        if mechanism not in MECHANISMS:
            raise UnknownNameError(f"unknown mechanism {mechanism!r}", mend=near(mechanism, MECHANISMS))
        if sampling is not None and sampling not in SAMPLINGS:
            raise UnknownNameError(f"unknown sampling {sampling!r}", mend=near(sampling, SAMPLINGS))
        noisy = MECHANISMS[mechanism]
        if issubclass(noisy, NoNoise):
            raise ConfigError(
                f"the mechanism {mechanism!r} has no noise, so it keeps no budget",
                mend="choose gaussian, matrix or local, or leave the budget out",
            )
        amplified = issubclass(noisy, Gaussian)
        default = Poisson if amplified else Unsampled
        participation = default if sampling is None else SAMPLINGS[sampling]
        if participation.sampled and not amplified:
            raise ConfigError(
                f"the mechanism {mechanism!r} uses no sampling, so {sampling} sampling cannot be chosen for it",
                mend="leave the sampling out, or choose the mechanism gaussian",
            )
        return cls(noisy, participation)

    @property
    def name(self) -> str:
        """Name of the mechanism."""
        return str(self.mechanism.model_fields["mechanism"].default)

    @property
    def sampling(self) -> str:
        """Name of the sampling."""
        return str(self.participation.model_fields["sampling"].default)

    @override
    def __str__(self) -> str:
        """For headings: ``gaussian, poisson sampling``."""
        if self.participation.sampled:
            return f"{self.name}, {self.sampling} sampling"
        return f"{self.name}, no sampling" if issubclass(self.mechanism, Gaussian) else self.name


#: What plans compare: the ways of the aggregator to keep a budget.
COMPARED = (Scheme(Gaussian, Poisson), Scheme(Gaussian, Fixed), Scheme(Matrix, Unsampled))


@dataclass(frozen=True)
class Budget:
    """What is wanted.

    Attributes:
        epsilon, delta: after all rounds.
        population: devices in all.
        rounds: in all.
        clip_norm: of the configurations.
        min_separation: rounds between two of one device, without sampling; None: half of what population and cohort
            allow if all take turns.
        band: of the matrix mechanism; None: 32 at most.
    """

    epsilon: float
    delta: float
    population: int
    rounds: int
    clip_norm: float = 1.0
    min_separation: int | None = None
    band: int | None = None


@dataclass(frozen=True)
class Option:
    """One way to keep a budget.

    Attributes:
        scheme: whose noise there is, and who takes part.
        config: with the noise that is needed, and the budget.
        epsilon: after all rounds.
        epsilon_first: after the first.
        round_noise: standard deviation of the noise in each coordinate of a round's mean, over the clip norm; with
            noise of devices of a full cohort.
        model_noise: the same of the sum of all rounds, which is what the model gets.
    """

    scheme: Scheme
    config: Gaussian | Matrix | DeviceNoise
    epsilon: float
    epsilon_first: float
    round_noise: float
    model_noise: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "mechanism": self.scheme.name,
            "sampling": self.scheme.sampling,
            "cohort": self.config.cohort,
            "noise_multiplier": self.config.counted_noise,
            "epsilon": self.epsilon,
            "epsilon_first_round": self.epsilon_first,
            "participations": self.config.participations(self.config.rounds or 0),
            "round_noise_std_over_clip_norm": self.round_noise,
            "model_noise_std_over_clip_norm": self.model_noise,
        }


def option(budget: Budget, scheme: Scheme, cohort: int) -> Option:
    """The configuration of a scheme that keeps the budget with as little noise as possible.

    Raises:
        ConfigError: numbers do not fit together, or no noise is enough.
        MissingDependencyError: dp-accounting is not installed.
    """
    kind = scheme.mechanism
    fields: dict[str, Any] = {
        "clip_norm": budget.clip_norm,
        kind.noise_field: 1.0,
        "population": budget.population,
        "cohort": cohort,
        "rounds": budget.rounds,
        "delta": budget.delta,
        "budget_epsilon": budget.epsilon,
        "participation": {"sampling": scheme.sampling},
    }
    if not scheme.participation.sampled:
        apart = min(budget.min_separation or max(1, budget.population // (2 * cohort)), budget.rounds)
        fields["participation"]["min_separation"] = apart
        if issubclass(kind, Matrix):
            fields["band"] = min(apart, budget.band or BAND)
    config = kind.checked(**fields)
    config = with_noise(config, required_noise(config, budget.epsilon))
    of_devices = config.device_noise_std
    return Option(
        scheme,
        config,
        Ledger.after(config, budget.rounds).epsilon(),
        Ledger.after(config, 1).epsilon(),
        math.hypot(config.noise_std(1.0), of_devices),
        math.hypot(float(prefix_noise(config, budget.rounds)[-1]), of_devices * math.sqrt(budget.rounds)),
    )


def options(
    budget: Budget,
    cohort: int,
    schemes: Sequence[Scheme] = COMPARED,
    factors: Sequence[int] = (1, 2, 4),
    *,
    known: Sequence[Option] = (),
    on_progress: Callable[[str, float | None], None] | None = None,
) -> list[Option]:
    """Ways to keep a budget side by side.

    Args:
        budget: that each of them keeps.
        cohort: devices in a round.
        schemes: to compare.
        factors: with cohorts of so many times the size, where there are so many devices.
        known: that need not be computed again.
        on_progress: ``(what, fraction done)``.
    """
    have = {(o.scheme, o.config.cohort): o for o in known}
    wanted = [(scheme, cohort * f) for scheme in schemes for f in factors if cohort * f <= budget.population]
    found = []
    for done, (scheme, size) in enumerate(wanted):
        if on_progress is not None:
            on_progress(f"noise for {scheme}", done / len(wanted))
        found.append(have.get((scheme, size)) or option(budget, scheme, size))
    return found


def epsilon_by_round(config: PrivacyConfig, rounds: int, points: int = 20) -> Iterator[tuple[int, float]]:
    """Epsilon after some of the rounds, the first and the last among them."""
    for count in np.unique(np.geomspace(1, rounds, min(points, rounds)).round().astype(int)):
        yield int(count), Ledger.after(config, int(count)).epsilon()


def noise_to_update(config: PrivacyConfig, width: int) -> float:
    """Norm of the noise in a round's mean over the clip norm, the largest norm that the mean itself can have.

    That of the aggregator, and that of a full cohort's devices where they add their own.

    Args:
        config: of the federation.
        width: values of an update, P.
    """
    return math.hypot(config.noise_std(1.0), config.device_noise_std) * math.sqrt(width)
