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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfl_mobile.errors import ConfigError
from pfl_mobile.files.reading import parse_json

Name = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Patterns = Annotated[tuple[Name, ...], Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sgd(_Frozen):
    """theta <- theta - lr * (d + weight_decay * theta), as ``torch.optim.SGD``."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive
    weight_decay: NotNegative = 0.0


class Momentum(_Frozen):
    """SGD with heavy-ball or Nesterov momentum, as ``torch.optim.SGD(momentum=...)``; momentum 0 is SGD."""

    kind: Literal["momentum"] = "momentum"
    lr: Positive
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0


class AdamW(_Frozen):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as ``torch.optim.AdamW``."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01


Optimizer = Annotated[Sgd | Momentum | AdamW, Field(discriminator="kind")]


class Mix(_Frozen):
    """alpha * theta + (1 - alpha) * other: 1 is theta itself, 0 the other set.

    The gradient taken there is used as it is (not multiplied by alpha); lr can absorb the factor.
    """

    kind: Literal["mix"] = "mix"
    other: Name
    alpha: Annotated[float, Field(ge=0, le=1)]


class Lookahead(_Frozen):
    """theta - step * g(B1), with the gradient then taken there on the next batch B2 (first-order MAML)."""

    kind: Literal["lookahead"] = "lookahead"
    step: NotNegative


class AssignSlotsPhase(_Frozen):
    """Give free vocabulary slots to the user's most frequent unknown words."""

    kind: Literal["assign_slots"] = "assign_slots"
    module: Name = "slots"
    min_count: Annotated[int, Field(ge=1)] = 2


class MemorizePhase(_Frozen):
    """Write the training rows into the n-gram memory (rebuilt from empty every time)."""

    kind: Literal["memorize"] = "memorize"
    module: Name = "memory"


class TrainPhase(_Frozen):
    """Gradient steps on a group of tensors.

    Attributes:
        group: patterns: tensor names with ``*`` and ``?``, ``role:<role>`` or ``module:<name>``.
        steps: optimizer steps; exactly one of ``steps`` and ``epochs`` is given.
        epochs: passes over the training rows.
        max_steps: with epochs, the most optimizer steps; a schedule then ends there.
        batches_per_step: batches whose gradients make one step; ``"all"`` is full-batch descent.
        hold_batch: every step of the phase uses the phase's first batches again (pFedMe's inner steps).
        trains: ``theta``, or the name of a copy of the group, kept in the personal state.
        start_from: set that the trained values are reset to first; null goes on from where they are (a new
            copy from theta).
        evaluate_at: where gradients are taken.
        anchor, mu: the proximal term mu * (theta - anchor). mu = 0 is none. As a name, mu is a set with one
            array per tensor, of the tensor's shape or of one element.
        prox: ``explicit`` adds the term to the gradient, as in the papers; it is stable only while
            lr * mu < 2. ``implicit`` applies the exact proximal step after each optimizer step, stable for
            every mu, and mu -> infinity leaves the values at the anchor.
        control: set added to the gradient (SCAFFOLD's c - c_i).
        mask: set multiplied into every change; 0 keeps an entry exactly as it is.
        clip: largest global L2 norm of the group's gradient; null is no limit.
        schedule: ``constant``, or ``linear``: lr * (1 - step / steps).
    """

    kind: Literal["train"] = "train"
    group: Patterns = ("*",)
    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batches_per_step: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    hold_batch: bool = False
    trains: Name = "theta"
    start_from: Name | None = None
    evaluate_at: Literal["theta"] | Mix | Lookahead = "theta"
    anchor: Name | None = None
    mu: Strength | Name = 0.0
    prox: Literal["explicit", "implicit"] = "explicit"
    control: Name | None = None
    mask: Name | None = None
    optimizer: Optimizer
    clip: Positive | None = None
    schedule: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _consistent(self) -> TrainPhase:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.max_steps is not None and self.epochs is None:
            raise ValueError("max_steps goes with epochs, not with steps")
        if self.mu != 0 and self.anchor is None:
            raise ValueError("mu needs an anchor, for instance 'global' or 'initial'")
        if (
            self.prox == "explicit"
            and isinstance(self.mu, float)
            and self.optimizer.kind != "adamw"
            and self.mu * self.optimizer.lr >= 2
        ):
            raise ValueError("lr * mu is 2 or more, which diverges: lower one, or set prox to 'implicit'")
        if self.hold_batch and self.epochs is not None:
            raise ValueError("hold_batch goes with steps, not with epochs")
        _own_name("trains", self.trains)
        return self


class MovePhase(_Frozen):
    """x <- x - rate * (x - y), for x = theta or a copy and y another set (pFedMe's outer step, Reptile)."""

    kind: Literal["move"] = "move"
    group: Patterns = ("*",)
    moves: Name = "theta"
    toward: Name
    rate: Annotated[float, Field(ge=0, le=2)]


class Term(_Frozen):
    """One summand of a combination: times * of.

    Attributes:
        of: a set.
        times: factor.
        per: ``rate`` divides the factor by the sum of the learning rates of all steps of the last train phase
            before this one (SCAFFOLD's 1 / (K lr)).
    """

    of: Name
    times: float = 1.0
    per: Literal["one", "rate"] = "one"


class CombinePhase(_Frozen):
    """x <- f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order (control variates)."""

    kind: Literal["combine"] = "combine"
    group: Patterns = ("*",)
    makes: Name
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _makes_own(self) -> CombinePhase:
        _own_name("makes", self.makes)
        return self


class MeasurePhase(_Frozen):
    """Report a metric of the training examples, measured with the set ``at`` in the place of theta.

    What is reported is sent beside the update: one number, which the aggregator weights or chooses by.
    """

    kind: Literal["measure"] = "measure"
    report: Name
    at: Name = "theta"
    metric: Name = "loss"


class ChoosePhase(_Frozen):
    """theta's group becomes the set, of those named, with the least loss on the training examples (IFCA).

    The first of equals wins; its index, counted from 0, is reported.
    """

    kind: Literal["choose"] = "choose"
    group: Patterns = ("*",)
    among: Annotated[tuple[Name, ...], Field(min_length=1)]
    report: Name


class CopyStart(_Frozen):
    """What a copy holds on a device that does not have it yet: the values of ``of`` for the group's tensors."""

    of: Name = "zero"
    group: Patterns = ("*",)


class RepeatPhase(_Frozen):
    """The given phases, several times in order."""

    kind: Literal["repeat"] = "repeat"
    times: Annotated[int, Field(ge=1, le=100_000)]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]


Step = AssignSlotsPhase | MemorizePhase | TrainPhase | MovePhase | CombinePhase | MeasurePhase | ChoosePhase
Phase = Annotated[Step | RepeatPhase, Field(discriminator="kind")]

#: The most phases a plan may run, repeats unrolled.
MAX_PHASES = 100_000

#: Metrics that are better when smaller; every other name is better when larger.
LOWER_IS_BETTER = frozenset({"loss", "mae", "mse", "rmse", "error", "perplexity"})


class Guard(_Frozen):
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


class Plan(_Frozen):
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
        if _count(self.phases) > MAX_PHASES:
            raise ValueError(f"repeats unroll to more than {MAX_PHASES} phases")
        return self

    @model_validator(mode="after")
    def _copies_fit(self) -> Plan:
        for name in self.copies:
            _own_name("copies", name)
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
        trained = False
        for phase in self.steps():
            trained |= isinstance(phase, TrainPhase)
            if isinstance(phase, CombinePhase) and not trained and any(t.per == "rate" for t in phase.terms):
                raise ValueError('a combine phase with "per": "rate" needs a train phase before it')
        return self

    def made(self) -> set[str]:
        """Names of all copies that there can be after the phases."""
        found = set(self.copies)
        for phase in self.steps():
            found |= {phase.trains} if isinstance(phase, TrainPhase) else set()
            found |= {phase.makes} if isinstance(phase, CombinePhase) else set()
        return found - {"theta"}

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
        return tuple(_unroll(self.phases))

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the numbers that are sent beside the update, sorted."""
        return tuple(sorted({p.report for p in self.steps() if isinstance(p, MeasurePhase | ChoosePhase)}))

    @staticmethod
    def json_schema() -> str:
        """The JSON Schema of plan.json (published as plan.schema.json)."""
        return json.dumps(Plan.model_json_schema(), indent=2, sort_keys=True) + "\n"


class ServeMix(_Frozen):
    """alpha * one + (1 - alpha) * other, between two named sets."""

    kind: Literal["mix"] = "mix"
    one: Name = "theta"
    other: Name
    alpha: Annotated[float, Field(ge=0, le=1)]


def _own_name(field: str, name: str) -> None:
    """Refuse the name of a set that is not the device's to write."""
    if name in ("initial", "global", "start", "zero"):
        raise ValueError(f"{field}: {name!r} is the name of a fixed set; choose another name")


def _unroll(phases: tuple[Any, ...]) -> list[Step]:
    steps: list[Step] = []
    for phase in phases:
        if isinstance(phase, RepeatPhase):
            steps += _unroll(phase.phases) * phase.times
        else:
            steps.append(phase)
    return steps


def _count(phases: tuple[Any, ...]) -> int:
    return sum(p.times * _count(p.phases) if isinstance(p, RepeatPhase) else 1 for p in phases)


def _first(error: ValidationError) -> str:
    """The first complaint, with the path to the field."""
    details = error.errors()
    where = ".".join(str(part) for part in details[0]["loc"]) or "plan"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {details[0]['msg']}{more}"


RepeatPhase.model_rebuild()
Plan.model_rebuild()
