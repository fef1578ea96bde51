"""What all privacy mechanisms have in common.

A mechanism is a type: it owns its fields, what they may be, what a round costs, what it guarantees in words, and where
its noise comes from. A new one is a subclass in a file of its own and a member of ``config.PrivacyConfig``.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator
from typing_extensions import override

from pfl_mobile.bundle.manifest import describe
from pfl_mobile.errors import ConfigError
from pfl_mobile.fields import Frozen, NotNegative, Positive, Whole
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.privacy.limits import LEAST_CLIP_NORM, MOST_CLIP_NORM, delta_problem
from pfl_mobile.privacy.participation import Participation, Unsampled

if TYPE_CHECKING:
    import os

    from pfl_mobile.privacy.accounting_events import Event, Relation
    from pfl_mobile.privacy.noise import Noise

ClipNorm = Annotated[float, Field(ge=LEAST_CLIP_NORM, le=MOST_CLIP_NORM)]
Inside = Annotated[float, Field(gt=0, lt=1)]


def _in_range(value: float) -> float:
    if value and not 1e-100 <= value <= 1e100:
        raise ValueError("noise is 0, or between 1e-100 and 1e100")
    return value


#: Squares of others, or their inverses, are no float64.
NoiseMultiplier = Annotated[NotNegative, AfterValidator(_in_range)]

#: The largest weight of a device, so that the sensitivity of the weighted sum is the clip norm.
MAX_WEIGHT = 1.0

_ALIKE: dict[str, str] = {
    "add_or_remove_one": "add-or-remove-one: a device takes part in the federation or is not there at all",
    "replace_one": "replace-one: a device has its own data or any other; the number of devices is public",
    "zero_out": "zero-out: a device's updates are its own or zeros; all other devices are unchanged",
}


class RoundNoise(Protocol):
    """Noise for the sum of one round after another."""

    def noise(self, size: int, sensitivity: float) -> np.ndarray:
        """Noise of the next round, float64 [size].

        Args:
            size: number of values, P.
            sensitivity: clip norm times the largest weight.
        """

    def state(self) -> dict[str, np.ndarray]:
        """What the next rounds depend on; save it together with the model that this round made."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a saved state."""


class Mechanism(Frozen, ABC):
    """User-level privacy of federated rounds; the unit is a device: everything that one device ever sends.

    Attributes:
        version: of the JSON.
        mechanism: name of the type.
        clip_norm: C, the largest L2 norm of an update, over all its tensors together; the first one where
            clipping is adaptive.
        cohort: devices in a round; expected devices with Poisson sampling.
        population: number of devices that a cohort is drawn from; None where nobody says.
        rounds: planned; None for no end.
        participation: who may take part in a round.
        example_cap: a device with n examples has the weight min(n / example_cap, 1); None: all weigh 1. Where the
            aggregator adds no noise, None takes the numbers as devices name them, or 1 under a robust rule.
        denominator: what the weighted sum is divided by, fixed in advance: the expected total weight of a round;
            None: ``cohort``.
    """

    #: The field with the noise that the guarantee rests on; empty where there is none.
    noise_field: ClassVar[str] = ""

    version: Literal[2] = 2
    mechanism: str
    clip_norm: ClipNorm
    cohort: Whole
    population: Whole | None = None
    rounds: Whole | None = None
    participation: Participation = Unsampled()
    example_cap: Whole | None = None
    denominator: Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for problem in self._problems():
            if problem:
                raise ValueError(problem)
        return self

    def _problems(self) -> list[str]:
        """What does not fit together, as sentences that name the field and the way out; empty ones are none."""
        size = ""
        if self.population is not None and self.cohort > self.population:
            size = (
                f"the cohort of {self.cohort} is larger than the population of {self.population}; lower cohort, or "
                "raise population"
            )
        return [size, self.participation.problem(self.population)]

    # -- who takes part

    @property
    def devices(self) -> int:
        """Devices that there are at least: the population, or where nobody says, a cohort."""
        return self.cohort if self.population is None else self.population

    @property
    def sampling(self) -> str:
        """Name of how cohorts are drawn, to show and to tell."""
        return self.participation.sampling

    @property
    def chooses_cohorts(self) -> bool:
        """Whether it says who may be in a cohort."""
        return self.participation.sampled or self.min_separation > 1

    @property
    def rests_on_sampling(self) -> bool:
        """Whether the guarantee rests on a secret draw of each cohort."""
        return self.participation.sampled

    @property
    def sampling_rate(self) -> float:
        """Probability that a given device is in a round: cohort / population; 1 where no sampling is assumed."""
        return self.participation.rate(self.cohort, self.devices)

    @property
    def min_separation(self) -> int:
        """Rounds from one participation of a device to its next."""
        return self.participation.min_separation

    @property
    def max_participations(self) -> int | None:
        """In how many rounds a device may take part; None: as many as the separation allows."""
        return self.participation.max_participations

    def participations(self, rounds: int) -> int:
        """The largest number of the first ``rounds`` rounds that one device can have taken part in."""
        return self.participation.most(rounds)

    def exposed(self, rounds: int) -> int:
        """How many of so many recorded rounds the most exposed device pays for."""
        return self.participations(rounds)

    # -- what it costs

    @property
    @abstractmethod
    def guarantees(self) -> bool:
        """Whether there is any noise, so that something is promised."""

    @property
    @abstractmethod
    def trusts_aggregator(self) -> bool:
        """False where devices protect their updates themselves, so that what was sent counts though never merged."""

    @property
    @abstractmethod
    def relation(self) -> Relation:
        """Which two federations the guarantee says look alike.

        ``add_or_remove_one``: one device more or less (Poisson sampling). ``replace_one``: one device has other data,
        and the number of devices is public (fixed cohorts, local noise). ``zero_out``: the updates of one device are
        zeros, and all others are as they were (no sampling); with an adaptive clip norm it is not counted either.
        """

    @abstractmethod
    def round_event(self) -> Event:
        """What one round costs. Without sampling: what one participation of a device costs it."""

    @property
    def correlation(self) -> tuple[int, int] | None:
        """Separation and band of noise that is correlated over the rounds; None where rounds are independent."""
        return None

    def adds_up_with(self, other: Mechanism) -> bool:
        """Whether rounds of both are rounds of one guarantee."""
        return self.relation == other.relation and self.correlation == other.correlation

    # -- noise

    @property
    @abstractmethod
    def counted_noise(self) -> float:
        """Noise multiplier that the guarantee rests on."""

    @property
    def update_noise_multiplier(self) -> float:
        """z of the noise that the aggregator adds to the sum of updates."""
        return 0.0

    @property
    def central(self) -> bool:
        """Whether the aggregator adds noise."""
        return self.update_noise_multiplier > 0

    @property
    def noise_band(self) -> int:
        """Rounds over which the noise is correlated; 1 where it is independent."""
        return 1

    @abstractmethod
    def round_noise(self, source: Noise) -> RoundNoise:
        """The noise that the aggregator adds, at its beginning.

        Args:
            source: of standard Gaussian values; ``SecureNoise()`` for real devices.
        """

    def sensitivity(self, clip_norm: float | None = None) -> float:
        """How far one device can move the weighted sum of a round: C times the largest weight."""
        return (self.clip_norm if clip_norm is None else clip_norm) * MAX_WEIGHT

    def noise_std(self, clip_norm: float | None = None) -> float:
        """Standard deviation of the noise in each coordinate of a round's mean, before any correlation."""
        return self.update_noise_multiplier * self.sensitivity(clip_norm) / self.expected_weight

    @property
    def device_noise_std(self) -> float:
        """Standard deviation of what a full cohort's own noise adds to each coordinate of a round's mean, over C."""
        return 0.0

    # -- clipping and weights

    @property
    def expected_weight(self) -> float:
        """What sums are divided by."""
        return float(self.cohort) if self.denominator is None else self.denominator

    def weights(self, examples: np.ndarray) -> np.ndarray:
        """Weight of each device, float64 [n] in 0..1.

        Args:
            examples: how many each has trained on, [n].
        """
        count = np.asarray(examples, np.float64)
        if self.example_cap is None:
            return np.full(count.shape, MAX_WEIGHT)
        return np.clip(count / self.example_cap, 0.0, MAX_WEIGHT)

    def device_clip_norm(self, clip_norm: float | None = None) -> float:
        """What a device clips its update to before it sends it.

        Args:
            clip_norm: C of the round; by default the configuration's.
        """
        return self.clip_norm if clip_norm is None else clip_norm

    def accepted_norm(self, width: int, clip_norm: float | None = None) -> float:
        """What the aggregator clips updates to.

        Args:
            width: values of an update, P.
            clip_norm: C of the round; by default the configuration's.
        """
        return self.clip_norm if clip_norm is None else clip_norm

    # -- in words

    @property
    @abstractmethod
    def title(self) -> str:
        """The mechanism in a few words."""

    @property
    def alike(self) -> str | None:
        """The relation in words; None where nothing is guaranteed."""
        return _ALIKE[self.relation]

    @abstractmethod
    def assumptions(self, known: float | None) -> list[str]:
        """What the guarantee assumes, as sentences.

        Args:
            known: epsilon of one round to those who know that a device is in it; None without sampling.
        """

    # -- JSON, and others like it

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """As the constructor, but what is wrong raises ConfigError."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, "the privacy configuration") from error

    def replaced(self, **changes: Any) -> Self:
        """The same with some fields changed.

        Raises:
            ConfigError: they do not fit together.
        """
        return self.checked(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def fixed_clipping(self) -> Self:
        """The same with one clip norm for all rounds."""
        return self

    def to_json(self) -> str:
        """JSON with every field, defaults too, so that no reader needs to know them."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write a file that ``load_privacy`` reads.

        Raises:
            StorageFullError, UnwritableError: the file cannot be written.
        """
        atomic_write(path, self.to_json().encode())


class Noisy(Mechanism):
    """What mechanisms with noise have in common.

    Attributes:
        delta: probability with which the guarantee may fail; at most 1e-3 and a tenth of 1 / population, or of
            1 / cohort where the population is not given (``limits.py``).
        budget_epsilon: training stops before a round that would exceed it; None: it does not stop.
        local_noise_multiplier: standard deviation of the noise that a device adds to its clipped update, over C.
    """

    delta: Inside = 1e-6
    budget_epsilon: Positive | None = None
    local_noise_multiplier: NoiseMultiplier = 0.0

    @override
    def _problems(self) -> list[str]:
        return [*super()._problems(), delta_problem(self.delta, self.devices)]

    @property
    @override
    def guarantees(self) -> bool:
        return True

    @property
    @override
    def device_noise_std(self) -> float:
        return self.local_noise_multiplier * math.sqrt(self.cohort) / self.expected_weight

    @override
    def accepted_norm(self, width: int, clip_norm: float | None = None) -> float:
        """What the aggregator clips updates to: C, or with the devices' own noise what an honest update stays below.

        Such an update is C long at most before its noise, whose norm is z C sqrt(P) and hardly ever 8 z C more.
        """
        bound = super().accepted_norm(width, clip_norm)
        if not self.local_noise_multiplier:
            return bound
        return bound * (1 + self.local_noise_multiplier * (math.sqrt(width) + 8))


class Central(Noisy):
    """What mechanisms have in common whose noise the aggregator adds.

    Attributes:
        noise_multiplier: z, the standard deviation of the noise on a round's sum over its sensitivity, which is C
            times the largest weight, 1.
    """

    noise_field: ClassVar[str] = "noise_multiplier"

    noise_multiplier: NoiseMultiplier

    @override
    def _problems(self) -> list[str]:
        needed = ""
        if self.noise_multiplier == 0:
            needed = (
                f"the mechanism {self.mechanism!r} needs a noise_multiplier above 0 (`pfl privacy plan`); without any "
                "noise, say so: mechanism 'none'"
            )
        return [needed, *super()._problems()]

    @property
    @override
    def trusts_aggregator(self) -> bool:
        return True

    @property
    @override
    def relation(self) -> Relation:
        return self.participation.relation

    @override
    def round_event(self) -> Event:
        return self.participation.event(self.noise_multiplier, self.cohort, self.devices)

    @property
    @override
    def counted_noise(self) -> float:
        return self.noise_multiplier

    @property
    @override
    def update_noise_multiplier(self) -> float:
        return self.noise_multiplier

    @override
    def assumptions(self, known: float | None) -> list[str]:
        found = [
            "The aggregator is trusted to clip, to add the noise, and to show nobody the updates it receives; the "
            "guarantee is against everybody who sees the models.",
            *self.participation.assumptions(self.cohort, self.devices, known),
            "Sums are divided by a number fixed in advance, and a device's weight is at most 1, so one device moves a "
            "sum by at most the clip norm.",
            "The noise is secret and unpredictable, and every release is drawn anew.",
        ]
        if self.local_noise_multiplier:
            found.append(
                "The devices' own noise is not counted here; local_epsilon is what it alone guarantees against the "
                "aggregator for the merged rounds. Updates sent in rounds that were not merged come on top of that."
            )
        return found


def invalid(error: ValidationError, what: str) -> ConfigError:
    """What pydantic refused, with the way out."""
    return ConfigError(
        describe(error, what), mend="mend the fields named, or make it anew with `pfl privacy plan`"
    )
