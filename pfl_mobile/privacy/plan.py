"""Planning a private federation: the noise that a budget needs, beside other ways to spend it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pfl_mobile.errors import UnknownNameError, near
from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.privacy.config import PrivacyConfig
from pfl_mobile.privacy.mechanisms import prefix_noise

#: How cohorts come about and what noise follows: ``none`` and ``matrix`` assume no sampling.
Kind = Literal["poisson", "fixed", "matrix", "none"]
KINDS: tuple[Kind, ...] = ("poisson", "fixed", "matrix", "none")
#: Rounds that correlated noise spans where nobody says: more helps little and needs more memory.
BAND = 32


@dataclass(frozen=True)
class Budget:
    """What is wanted.

    Attributes:
        epsilon, delta: after all rounds.
        population: devices in all.
        rounds: in all.
        clip_norm: of the configurations.
        min_separation: rounds between two of one device, for ``matrix`` and ``none``; None: half of what
            population and cohort allow if all take turns.
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
        kind: of sampling and noise.
        config: with the noise that is needed, and the budget.
        epsilon: after all rounds.
        epsilon_first: after the first.
        round_noise: standard deviation of the noise in each coordinate of a round's mean, over the clip norm.
        model_noise: the same of the sum of all rounds, which is what the model gets.
    """

    kind: Kind
    config: PrivacyConfig
    epsilon: float
    epsilon_first: float
    round_noise: float
    model_noise: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "sampling": self.kind,
            "cohort": self.config.cohort,
            "noise_multiplier": self.config.noise_multiplier,
            "epsilon": self.epsilon,
            "epsilon_first_round": self.epsilon_first,
            "participations": self.config.participations(self.config.rounds or 0),
            "round_noise_std_over_clip_norm": self.round_noise,
            "model_noise_std_over_clip_norm": self.model_noise,
        }


def known_kind(name: str) -> Kind:
    """The kind of that name (UnknownNameError: there is none)."""
    for kind in KINDS:
        if name == kind:
            return kind
    raise UnknownNameError(f"unknown sampling {name!r}", mend=near(name, KINDS))


def option(budget: Budget, kind: Kind, cohort: int) -> Option:
    """The configuration of a kind that keeps the budget with as little noise as possible.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: numbers do not fit together, or no noise is enough.
        MissingDependencyError: dp-accounting is not installed.
    """
    known_kind(kind)
    fields: dict[str, Any] = {
        "mechanism": "matrix" if kind == "matrix" else "gaussian",
        "sampling": kind if kind in ("poisson", "fixed") else "none",
        "clip_norm": budget.clip_norm,
        "noise_multiplier": 1.0,
        "population": budget.population,
        "cohort": cohort,
        "rounds": budget.rounds,
        "delta": budget.delta,
        "budget_epsilon": budget.epsilon,
    }
    if kind in ("matrix", "none"):
        apart = budget.min_separation or max(1, budget.population // (2 * cohort))
        fields["min_separation"] = min(apart, budget.rounds)
    if kind == "matrix":
        fields["band"] = min(fields["min_separation"], budget.band or BAND)
    config = PrivacyConfig.checked(fields)
    config = with_noise(config, required_noise(config, budget.epsilon))
    ledger = Ledger(config)
    ledger.record(budget.rounds)
    first = Ledger(config)
    first.record()
    noise = prefix_noise(config, budget.rounds)
    return Option(kind, config, ledger.epsilon(), first.epsilon(), config.noise_std(1.0), float(noise[-1]))


def options(
    budget: Budget,
    cohort: int,
    kinds: Sequence[Kind] = ("poisson", "fixed", "matrix"),
    factors: Sequence[int] = (1, 2, 4),
    *,
    known: Sequence[Option] = (),
    on_progress: Callable[[str, float | None], None] | None = None,
) -> list[Option]:
    """Ways to keep a budget side by side.

    Args:
        budget: that each of them keeps.
        cohort: devices in a round.
        kinds: to compare.
        factors: with cohorts of so many times the size, where there are so many devices.
        known: that need not be computed again.
        on_progress: ``(what, fraction done)``.
    """
    have = {(o.kind, o.config.cohort): o for o in known}
    wanted = [(kind, cohort * f) for kind in kinds for f in factors if cohort * f <= budget.population]
    found = []
    for done, (kind, size) in enumerate(wanted):
        if on_progress is not None:
            on_progress(f"noise for {kind} sampling", done / len(wanted))
        found.append(have.get((kind, size)) or option(budget, kind, size))
    return found


def epsilon_by_round(config: PrivacyConfig, rounds: int, points: int = 20) -> Iterator[tuple[int, float]]:
    """Epsilon after some of the rounds, the first and the last among them."""
    for count in np.unique(np.geomspace(1, rounds, min(points, rounds)).round().astype(int)):
        ledger = Ledger(config)
        ledger.record(int(count))
        yield int(count), ledger.epsilon()


def noise_to_update(config: PrivacyConfig, width: int) -> float:
    """Norm of the noise in a round's mean over the clip norm, the largest norm that the mean itself can have.

    That of the aggregator, and that of a full cohort's devices where they add their own.

    Args:
        config: of the federation.
        width: values of an update, P.
    """
    own = config.local_noise_multiplier * math.sqrt(config.cohort) / config.expected_weight
    return math.hypot(config.noise_std(1.0), own) * math.sqrt(width)
