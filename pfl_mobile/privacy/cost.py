"""What privacy costs in accuracy, in simulation.

A simulation has hundreds of users where a federation has a million, so it cannot have the federation's cohorts. What
decides how well a model trains is the noise in each round's mean, so the simulation is given just that noise: its
noise multiplier is the federation's times its own cohort over the federation's (as McMahan et al., "Learning
differentially private recurrent language models", 2018, extrapolate). Its own epsilon is therefore meaningless; the
one reported is the federation's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.privacy.config import PrivacyConfig


@dataclass(frozen=True)
class Cost:
    """What a model is worth under one configuration.

    Attributes:
        epsilon: of the federation after all its rounds; None without privacy.
        noise_multiplier: of the federation; 0 without privacy.
        accuracy: whatever was measured.
    """

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
        run: trains with a configuration and returns what the model is worth, higher is better.
        on_progress: ``(what, fraction done)``.
    """
    found = []
    for done, config in enumerate(configs):
        epsilon = None
        if config is not None:
            ledger = Ledger(config)
            ledger.record(config.rounds or 0)
            epsilon = ledger.epsilon()
        if on_progress is not None:
            name = "without privacy" if epsilon is None else f"at epsilon {epsilon:.3g}"
            on_progress(f"simulate {name}", done / len(configs))
        noise = 0.0 if config is None else config.noise_multiplier
        found.append(Cost(epsilon, noise, run(config)))
    return found


def simulated(config: PrivacyConfig, cohort: int) -> PrivacyConfig:
    """The configuration for a simulation with smaller cohorts, with the same noise in each round's mean.

    Args:
        config: of the federation.
        cohort: devices in a round of the simulation.
    """
    return PrivacyConfig.checked(
        config.model_dump()
        | {
            "noise_multiplier": config.noise_multiplier * cohort / config.cohort,
            "adaptive": None,
            "sampling": "none",
            "population": None,
            "cohort": cohort,
            "denominator": None,
            "max_participations": None,
            "budget_epsilon": None,
        }
    )
