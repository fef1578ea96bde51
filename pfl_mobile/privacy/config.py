"""What protects a federation's users: one frozen value that the server runs by and that devices are told.

The unit of privacy is a device: everything that one device ever sends. ``statement`` says in words what is
guaranteed, to whom, and on which assumptions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfl_mobile.bundle.manifest import describe
from pfl_mobile.errors import ConfigError
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.reading import decoded, parse_json, read_bytes
from pfl_mobile.privacy.limits import LEAST_CLIP_NORM, MOST_CLIP_NORM, delta_problem

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClipNorm = Annotated[float, Field(ge=LEAST_CLIP_NORM, le=MOST_CLIP_NORM)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Whole = Annotated[int, Field(ge=1)]


def _in_range(value: float) -> float:
    if value and not 1e-100 <= value <= 1e100:
        raise ValueError("noise is 0, or between 1e-100 and 1e100")
    return value


#: Squares of others, or their inverses, are no float64.
NoiseMultiplier = Annotated[NotNegative, AfterValidator(_in_range)]

#: The largest weight of a device, so that the sensitivity of the weighted sum is the clip norm.
MAX_WEIGHT = 1.0
#: Where the clip norm adapts, devices clip to so many times it.
HEADROOM = 4.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdaptiveClipping(_Frozen):
    """A clip norm that follows a quantile of the norms (Andrew, Thakkar, McMahan, Ramaswamy, NeurIPS 2021).

    After each round C <- C exp(-rate (b - quantile)), where b is the noisy share of updates with a norm of at most
    C. The count costs privacy: the noise of the updates grows so that both together cost what the noise
    multiplier of the configuration says.

    Attributes:
        quantile: share of the updates that shall stay unclipped.
        rate: how fast C moves, eta_C of the paper.
        noise_multiplier: standard deviation of the noise on the count, sigma_b of the paper; a twentieth of the
            cohort is a good start.
    """

    quantile: Inside = 0.5
    rate: Positive = 0.2
    noise_multiplier: Positive


class PrivacyConfig(_Frozen):
    """User-level differential privacy of federated rounds.

    Attributes:
        version: of this format.
        mechanism: ``gaussian``: independent noise on each round's sum. ``matrix``: noise correlated over the
            rounds, so that it largely cancels in the sum of the rounds; needs no sampling (DP-FTRL).
            ``local``: each device adds noise itself, and the aggregator need not be trusted. ``none``: no noise.
        clip_norm: C, the largest L2 norm of an update, over all its tensors together; the first one where
            clipping is adaptive.
        noise_multiplier: z, the standard deviation of the noise on a round's sum over its sensitivity, which is C
            times the largest weight, 1.
        adaptive: how the clip norm adapts; None: it is fixed.
        sampling: ``poisson``: every device takes part in a round by a coin of its own with probability
            cohort / population. ``fixed``: a round has ``cohort`` devices, drawn uniformly from all ``population``
            without replacement. ``none``: nothing is assumed about who takes part.
        population: number of devices that a cohort is drawn from.
        cohort: devices in a round; expected devices with Poisson sampling.
        rounds: planned; None for no end.
        min_separation: a device that takes part in round t may again in round t + min_separation.
        band: rounds over which the matrix mechanism's noise is correlated, at most min_separation; None: just that.
            The aggregator keeps band - 1 vectors of noise.
        max_participations: in how many rounds a device may take part; None: in as many as the rest allows.
        delta: probability with which the guarantee may fail; at most 1e-3 and a tenth of 1 / population, or of
            1 / cohort where the population is not given (``limits.py``).
        budget_epsilon: training stops before a round that would exceed it; None: it does not stop.
        example_cap: a device with n examples has the weight min(n / example_cap, 1); None: all weigh 1. Where the
            aggregator adds no noise, None takes the numbers as devices name them, or 1 under a robust rule.
        denominator: what the weighted sum is divided by, fixed in advance: the expected total weight of a round;
            None: ``cohort``.
        local_noise_multiplier: standard deviation of the noise that a device adds to its clipped update, over C.
    """

    version: Literal[1] = 1
    mechanism: Literal["gaussian", "matrix", "local", "none"] = "gaussian"
    clip_norm: ClipNorm
    noise_multiplier: NoiseMultiplier = 0.0
    adaptive: AdaptiveClipping | None = None
    sampling: Literal["poisson", "fixed", "none"] = "none"
    population: Whole | None = None
    cohort: Whole
    rounds: Whole | None = None
    min_separation: Whole = 1
    band: Whole | None = None
    max_participations: Whole | None = None
    delta: Inside = 1e-6
    budget_epsilon: Positive | None = None
    example_cap: Whole | None = None
    denominator: Positive | None = None
    local_noise_multiplier: NoiseMultiplier = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for problem in (
            self._noise_problem(),
            self._band_problem(),
            self._sampling_problem(),
            self._delta_problem(),
            self._adaptive_problem(),
        ):
            if problem:
                raise ValueError(problem)
        return self

    def _noise_problem(self) -> str:
        central, local = self.noise_multiplier > 0, self.local_noise_multiplier > 0
        if self.mechanism in ("gaussian", "matrix") and not central:
            return f"the mechanism {self.mechanism!r} needs a noise_multiplier above 0 (`pfl privacy plan`)"
        if self.mechanism == "local" and (central or not local):
            return "the mechanism 'local' needs local_noise_multiplier above 0 and noise_multiplier 0"
        if self.mechanism == "none" and (central or local):
            return "the mechanism 'none' adds no noise: set both noise multipliers to 0"
        if local and self.sampling == "poisson":
            return (
                "with Poisson sampling it is hidden who takes part, but noise that devices add themselves would "
                "show it; set local_noise_multiplier to 0, or sampling to 'fixed' or 'none'"
            )
        if self.mechanism == "none" and self.budget_epsilon is not None:
            return "the mechanism 'none' guarantees nothing, so budget_epsilon cannot be kept; remove it"
        return ""

    def _band_problem(self) -> str:
        if self.band is None:
            return ""
        if self.mechanism != "matrix":
            return f"the mechanism {self.mechanism!r} has independent noise; remove band"
        if self.band > self.min_separation:
            return (
                f"the band of {self.band} rounds is wider than min_separation {self.min_separation}: noise would be "
                "correlated between two participations of a device"
            )
        return ""

    def _sampling_problem(self) -> str:
        if self.population is not None and self.cohort > self.population:
            return f"the cohort of {self.cohort} is larger than the population of {self.population}"
        if self.sampling == "none":
            return ""
        if self.mechanism in ("matrix", "local"):
            return f"the mechanism {self.mechanism!r} uses no sampling: set sampling to 'none'"
        if self.population is None:
            return f"sampling {self.sampling!r} needs the population that cohorts are drawn from"
        if self.min_separation > 1 or self.max_participations is not None:
            return (
                f"with sampling {self.sampling!r} any device can be drawn in any round, so min_separation and "
                "max_participations cannot hold; remove them, or set sampling to 'none'"
            )
        return ""

    def _delta_problem(self) -> str:
        if self.mechanism == "none":
            return ""
        return delta_problem(self.delta, self.cohort if self.population is None else self.population)

    def _adaptive_problem(self) -> str:
        if self.adaptive is None:
            return ""
        if self.mechanism != "gaussian":
            return (
                f"the mechanism {self.mechanism!r} needs one clip norm for all rounds, "
                "so clipping cannot be adaptive"
            )
        if self.local_noise_multiplier:
            return "devices cannot add noise relative to a clip norm that they learn from their norms"
        if not self.noise_multiplier < 2 * self.adaptive.noise_multiplier:
            return (
                f"the count's noise {self.adaptive.noise_multiplier:g} must be above half the noise_multiplier "
                f"{self.noise_multiplier:g}, or the count alone costs more than both may"
            )
        return ""

    @property
    def guarantees(self) -> bool:
        """Whether there is any noise, so that something is promised."""
        return self.mechanism != "none"

    @property
    def rests_on_sampling(self) -> bool:
        """Whether the guarantee rests on a secret draw of each cohort."""
        return self.guarantees and self.sampling != "none"

    @property
    def chooses_cohorts(self) -> bool:
        """Whether it says who may be in a cohort."""
        return self.sampling != "none" or self.min_separation > 1

    @property
    def sampling_rate(self) -> float:
        """Probability that a given device is in a round: cohort / population; 1 where no sampling is assumed."""
        if self.sampling == "none" or self.population is None:
            return 1.0
        return self.cohort / self.population

    @property
    def expected_weight(self) -> float:
        """What sums are divided by."""
        return float(self.cohort) if self.denominator is None else self.denominator

    @property
    def update_noise_multiplier(self) -> float:
        """z of the noise on the updates alone: above ``noise_multiplier`` where a count is released too.

        (z^-2 - (2 sigma_b)^-2)^(-1/2), as the count of half-bits has the sensitivity 1/2 (Andrew et al., Theorem 1).
        """
        z = self.noise_multiplier
        if self.adaptive is None:
            return z
        return 1 / math.sqrt(z**-2 - (2 * self.adaptive.noise_multiplier) ** -2)

    @property
    def noise_band(self) -> int:
        """Rounds over which the noise is correlated; 1 where it is independent."""
        if self.mechanism != "matrix":
            return 1
        return self.min_separation if self.band is None else self.band

    def sensitivity(self, clip_norm: float | None = None) -> float:
        """How far one device can move the weighted sum of a round: C times the largest weight."""
        return (self.clip_norm if clip_norm is None else clip_norm) * MAX_WEIGHT

    def noise_std(self, clip_norm: float | None = None) -> float:
        """Standard deviation of the noise in each coordinate of a round's mean, before any correlation."""
        return self.update_noise_multiplier * self.sensitivity(clip_norm) / self.expected_weight

    def weights(self, examples: np.ndarray) -> np.ndarray:
        """Weight of each device, float64 [n] in 0..1.

        Args:
            examples: how many each has trained on, [n].
        """
        count = np.asarray(examples, np.float64)
        if self.example_cap is None:
            return np.full(count.shape, MAX_WEIGHT)
        return np.clip(count / self.example_cap, 0.0, MAX_WEIGHT)

    def participations(self, rounds: int) -> int:
        """The largest number of the first ``rounds`` rounds that one device can have taken part in."""
        possible = math.ceil(rounds / self.min_separation)
        return possible if self.max_participations is None else min(possible, self.max_participations)

    def device_clip_norm(self, clip_norm: float | None = None) -> float:
        """What a device clips its update to before it sends it.

        Where clipping is adaptive it is ``HEADROOM`` times C: the aggregator must see which norms are above C, and
        clips to C itself.

        Args:
            clip_norm: C of the round; by default the configuration's.
        """
        bound = self.clip_norm if clip_norm is None else clip_norm
        return HEADROOM * bound if self.adaptive else bound

    def accepted_norm(self, width: int, clip_norm: float | None = None) -> float:
        """What the aggregator clips updates to: C, or with the devices' own noise what an honest update stays below.

        Such an update is C long at most before its noise, whose norm is z C sqrt(P) and hardly ever 8 z C more.

        Args:
            width: values of an update, P.
            clip_norm: C of the round; by default the configuration's.
        """
        bound = self.clip_norm if clip_norm is None else clip_norm
        return (
            bound * (1 + self.local_noise_multiplier * (math.sqrt(width) + 8))
            if self.local_noise_multiplier
            else bound
        )

    def statement(self, rounds_done: int) -> dict[str, Any]:
        """What is guaranteed after so many rounds, as JSON values; see ``Ledger.statement``.

        Raises:
            MissingDependencyError: the package ``dp-accounting`` is not installed.
        """
        from pfl_mobile.privacy.accounting import Ledger

        ledger = Ledger(self)
        ledger.record(rounds_done)
        return ledger.statement()

    @classmethod
    def from_json(cls, text: str | bytes, what: str = "the privacy configuration") -> PrivacyConfig:
        """Read what ``to_json`` wrote.

        Args:
            text: JSON.
            what: named in errors.

        Raises:
            ConfigError: it is not JSON, a field is unknown or out of range, or fields do not fit together.
        """
        try:
            parse_json(text)  # bounds the work, and refuses what parsers read in different ways
            return cls.model_validate_json(decoded(text) if isinstance(text, bytes) else text)
        except ValidationError as error:
            raise _invalid(error, what) from error
        except ValueError as error:
            raise ConfigError(
                f"{what} is not valid JSON: {error}", mend="make it anew with `pfl privacy plan`"
            ) from error

    @classmethod
    def checked(cls, fields: Mapping[str, Any], what: str = "the privacy configuration") -> PrivacyConfig:
        """As the constructor, but what is wrong raises ConfigError."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _invalid(error, what) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrivacyConfig:
        """Read a file such as ``privacy.json``.

        Raises:
            ConfigError: there is no such file, or it is invalid.
        """
        try:
            text = read_bytes(path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror or error}",
                mend="give the path of a privacy.json; `pfl privacy plan --out DIR` writes one",
            ) from error
        return cls.from_json(text, str(path))

    def to_json(self) -> str:
        """JSON with every field, defaults too, so that no reader needs to know them."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write a file that ``load`` reads.

        Raises:
            StorageFullError, UnwritableError: the file cannot be written.
        """
        atomic_write(path, self.to_json().encode())


def _invalid(error: ValidationError, what: str) -> ConfigError:
    return ConfigError(
        describe(error, what), mend="mend the fields named, or make it anew with `pfl privacy plan`"
    )
