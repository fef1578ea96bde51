"""Who may take part in a round: what a guarantee may rest on, and what it costs and says by that.

Each kind is a type. ``Poisson`` and ``Fixed`` draw each cohort in secret from the whole population, which makes a round
cost less ("amplification by sampling"). ``Unsampled`` assumes nothing about who takes part, and so limits how often a
device may.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import override

from pfl_mobile.fields import Frozen, Whole
from pfl_mobile.privacy.accounting_events import gaussian
from pfl_mobile.privacy.limits import rounded_up

if TYPE_CHECKING:
    from pfl_mobile.privacy.accounting_events import Event, Relation


class Unsampled(Frozen):
    """Nothing is assumed about who takes part; each participation of a device costs it.

    Attributes:
        min_separation: a device that takes part in round t may again in round t + min_separation.
        max_participations: in how many rounds a device may take part; None: in as many as the separation allows.
    """

    sampled: ClassVar[bool] = False
    relation: ClassVar[Relation] = "zero_out"

    sampling: Literal["none"] = "none"
    min_separation: Whole = 1
    max_participations: Whole | None = None

    def problem(self, population: int | None) -> str:
        """Why a federation of so many devices cannot have it; empty where it can."""
        return ""

    def rate(self, cohort: int, population: int) -> float:
        """Probability that a device is in a round; 1 where nothing is assumed."""
        return 1.0

    def event(self, noise_multiplier: float, cohort: int, population: int) -> Event:
        """What one participation of a device costs it, where the aggregator adds Gaussian noise."""
        return gaussian(noise_multiplier)

    def most(self, rounds: int) -> int:
        """The largest number of the first ``rounds`` rounds that one device can have taken part in."""
        possible = math.ceil(rounds / self.min_separation)
        return possible if self.max_participations is None else min(possible, self.max_participations)

    def assumptions(self, cohort: int, population: int, known: float | None) -> list[str]:
        """What is assumed about who takes part, as sentences."""
        limits = []
        if self.min_separation > 1:
            limits.append(f"rounds of one device are at least {self.min_separation} apart")
        if self.max_participations is not None:
            limits.append(f"a device takes part at most {self.max_participations} times")
        enforced = ["The aggregator enforces that " + " and ".join(limits) + "."] if limits else []
        return ["Nothing is assumed about how devices are chosen or when they are available.", *enforced]


class _Sampled(Frozen, ABC):
    """Each cohort is drawn in secret from the population, and any device can be in any round."""

    sampled: ClassVar[bool] = True
    min_separation: ClassVar[int] = 1
    max_participations: ClassVar[None] = None
    sampling: str

    def problem(self, population: int | None) -> str:
        """Why a federation of so many devices cannot have it; empty where it can."""
        if population is None:
            return (
                f"sampling {self.sampling!r} needs the population that cohorts are drawn from; set population, or "
                "sampling to 'none'"
            )
        return ""

    def rate(self, cohort: int, population: int) -> float:
        """Probability that a given device is in a round."""
        return cohort / population

    def most(self, rounds: int) -> int:
        """The largest number of the first ``rounds`` rounds that one device can have taken part in."""
        return rounds

    def assumptions(self, cohort: int, population: int, known: float | None) -> list[str]:
        """What is assumed about who takes part, as sentences.

        Args:
            cohort: devices in a round.
            population: devices in all.
            known: epsilon of one round to those who know that a device is in it; None is not said.
        """
        found = [self._draw(cohort, population)]
        if known is not None:
            found.append(
                "Sampling protects from those who do not know which rounds a device is in. Who watches its traffic "
                f"knows; to them one round costs epsilon {rounded_up(known):.4g} (epsilon_known_round), and all rounds "
                "epsilon_known if it is in every one."
            )
        return found

    @abstractmethod
    def _draw(self, cohort: int, population: int) -> str:
        """How a cohort is drawn, in a sentence."""


class Poisson(_Sampled):
    """Every device takes part in a round by a coin of its own with probability cohort / population."""

    relation: ClassVar[Relation] = "add_or_remove_one"

    sampling: Literal["poisson"] = "poisson"

    def event(self, noise_multiplier: float, cohort: int, population: int) -> Event:
        """What one round costs."""
        return {
            "class": "PoissonSampledDpEvent",
            "sampling_probability": self.rate(cohort, population),
            "event": gaussian(noise_multiplier),
        }

    @override
    def _draw(self, cohort: int, population: int) -> str:
        return (
            f"Every device of at least {population} is in a round by a coin of its own, with probability "
            f"{self.rate(cohort, population):.4g}, and who is in a round is kept secret."
        )


class Fixed(_Sampled):
    """A round has ``cohort`` devices, drawn uniformly from all ``population`` without replacement."""

    relation: ClassVar[Relation] = "replace_one"

    sampling: Literal["fixed"] = "fixed"

    def event(self, noise_multiplier: float, cohort: int, population: int) -> Event:
        """What one round costs; a device that is replaced by another moves a sum by 2 C."""
        return {
            "class": "SampledWithoutReplacementDpEvent",
            "source_dataset_size": population,
            "sample_size": cohort,
            "event": gaussian(noise_multiplier / 2),
        }

    @override
    def _draw(self, cohort: int, population: int) -> str:
        return (
            f"Every round has {cohort} devices drawn uniformly without replacement from {population} "
            "that could all have been drawn, and who is in a round is kept secret: devices that tell each other "
            "whether they were drawn count together how many others were, so they must be few of all."
        )


Participation = Annotated[Poisson | Fixed | Unsampled, Field(discriminator="sampling")]


def _no_sampling(value: Any) -> Any:
    sampling = value.get("sampling") if isinstance(value, dict) else getattr(value, "sampling", None)
    if isinstance(sampling, str) and sampling in SAMPLINGS and SAMPLINGS[sampling].sampled:
        raise ValueError(
            f"the mechanism is made no cheaper by {sampling} sampling, and uses none: set sampling to 'none'"
        )
    return value


#: Of mechanisms that sampling does not make cheaper.
OnlyUnsampled = Annotated[Unsampled, BeforeValidator(_no_sampling)]
#: Kinds by the name that files and options have for them.
SAMPLINGS: dict[str, type[Poisson | Fixed | Unsampled]] = {
    "poisson": Poisson,
    "fixed": Fixed,
    "none": Unsampled,
}
