"""The phases of a plan. A phase describes itself; only the two executors ask of which kind it is.

``PhaseBase`` holds the questions: which sets a phase reads and writes, which copy it makes, what it reports, which
examples it needs, how it reads in words, and so on. The checks (``check.py``, ``upload.py``), the words
(``words.py``), the simulator and the server ask the phase, and never look at its class.

Adding a phase takes:

1. a class here, listed in ``Step``. It answers the abstract questions, and the others where the default is wrong.
   Write ``Plan.json_schema()`` into ``plan.schema.json``;
2. a case in both executors, ``pfl_mobile/local/phases.py`` (a device) and ``pfl_mobile/vectorized/phases.py`` (the
   simulator). Until there is one, the type checker complains at their ``assert_never``, and a run stops there;
3. vectors in ``conformance/generate.py``, for devices that repeat the executor in other languages, and an example in
   ``tests/plan/test_phases.py``, which compares the answers with what the executor does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import override

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.fields import Frozen, NotNegative, Positive
from pfl_mobile.plan.fields import Name, Patterns, Strength, check_own_name
from pfl_mobile.plan.optimizers import Optimizer
from pfl_mobile.plan.select import select

if TYPE_CHECKING:
    from pfl_mobile.plan.select import TensorEntry

#: What a phase needs of a device's examples: ``rows``, at least one with a positive weight, or the phase fails;
#: ``texts``, for their words; ``tokens``, rows of tokens, of which there may be none.
Examples = Literal["rows", "texts", "tokens"]

#: The programs of a bundle that a phase can call.
Program = Literal["gradients", "evaluate"]


class PhaseBase(Frozen):
    """The questions about a phase.

    Sets are given by name (``schema.py`` lists them). Tensors that no gradient trains have no copies: a phase that
    writes them writes ``theta``.
    """

    if TYPE_CHECKING:
        kind: str

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Sets that it reads before it writes, in order; of each it reads the tensors that ``tensors`` names."""

    @property
    def step_reads(self) -> tuple[str, ...]:
        """Sets that its optimizer steps read; by then ``start`` and the copy that it makes exist."""
        return ()

    @property
    @abstractmethod
    def writes(self) -> str | None:
        """The set that it writes; None for a phase that changes nothing."""

    @property
    def makes_copy(self) -> str | None:
        """The copy that exists after the phase, even where it did not before."""
        return None

    @property
    def changes(self) -> str | None:
        """The set whose trained values it may make differ from the aggregator's; only such a change can be sent."""
        return self.writes

    @property
    def takes_over(self) -> str | None:
        """The set whose values theta's tensors take, whatever they were; None where it does anything else."""
        return None

    @property
    def reported(self) -> str | None:
        """The name of the number that it reports."""
        return None

    @property
    @abstractmethod
    def examples(self) -> Examples | None:
        """What it needs of the examples; None for nothing."""

    @property
    def remembers(self) -> bool:
        """Whether it runs again on all examples, held-out ones too, where the plan says ``remember_holdout``."""
        return False

    @property
    def programs(self) -> tuple[Program, ...]:
        """Programs of the bundle that it calls."""
        return ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that it asks of the program ``evaluate``."""
        return ()

    @property
    def leaves_rate(self) -> bool:
        """Whether it sums up learning rates, by which a later phase may divide."""
        return False

    @property
    def needs_rate(self) -> bool:
        """Whether it divides by the sum of learning rates of an earlier phase."""
        return False

    def optimizer_steps(self, rows: int, batch: int) -> int:
        """Its number of optimizer steps on ``rows`` rows of positive weight, in batches of ``batch`` rows."""
        return 0

    @abstractmethod
    def tensors(self, table: Sequence[TensorEntry]) -> list[str]:
        """Names of the tensors that it writes.

        Raises:
            UnknownNameError, ConfigError: the model has none that the phase means.
        """

    def check(self, table: Sequence[TensorEntry]) -> None:
        """Refuse a model whose tensors are not what the phase works on.

        Raises:
            UnknownNameError, ConfigError: naming it.
        """
        self.tensors(table)

    @abstractmethod
    def words(self) -> list[str]:
        """What it does in plain words, a line or more."""


class _GroupPhase(PhaseBase):
    """Writes a group of the tensors that gradients train."""

    if TYPE_CHECKING:  # each class declares it in its own place: their order is that of the JSON
        group: Patterns

    @override
    def tensors(self, table: Sequence[TensorEntry]) -> list[str]:
        return select(self.group, table)


class _ModulePhase(PhaseBase):
    """Fills tensors of one module that no gradient trains."""

    _update: ClassVar[str]  # as their ``TensorEntry.update``

    if TYPE_CHECKING:
        module: Name

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    @override
    def writes(self) -> str:
        return "theta"

    @property
    @override
    def changes(self) -> None:
        return None

    @override
    def tensors(self, table: Sequence[TensorEntry]) -> list[str]:
        own = [t.name for t in table if t.module == self.module and t.update == self._update]
        if not own:
            raise UnknownNameError(
                f"the plan's {self.kind} phase is for module {self.module!r}, which has no such tensors",
                mend=near(self.module, [t.module for t in table if t.module and t.update == self._update]),
            )
        return own


class AssignSlotsPhase(_ModulePhase):
    """Give free vocabulary slots to the user's most frequent unknown words."""

    _update = "assign"

    kind: Literal["assign_slots"] = "assign_slots"
    module: Name = "slots"
    min_count: Annotated[int, Field(ge=1)] = 2

    @property
    @override
    def examples(self) -> Examples:
        return "texts"

    @override
    def words(self) -> list[str]:
        return [f"give free slots of {self.module!r} to unknown words seen {self.min_count} times or more"]


class MemorizePhase(_ModulePhase):
    """Write the training rows into the n-gram memory (rebuilt from empty every time)."""

    _update = "memorize"

    kind: Literal["memorize"] = "memorize"
    module: Name = "memory"

    @property
    @override
    def examples(self) -> Examples:
        return "tokens"

    @property
    @override
    def remembers(self) -> bool:
        return True

    @override
    def check(self, table: Sequence[TensorEntry]) -> None:
        super().check(table)
        self.memory(table)

    def memory(self, table: Sequence[TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
        """The memory's tensors ``next`` and ``context`` (ConfigError: the module is no memory)."""
        own = [t for t in table if t.module == self.module and t.update == self._update]
        following = next((t for t in own if t.name.endswith(".next")), None)
        before = next((t for t in own if t.name.endswith(".context")), None)
        if following is None or before is None:
            raise ConfigError(
                f"module {self.module!r} has no tensors 'next' and 'context'",
                mend="use the memory module's name",
            )
        return following, before

    @override
    def words(self) -> list[str]:
        return [f"write the examples into the memory {self.module!r}"]


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


class TrainPhase(_GroupPhase):
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

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return () if self.start_from is None else (self.start_from,)

    @property
    @override
    def step_reads(self) -> tuple[str, ...]:
        mu = self.mu if isinstance(self.mu, str) else None
        other = self.evaluate_at.other if isinstance(self.evaluate_at, Mix) else None
        named = (self.anchor, self.control, self.mask, mu, other)
        return tuple(name for name in named if name is not None)

    @property
    @override
    def writes(self) -> str:
        return self.trains

    @property
    @override
    def makes_copy(self) -> str | None:
        return None if self.trains == "theta" else self.trains

    @property
    @override
    def examples(self) -> Examples:
        return "rows"

    @property
    @override
    def programs(self) -> tuple[Program, ...]:
        return ("gradients",)

    @property
    @override
    def leaves_rate(self) -> bool:
        return True

    @property
    def gradients_per_step(self) -> int:
        """Gradients that one optimizer step takes, each of other batches: two with a lookahead (B1, B2)."""
        return 2 if isinstance(self.evaluate_at, Lookahead) else 1

    def batches_per_gradient(self, batches: int) -> int:
        """Batches that make one gradient, in an epoch of ``batches`` batches."""
        return batches if self.batches_per_step == "all" else min(self.batches_per_step, batches)

    @override
    def optimizer_steps(self, rows: int, batch: int) -> int:
        if self.steps is not None:
            return self.steps
        batches = -(-rows // batch)
        each = max(self.batches_per_gradient(batches), 1) * self.gradients_per_step
        steps = (self.epochs or 0) * -(-batches // each)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @override
    def words(self) -> list[str]:
        what = ", ".join(self.group) if self.group != ("*",) else "all tensors"
        long = f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"
        if self.max_steps is not None:
            long += f", {self.max_steps} steps at most"
        optimizer = self.optimizer
        words = [f"train {what}", f"for {long}", f"with {optimizer.kind}, lr {optimizer.lr:g}"]
        if self.schedule == "linear":
            words.append("falling to 0")
        if optimizer.weight_decay:
            words.append(f"weight decay {optimizer.weight_decay:g}")
        if self.clip is not None:
            words.append(f"gradients clipped to {self.clip:g}")
        if self.batches_per_step != 1:
            words.append(f"{self.batches_per_step} batches a step")
        if self.hold_batch:
            words.append("all on the same batch")
        if self.trains != "theta":
            words.append(f"into the copy {self.trains!r}")
        if self.start_from is not None:
            words.append(f"starting from {self.start_from}")
        if self.anchor is not None:
            mu = self.mu if isinstance(self.mu, str) else f"{self.mu:g}"
            words.append(f"held near {self.anchor} (mu {mu})")
        if isinstance(self.evaluate_at, Mix):
            words.append(f"gradients at a mix with {self.evaluate_at.other}")
        elif isinstance(self.evaluate_at, Lookahead):
            words.append(f"gradients one step of {self.evaluate_at.step:g} ahead")
        if self.control is not None:
            words.append(f"plus control {self.control!r}")
        if self.mask is not None:
            words.append(f"masked by {self.mask!r}")
        return [", ".join(words)]


class MovePhase(_GroupPhase):
    """x <- x - rate * (x - y), for x = theta or a copy and y another set (pFedMe's outer step, Reptile)."""

    kind: Literal["move"] = "move"
    group: Patterns = ("*",)
    moves: Name = "theta"
    toward: Name
    rate: Annotated[float, Field(ge=0, le=2)]

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return (self.moves, self.toward)

    @property
    @override
    def writes(self) -> str:
        return self.moves

    @property
    @override
    def changes(self) -> str | None:
        return None if self.toward == "global" else self.moves

    @property
    @override
    def takes_over(self) -> str | None:
        return self.toward if (self.moves, self.rate) == ("theta", 1) else None

    @property
    @override
    def examples(self) -> None:
        return None

    @override
    def words(self) -> list[str]:
        return [f"move {self.moves} towards {self.toward} by a factor of {self.rate:g}"]


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


class CombinePhase(_GroupPhase):
    """x <- f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order (control variates)."""

    kind: Literal["combine"] = "combine"
    group: Patterns = ("*",)
    makes: Name
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _makes_own(self) -> CombinePhase:
        check_own_name("makes", self.makes)
        return self

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return tuple(term.of for term in self.terms)

    @property
    @override
    def writes(self) -> str:
        return self.makes

    @property
    @override
    def makes_copy(self) -> str | None:
        return None if self.makes == "theta" else self.makes

    @property
    @override
    def examples(self) -> None:
        return None

    @property
    @override
    def needs_rate(self) -> bool:
        return any(term.per == "rate" for term in self.terms)

    @override
    def words(self) -> list[str]:
        terms = (f"{t.times:g} {t.of}" + (" / learning rates" if t.per == "rate" else "") for t in self.terms)
        return [f"set {self.makes} to {' + '.join(terms)}"]


class MeasurePhase(PhaseBase):
    """Report a metric of the training examples, measured with the set ``at`` in the place of theta.

    What is reported is sent beside the update: one number, which the aggregator weights or chooses by.
    """

    kind: Literal["measure"] = "measure"
    report: Name
    at: Name = "theta"
    metric: Name = "loss"

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return (self.at,)

    @property
    @override
    def writes(self) -> None:
        return None

    @property
    @override
    def reported(self) -> str:
        return self.report

    @property
    @override
    def examples(self) -> Examples:
        return "rows"

    @property
    @override
    def programs(self) -> tuple[Program, ...]:
        return ("evaluate",)

    @property
    @override
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    @override
    def tensors(self, table: Sequence[TensorEntry]) -> list[str]:
        return []  # and what the set lacks is taken of theta

    @override
    def words(self) -> list[str]:
        return [f"measure the {self.metric} of {self.at} and report it as {self.report!r}"]


class ChoosePhase(_GroupPhase):
    """theta's group becomes the set, of those named, with the least loss on the training examples (IFCA).

    The first of equals wins; its index, counted from 0, is reported.
    """

    kind: Literal["choose"] = "choose"
    group: Patterns = ("*",)
    among: Annotated[tuple[Name, ...], Field(min_length=1)]
    report: Name

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return self.among

    @property
    @override
    def writes(self) -> str:
        return "theta"

    @property
    @override
    def reported(self) -> str:
        return self.report

    @property
    @override
    def examples(self) -> Examples:
        return "rows"

    @property
    @override
    def programs(self) -> tuple[Program, ...]:
        return ("evaluate",)

    @property
    @override
    def metrics(self) -> tuple[str, ...]:
        return ("loss",)

    @override
    def words(self) -> list[str]:
        return [f"go on from what fits best of {', '.join(self.among)}; report {self.report!r}"]


class RepeatPhase(Frozen):
    """The given phases, several times in order."""

    kind: Literal["repeat"] = "repeat"
    times: Annotated[int, Field(ge=1, le=100_000)]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    def words(self) -> list[str]:
        """What it does in plain words."""
        return [f"{self.times} times:", *(f"  {line}" for phase in self.phases for line in phase.words())]


#: What an executor runs. Repeats are unrolled before.
Step = AssignSlotsPhase | MemorizePhase | TrainPhase | MovePhase | CombinePhase | MeasurePhase | ChoosePhase
#: What a plan consists of.
Phase = Annotated[Step | RepeatPhase, Field(discriminator="kind")]


def unrolled(phases: Iterable[Phase]) -> list[Step]:
    """The phases in the order they run, repeats unrolled."""
    steps: list[Step] = []
    for phase in phases:
        if isinstance(phase, RepeatPhase):
            steps += unrolled(phase.phases) * phase.times
        else:
            steps.append(phase)
    return steps


def unrolled_count(phases: Iterable[Phase]) -> int:
    """The length of ``unrolled``, computed without unrolling: repeats within repeats may make it astronomical."""
    return sum(p.times * unrolled_count(p.phases) if isinstance(p, RepeatPhase) else 1 for p in phases)


def distinct(phases: Iterable[Phase]) -> list[Step]:
    """Each different phase once, in the order of their first runs."""
    inside = (distinct(p.phases) if isinstance(p, RepeatPhase) else [p] for p in phases)
    return list(dict.fromkeys(step for steps in inside for step in steps))


RepeatPhase.model_rebuild()
