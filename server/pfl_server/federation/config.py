"""What a federation is: strategy, rounds, privacy. One JSON file, ``federation.json``, which ``pfl serve`` takes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pfl_mobile.bundle.manifest import StrategyEntry
from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.bundle_plan import BUNDLE
from pfl_mobile.federation.round import Bounds
from pfl_mobile.fields import Frozen, Positive
from pfl_mobile.files.reading import parse_json
from pfl_mobile.privacy import PrivacyField

Name = Annotated[str, Field(min_length=1, max_length=100)]


class StrategyConfig(StrategyEntry):
    """A strategy by name (``pfl strategies``), with its hyper-parameters, fairness and local training.

    ``bundle`` is the strategy that the bundle names, or where it names none its plan, merged by federated averaging.
    Nothing but a fairness goes with it, as the bundle says the rest.
    """

    name: Name = BUNDLE


class RuleConfig(Frozen):
    """How the mean of a round is taken (``pfl_mobile.merge.robust``)."""

    name: Name = "average"
    parameters: dict[str, Any] = Field(default_factory=dict)


class RoundsConfig(Frozen):
    """When a round begins and ends.

    Attributes:
        mode: ``synchronous``, or ``buffered``: asynchronous, merged whenever ``cohort`` updates are there
            (FedBuff, Nguyen et al. 2022).
        total: rounds after which training is finished; None for no end.
        cohort: updates that close a round.
        minimum: updates that a round needs at its deadline, else it is abandoned, also earlier where devices declined
            or failed and too few are left; with Poisson sampling so small that being abandoned shows nobody
            (``minimum.py``).
        over_selection: devices assigned for each update that is wanted.
        deadline_s: seconds after which a round closes; a buffered one has none.
        task_s: seconds after which a device's task is over; None: the deadline.
        max_staleness: buffered: versions that an update may lie behind.
        staleness_exponent: buffered: weight (1 + staleness) ** -exponent.
        min_separation: rounds between two tasks of one device; at least what the privacy mechanism needs.
        min_examples: training examples that a device must have.
        max_examples: examples that a device counts for at most, however many it names; ``privacy.example_cap`` instead
            where it is set, and 1 with a robust rule or with noise of the aggregator.
        max_part: how many equal shares of a mean, of all devices or of a group, one device may have; never more than
            half of it where there are two or more. With noise of the aggregator each has at most one.
        needs: facts that must be true of a device that is to train.
        pause_s: seconds between two rounds.
        retry_s: seconds after which a device that gets no task is told to ask again, give or take a fifth; no
            round is abandoned sooner, unless its deadline is.
    """

    mode: Literal["synchronous", "buffered"] = "synchronous"
    total: Annotated[int, Field(ge=1)] | None = 100
    cohort: Annotated[int, Field(ge=1)] = 50
    minimum: Annotated[int, Field(ge=1)] = 20
    over_selection: Annotated[float, Field(ge=1, le=10)] = 1.3
    deadline_s: Positive = 600.0
    task_s: Positive | None = None
    max_staleness: Annotated[int, Field(ge=0)] = 10
    staleness_exponent: Annotated[float, Field(ge=0, le=10)] = 0.5
    min_separation: Annotated[int, Field(ge=1)] = 1
    min_examples: Annotated[int, Field(ge=1)] = 1
    max_examples: Annotated[int, Field(ge=1)] = Bounds.examples
    max_part: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Bounds.part
    needs: tuple[Literal["idle", "charging", "unmetered"], ...] = ("idle", "charging", "unmetered")
    pause_s: Annotated[float, Field(ge=0)] = 0.0
    retry_s: Positive = 60.0

    @model_validator(mode="after")
    def _possible(self) -> RoundsConfig:
        if self.minimum > self.cohort:
            raise ValueError(f"minimum is {self.minimum}, more than the cohort of {self.cohort}")
        return self


class EvaluationConfig(Frozen):
    """Reports of quality, as sums over devices.

    Attributes:
        enabled: whether devices are asked for them.
        min_devices: figures over fewer devices are not shown.
        max_weight: labels that one device counts for at most, so that no single one decides a mean.
        max_mean: largest absolute mean of a metric that is no share, such as the loss; others are refused.
    """

    enabled: bool = True
    min_devices: Annotated[int, Field(ge=1)] = 3
    max_weight: Positive = 1000.0
    max_mean: Positive = 1e4


class FederationConfig(Frozen):
    """Everything that decides what a federation computes; kept in the database from its first start on.

    Attributes:
        groups: names that devices may give as theirs; empty: there are none.
        max_norm: updates with a larger L2 norm are refused, as no device can have trained so far; None: 1e6.
        versions_kept: model versions whose tensors stay for roll-back.
        open_sampling: whether privacy may rest on a draw from devices that nobody vouches for: False draws from those
            that enrolled with a token or an attestation, and refuses open enrolment.
    """

    schema_version: Literal[1] = 1
    strategy: StrategyConfig = StrategyConfig()
    rule: RuleConfig = RuleConfig()
    rounds: RoundsConfig = RoundsConfig()
    privacy: PrivacyField
    evaluation: EvaluationConfig = EvaluationConfig()
    groups: tuple[Name, ...] = ()
    max_norm: Positive = 1e6
    versions_kept: Annotated[int, Field(ge=2)] = 20
    open_sampling: bool = False

    @classmethod
    def load(cls, text: str | bytes) -> FederationConfig:
        """Parse federation.json.

        Raises:
            ConfigError: not JSON, an unknown field, a value out of range.
        """
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise ConfigError(
                f"the federation's settings are not valid JSON: {error}",
                mend="compare them with the example in server/PROTOCOL.md",
            ) from error
        try:
            return cls.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "federation"
            raise ConfigError(
                f"the federation's settings are invalid: {where}: {first['msg']}",
                mend="correct that field",
            ) from error

    def dump(self) -> str:
        """JSON with every field, defaults too."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
