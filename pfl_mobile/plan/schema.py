"""The plan: what a device does locally, as data.

Ordered phases, then the guard, then what to send. One update rule (``update.py``) serves every algorithm;
a phase only names its terms. Value sets that ``anchor``, ``start_from``, ``mix`` and ``move`` can name:

* ``initial``: the values shipped in the bundle;
* ``global``: the latest values from the aggregator (the shipped ones when there are none yet);
* ``theta``: the device's own tensors as they are now;
* ``start``: what this phase trains, as it was when the phase began;
* ``zero``: nothing but zeros;
* any copy that a phase makes (``"trains": "personal"``) or that ``copies`` starts, and any set of arrays the
  host hands in.

=====================  ==========================================================================
FedAvg, fine-tuning    one train phase, nothing else
FedProx                ``mu``, ``anchor: global``
L2-SP, EWC             ``anchor: initial``, ``mu`` a number or the name of per-tensor arrays
Ditto                  a second train phase with ``trains: personal``, ``mu``, ``anchor: global``
pFedMe                 ``repeat`` of {train a copy from theta with ``anchor: theta``; ``move`` theta to it}
SCAFFOLD, Scafflix     ``control``, kept up by ``combine``; Scafflix also ``evaluate_at: {"kind": "mix", ...}``
FedPer, FedRep         train phases with ``group: ["role:personal"]`` and ``["role:shared"]``
Per-FedAvg             ``evaluate_at: {"kind": "lookahead", "step": a}``
Reptile                train a copy, then ``move`` theta towards it
APFL                   ``serve: {"kind": "mix", ...}`` of a copy and ``global``
FedP3, pruning         ``mask``
IFCA (clusters)        ``choose`` the cluster's values that fit the examples best, then train
TERM, MaxFL, fairness  ``measure`` a loss, which the aggregator weights by
=====================  ==========================================================================
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from pfl_mobile.errors import ConfigError
from pfl_mobile.fields import Frozen, NotNegative
from pfl_mobile.files.reading import parse_json
from pfl_mobile.plan.fields import Name, Patterns, check_own_name
from pfl_mobile.plan.phases import Phase, Step, distinct, unrolled, unrolled_count


class CopyStart(Frozen):
    """What a copy holds on a device that does not have it yet: the values of ``of`` for the group's tensors."""

    of: Name = "zero"
    group: Patterns = ("*",)


#: The most phases a plan may run, repeats unrolled.
MAX_PHASES = 100_000

#: Metrics that are better when smaller; every other name is better when larger.
LOWER_IS_BETTER = frozenset({"loss", "mae", "mse", "rmse", "error", "perplexity"})


class Guard(Frozen):
    """Whether the trained state replaces the old one.

    Attributes:
        metric: ``loss`` or a metric of the evaluate program.
        min_examples: with fewer held-out examples nothing is trained.
        tolerance: how much worse the metric may become, exclusive; 0 asks for a real improvement.
        appeal: the shipped model is good enough when its metric reaches this; then nothing is trained.
            null never stops.
    """

    metric: Name = "loss"
    min_examples: Annotated[int, Field(ge=1)] = 1
    tolerance: NotNegative = 0.0
    appeal: float | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is an improvement."""
        return self.metric in LOWER_IS_BETTER


class Plan(Frozen):
    """What a device does locally.

    Attributes:
        start: ``current`` goes on from the adopted state, ``initial`` trains afresh from the shipped values.
        seed: of every shuffle, 0 <= seed < 2**63.
        upload: patterns of the tensors whose change is sent; personal tensors never are.
        upload_copies: copies whose change is sent too, of the same tensors (SCAFFOLD's control variates).
        copies: copies that are there from the start, and what they hold on a device that lacks them.
        keep: copies that the personal state keeps for the next time; null keeps all.
        holdout: part of the examples, the newest, kept for the guard.
        serve: what predictions use and the guard measures: theta, a copy, or a mix of two sets.
        remember_holdout: after the guard has adopted, memorize the held-out examples too, as they are the
            newest. Where a later run holds out some of them again, the old state knows them, so the guard asks
            more of the new one than it should.
    """

    schema_version: Literal[1] = 1
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    guard: Guard = Guard()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    upload: tuple[Name, ...] = ()
    upload_copies: tuple[Name, ...] = ()
    copies: dict[Name, CopyStart] = Field(default_factory=dict)
    keep: tuple[Name, ...] | None = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    start: Literal["current", "initial"] = "current"
    serve: Name | ServeMix = "theta"
    remember_holdout: bool = False

    @model_validator(mode="after")
    def _not_too_long(self) -> Plan:
        if unrolled_count(self.phases) > MAX_PHASES:
            raise ValueError(f"repeats unroll to more than {MAX_PHASES} phases")
        return self

    @model_validator(mode="after")
    def _copies_fit(self) -> Plan:
        for name in self.copies:
            check_own_name("copies", name)
        made = self.made()
        for name in (*(self.keep or ()), *self.upload_copies):
            if name not in made:
                raise ValueError(f"no phase makes a copy {name!r}; the plan makes {sorted(made)}")
        served = (self.serve.one, self.serve.other) if isinstance(self.serve, ServeMix) else (self.serve,)
        for name in served:
            if self.keep is not None and name in made and name not in self.keep:
                raise ValueError(f"serve names the copy {name!r}, which is not among those in keep")
        if self.upload_copies and not self.upload:
            raise ValueError("upload_copies needs upload, which says of which tensors")
        rate = False
        for phase in self.distinct_steps():
            if phase.needs_rate and not rate:
                raise ValueError(f'a {phase.kind} phase with "per": "rate" needs a train phase before it')
            rate |= phase.leaves_rate
        return self

    def made(self) -> set[str]:
        """Names of all copies that there can be after the phases."""
        made = (phase.makes_copy for phase in self.distinct_steps())
        return {*self.copies, *(copy for copy in made if copy is not None)} - {"theta"}

    @classmethod
    def load(cls, text: str | bytes) -> Plan:
        """Parse plan.json.

        Raises:
            ConfigError: not JSON, an unknown or missing field, a value out of range, a newer schema.
        """
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise ConfigError(
                f"the plan is not valid JSON: {error}", mend="compare it with plan.schema.json"
            ) from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > 1:
            raise ConfigError(
                f"the plan has schema_version {version}, newer than 1",
                mend="update pfl-mobile, or export again",
            )
        try:
            return cls.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            raise ConfigError(
                f"the plan is invalid: {_first(error)}", mend="compare it with plan.schema.json"
            ) from error

    def dump(self) -> str:
        """JSON with every field, defaults too, so that no reader needs to know them."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def steps(self) -> tuple[Step, ...]:
        """The phases in the order they run, repeats unrolled."""
        return tuple(unrolled(self.phases))

    def distinct_steps(self) -> list[Step]:
        """Each different phase once, in the order of their first runs: enough for whoever only asks about them."""
        return distinct(self.phases)

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the numbers that are sent beside the update, sorted."""
        reported = {phase.reported for phase in self.distinct_steps()}
        return tuple(sorted(name for name in reported if name is not None))

    @staticmethod
    def json_schema() -> str:
        """The JSON Schema of plan.json (published as plan.schema.json)."""
        return json.dumps(Plan.model_json_schema(), indent=2, sort_keys=True) + "\n"


class ServeMix(Frozen):
    """alpha * one + (1 - alpha) * other, between two named sets."""

    kind: Literal["mix"] = "mix"
    one: Name = "theta"
    other: Name
    alpha: Annotated[float, Field(ge=0, le=1)]


def _first(error: ValidationError) -> str:
    """The first complaint, with the path to the field."""
    details = error.errors()
    where = ".".join(str(part) for part in details[0]["loc"]) or "plan"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {details[0]['msg']}{more}"


Plan.model_rebuild()
