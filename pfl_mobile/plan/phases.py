"""The phases of a plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pfl_mobile.plan.fields import Frozen, Name, NotNegative, Patterns, Positive, Strength, check_own_name
from pfl_mobile.plan.optimizers import Optimizer


class Mix(Frozen):
    """alpha * theta + (1 - alpha) * other: 1 is theta itself, 0 the other set.

    The gradient taken there is used as it is (not multiplied by alpha); lr can absorb the factor.
    """

    kind: Literal["mix"] = "mix"
    other: Name
    alpha: Annotated[float, Field(ge=0, le=1)]


class Lookahead(Frozen):
    """theta - step * g(B1), with the gradient then taken there on the next batch B2 (first-order MAML)."""

    kind: Literal["lookahead"] = "lookahead"
    step: NotNegative


class AssignSlotsPhase(Frozen):
    """Give free vocabulary slots to the user's most frequent unknown words."""

    kind: Literal["assign_slots"] = "assign_slots"
    module: Name = "slots"
    min_count: Annotated[int, Field(ge=1)] = 2


class MemorizePhase(Frozen):
    """Write the training rows into the n-gram memory (rebuilt from empty every time)."""

    kind: Literal["memorize"] = "memorize"
    module: Name = "memory"


class TrainPhase(Frozen):
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
        check_own_name("trains", self.trains)
        return self


class MovePhase(Frozen):
    """x <- x - rate * (x - y), for x = theta or a copy and y another set (pFedMe's outer step, Reptile)."""

    kind: Literal["move"] = "move"
    group: Patterns = ("*",)
    moves: Name = "theta"
    toward: Name
    rate: Annotated[float, Field(ge=0, le=2)]


class Term(Frozen):
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


class CombinePhase(Frozen):
    """x <- f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order (control variates)."""

    kind: Literal["combine"] = "combine"
    group: Patterns = ("*",)
    makes: Name
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _makes_own(self) -> CombinePhase:
        check_own_name("makes", self.makes)
        return self


class MeasurePhase(Frozen):
    """Report a metric of the training examples, measured with the set ``at`` in the place of theta.

    What is reported is sent beside the update: one number, which the aggregator weights or chooses by.
    """

    kind: Literal["measure"] = "measure"
    report: Name
    at: Name = "theta"
    metric: Name = "loss"


class ChoosePhase(Frozen):
    """theta's group becomes the set, of those named, with the least loss on the training examples (IFCA).

    The first of equals wins; its index, counted from 0, is reported.
    """

    kind: Literal["choose"] = "choose"
    group: Patterns = ("*",)
    among: Annotated[tuple[Name, ...], Field(min_length=1)]
    report: Name


class RepeatPhase(Frozen):
    """The given phases, several times in order."""

    kind: Literal["repeat"] = "repeat"
    times: Annotated[int, Field(ge=1, le=100_000)]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]


Step = AssignSlotsPhase | MemorizePhase | TrainPhase | MovePhase | CombinePhase | MeasurePhase | ChoosePhase
Phase = Annotated[Step | RepeatPhase, Field(discriminator="kind")]


RepeatPhase.model_rebuild()
