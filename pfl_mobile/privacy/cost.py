"""What privacy costs in accuracy, in simulation.

A simulation has hundreds of users where a federation has a million, so it cannot have the federation's cohorts. What
decides how well a model trains is the noise in each round's mean, so the simulation is given just that noise: its
noise multiplier is the federation's times its own cohort over the federation's (as McMahan et al., "Learning
differentially private recurrent language models", 2018, extrapolate). Its own epsilon is therefore meaningless; the
one reported is the federation's. Correlated noise needs more separation than few users allow: it is simulated by
independent noise that adds up to the same in the model after all planned rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.privacy.config import PrivacyConfig
from pfl_mobile.privacy.gaussian import Gaussian
from pfl_mobile.privacy.matrix import prefix_noise
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.participation import Unsampled


@dataclass(frozen=True)
class Cost:
    """What a model is worth under one configuration.

    Attributes:
        label: ``private``; ``without noise``: clipped and weighted as the private ones; ``without privacy``: neither,
            with the study's own weights.
        epsilon: of the federation after all its rounds; None where nothing is guaranteed.
        noise_multiplier: of the federation; 0 without noise.
        accuracy: whatever was measured.
    """

    label: str
    epsilon: float | None
    noise_multiplier: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def accuracy_cost(
    configs: Sequence[PrivacyConfig | None],
    run: Callable[[PrivacyConfig | None], float],
    *,
    on_progress: Callable[[str, float | None], None] | None = None,
) -> list[Cost]:
    """Measure each configuration.

    Args:
        configs: of the federation, with their planned rounds; None for no privacy.
        run: trains with a configuration and returns what the model is worth.
        on_progress: ``(what, fraction done)``.
    """
    found = []
    for done, config in enumerate(configs):
        label, epsilon, noise = "without privacy", None, 0.0
        if config is not None:
            ledger = Ledger(config)
            ledger.record(config.rounds or 0)
            epsilon, noise = ledger.epsilon(), config.counted_noise
            label = "private" if math.isfinite(epsilon) else "without noise"
            epsilon = epsilon if math.isfinite(epsilon) else None
        if on_progress is not None:
            what = label if epsilon is None else f"at epsilon {epsilon:.3g}"
            on_progress(f"simulate {what}", done / len(configs))
        found.append(Cost(label, epsilon, noise, run(config)))
    return found


def without_noise(config: PrivacyConfig) -> NoNoise:
    """The same rounds, clipped and weighted alike, without noise: what the noise alone costs is measured from it."""
    return NoNoise.like(config).replaced(population=None, participation=Unsampled())


def simulated(config: PrivacyConfig, cohort: int, scale: float = 1.0) -> PrivacyConfig:
    """The configuration for a simulation with smaller cohorts, with the same noise in each round's mean.

    Args:
        config: of the federation, with its planned rounds.
        cohort: devices in a round of the simulation.
        scale: of the noise; sqrt(P / p) where a model of p values stands for one of P, so that the norm of the noise
            is the same in clip norms.
    """
    if isinstance(config, NoNoise):
        return without_noise(config).replaced(cohort=cohort, denominator=None)
    rounds = config.rounds or 1
    # per round, as independent noise that adds up to the same after all rounds
    std = math.hypot(float(prefix_noise(config, rounds)[-1]) / math.sqrt(rounds), config.device_noise_std)
    return Gaussian(
        clip_norm=config.clip_norm,
        noise_multiplier=std * cohort * scale,
        cohort=cohort,
        delta=config.delta,
        example_cap=config.example_cap,
    )
