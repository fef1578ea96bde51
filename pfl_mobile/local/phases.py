"""Runs the phases of a plan on a working copy of the state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, assert_never

import numpy as np

from pfl_mobile.errors import ConfigError, DataError, NonFiniteError, UnknownNameError, near
from pfl_mobile.local import memory, update
from pfl_mobile.local.session import Encoder, Programs, scalar
from pfl_mobile.plan.check import Set
from pfl_mobile.plan.phases import (
    AssignSlotsPhase,
    ChoosePhase,
    CombinePhase,
    Lookahead,
    MeasurePhase,
    MemorizePhase,
    Mix,
    MovePhase,
    Step,
    TrainPhase,
)
from pfl_mobile.plan.schema import Plan, ServeMix
from pfl_mobile.plan.select import select
from pfl_mobile.rows import Rows, epoch_order, take, weighted_rows

if TYPE_CHECKING:
    from pfl_mobile.local.state import PersonalState
    from pfl_mobile.plan.select import TensorEntry


@dataclass
class Work:
    """Everything that training changes; a checkpoint holds all of it.

    Attributes:
        tensors: device tensors.
        copies: copies that phases train.
        words: slot words.
        phase: index into the unrolled phases.
        step: steps done in this phase.
        done: steps done in all phases.
        optimizer: optimizer state of this phase.
        start: trained values at the start of this phase.
        losses: mean loss of every step so far.
        rate: sum of the learning rates of the last train phase's steps.
        reports: what phases measured.
    """

    tensors: dict[str, np.ndarray]
    copies: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    phase: int = 0
    step: int = 0
    done: int = 0
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)
    start: dict[str, np.ndarray] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    rate: float = 0.0
    reports: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, state: PersonalState, initial: Set) -> Work:
        """A working copy (arrays are replaced, never changed in place); shipped values for what it lacks."""
        return cls(
            {**initial, **state.tensors}, {c: dict(v) for c, v in state.copies.items()}, tuple(state.words)
        )


@dataclass
class PhaseContext:
    """What phases read: the plan's tensors, the engine, named sets, the training examples.

    ``after_step(work, loss, seconds)`` returns False to stop (cancelled).
    """

    programs: Programs
    table: Sequence[TensorEntry]
    sets: Mapping[str, Set]
    seed: int
    after_step: Callable[[Work, float, float], bool]
    rows: Rows
    encoder: Encoder | None = None
    texts: Sequence[str] | None = None
    _total: tuple[Rows, int] | None = None

    def total_steps(self, plan: Plan) -> int:
        """Optimizer steps of the whole plan on the present rows; 0 when no row counts."""
        if self._total is not None and self._total[0] is self.rows:
            return self._total[1]
        weight = self.rows["weight"]
        count = int((weight.reshape(len(weight), -1).sum(axis=1) > 0).sum()) if len(weight) else 0
        total = sum(phase.optimizer_steps(count, self.programs.batch_size) for phase in plan.steps())
        self._total = (self.rows, total)
        return total


def named_set(name: str, work: Work, sets: Mapping[str, Set]) -> Set:
    """The arrays that a plan calls ``name``."""
    if name == "theta":
        return work.tensors
    if name == "start":
        return work.start
    if name == "zero":
        return {
            n: np.broadcast_to(update.f32(0), v.shape)
            for n, v in work.tensors.items()
            if v.dtype == "float32"
        }
    if name in work.copies:
        return work.copies[name]
    if name in sets:
        return sets[name]
    known = ["theta", "start", "zero", *work.copies, *sets]
    raise UnknownNameError(f"the plan names a set {name!r} that is not there", mend=near(name, known))


def run_phases(plan: Plan, work: Work, context: PhaseContext) -> bool:
    """Run the phases from where ``work`` stands; False if cancelled."""
    steps = plan.steps()
    for name, start in plan.copies.items():
        source = named_set(start.of, work, context.sets)
        fresh = {n: source[n] for n in select(start.group, context.table)}
        work.copies[name] = {**fresh, **work.copies.get(name, {})}
    while work.phase < len(steps):
        if not _run(steps[work.phase], work, context):
            return False
        work.phase, work.step, work.optimizer, work.start = work.phase + 1, 0, {}, {}
    return True


def remember(plan: Plan, work: Work, context: PhaseContext) -> None:
    """Run again, on the context's rows, the phases that remember examples: ``Plan.remember_holdout``."""
    for phase in plan.distinct_steps():
        if phase.remembers:
            _run(phase, work, context)


def _run(phase: Step, work: Work, context: PhaseContext) -> bool:
    """Run one phase, a train phase from ``work.step`` on; False if cancelled."""
    match phase:
        case TrainPhase():
            return _train(phase, work, context)
        case MovePhase():
            _move(phase, work, context)
        case CombinePhase():
            _combine(phase, work, context)
        case MeasurePhase():
            work.reports[phase.report] = _measure(phase.at, phase.metric, work, context)
        case ChoosePhase():
            _choose(phase, work, context)
        case AssignSlotsPhase():
            _assign(phase, work, context)
        case MemorizePhase():
            _memorize(phase, work, context)
        case _:
            assert_never(phase)
    return True


def _train(phase: TrainPhase, work: Work, context: PhaseContext) -> bool:
    group = select(phase.group, context.table)
    rows = weighted_rows(context.rows, "training rows")
    count, size = len(rows["weight"]), context.programs.batch_size
    steps = phase.optimizer_steps(count, size)
    if work.step == 0:
        own = {} if phase.trains == "theta" else work.copies.get(phase.trains, {})
        # A copy is made from theta; one from an earlier run may hold fewer tensors than this group.
        now = {n: own.get(n, work.tensors[n]) for n in group}
        source = phase.start_from
        work.start = now if source is None else update.toward(now, named_set(source, work, context.sets), 1)
        work.rate = 0.0
        _store(phase.trains, work.start, work)
    batches = _gradient_batches(phase, rows, size, derive_key=(context.seed, work.phase))
    if phase.hold_batch:
        batches = cycle(list(islice(batches, phase.gradients_per_step)))
    else:
        batches = islice(batches, work.step * phase.gradients_per_step, None)
    while work.step < steps:
        began = time.perf_counter()
        theta = {n: named_set(phase.trains, work, context.sets)[n] for n in group}
        point = theta
        if isinstance(phase.evaluate_at, Mix):
            point = update.mix(
                theta, named_set(phase.evaluate_at.other, work, context.sets), phase.evaluate_at.alpha
            )
        elif isinstance(phase.evaluate_at, Lookahead):
            first, _ = _gradient(next(batches), point, work, context)
            point = update.minus(theta, first, phase.evaluate_at.step)
        gradient, loss = _gradient(next(batches), point, work, context)
        lr = phase.optimizer.lr
        if phase.schedule == "linear":
            lr = lr * (1 - work.step / steps)
        work.rate += lr
        new, work.optimizer = update.update(
            theta,
            gradient,
            phase.optimizer,
            work.optimizer,
            lr=lr,
            clip_norm=phase.clip,
            anchor=_optional(phase.anchor, work, context),
            mu=named_set(phase.mu, work, context.sets) if isinstance(phase.mu, str) else phase.mu,
            implicit=phase.prox == "implicit",
            control=_optional(phase.control, work, context),
            mask=_optional(phase.mask, work, context),
        )
        _store(phase.trains, new, work)
        work.step += 1
        work.done += 1
        work.losses.append(loss)
        if not context.after_step(work, loss, time.perf_counter() - began):
            return False
    return True


def _gradient_batches(
    phase: TrainPhase, rows: Rows, size: int, derive_key: tuple[int, int]
) -> Iterator[list[Rows]]:
    """The batches of each gradient, epoch after epoch; each epoch has an order of its own."""
    count = len(rows["weight"])
    seed, index = derive_key
    epoch = 0
    while True:
        order = epoch_order(count, seed, index, epoch)
        batches = [order[i : i + size] for i in range(0, count, size)]
        each = phase.batches_per_gradient(len(batches))
        for i in range(0, len(batches), each):
            yield [take(rows, part, size) for part in batches[i : i + each]]
        epoch += 1


def _gradient(
    batches: list[Rows], point: Set, work: Work, context: PhaseContext
) -> tuple[dict[str, np.ndarray], float]:
    """Gradient of the mean loss over the batches together, and that loss.

    Gradient sums are added in float32 in batch order, loss and weight in float64.
    """
    arguments = {**work.tensors, **point}
    sums: dict[str, np.ndarray] = {}
    loss = weight = 0.0
    for batch in batches:
        out = context.programs.gradients(batch, arguments)
        loss += scalar(out, "loss_sum")
        weight += scalar(out, "weight_sum")
        for name in point:
            grad = np.asarray(out[f"grad.{name}"], dtype=np.float32).reshape(point[name].shape)
            sums[name] = sums[name] + grad if name in sums else grad
    return update.mean_gradients(sums, weight), loss / weight


def _move(phase: MovePhase, work: Work, context: PhaseContext) -> None:
    group = select(phase.group, context.table)
    x = named_set(phase.moves, work, context.sets)
    y = named_set(phase.toward, work, context.sets)
    _store(phase.moves, update.toward({n: x[n] for n in group}, y, phase.rate), work)


def _combine(phase: CombinePhase, work: Work, context: PhaseContext) -> None:
    group = select(phase.group, context.table)
    terms = [
        (named_set(t.of, work, context.sets), t.times / work.rate if t.per == "rate" else t.times)
        for t in phase.terms
    ]
    made = update.combine({n: work.tensors[n] for n in group}, terms)
    _store(phase.makes, made, work)


def _measure(at: str, metric: str, work: Work, context: PhaseContext) -> float:
    """A metric of the training rows, gradient-trained tensors taken from the set ``at``."""
    values = named_set(at, work, context.sets)
    names = {t.name for t in context.table if t.update == "gradient"}
    tensors = {n: values[n] if n in names and n in values else v for n, v in work.tensors.items()}
    metrics = context.programs.evaluate(weighted_rows(context.rows, "training rows"), tensors)
    if metric not in metrics:
        raise UnknownNameError(
            f"the plan measures {metric!r}, which the bundle does not", mend=near(metric, metrics)
        )
    if not math.isfinite(metrics[metric]):
        raise NonFiniteError(
            f"the {metric} of the set {at!r} is {metrics[metric]}",
            mend="check the examples and that set; the state before training is kept",
        )
    return metrics[metric]


def _choose(phase: ChoosePhase, work: Work, context: PhaseContext) -> None:
    group = select(phase.group, context.table)
    losses = [_measure(name, "loss", work, context) for name in phase.among]
    best = losses.index(min(losses))
    chosen = named_set(phase.among[best], work, context.sets)
    _store("theta", update.toward({n: work.tensors[n] for n in group}, chosen, 1), work)
    work.reports[phase.report] = float(best)


def _assign(phase: AssignSlotsPhase, work: Work, context: PhaseContext) -> None:
    if context.encoder is None or context.texts is None:
        raise ConfigError(
            "the plan assigns vocabulary slots but the examples are arrays",
            mend="give texts and an encoder, or leave the assign_slots phase out",
        )
    encoder = context.encoder.with_words(work.words)
    for tensor in context.table:
        if tensor.module == phase.module and tensor.update == "assign":
            size = tensor.shape[0]
            words = encoder.choose_words(context.texts, phase.min_count)[:size]
            work.words = tuple(words)
            work.tensors[tensor.name] = memory.active(len(words), size)
    context.encoder = encoder.with_words(work.words)
    context.rows = dict(context.encoder.encode(context.texts, drop_unknown=True))


def _memorize(phase: MemorizePhase, work: Work, context: PhaseContext) -> None:
    following, before = phase.memory(context.table)
    rows = context.rows
    missing = {"tokens", "labels", "weight"} - rows.keys()
    if missing:
        raise DataError(f"the rows have no {sorted(missing)}", mend="memorize needs rows of tokens")
    work.tensors[following.name], work.tensors[before.name], _ = memory.memorize(
        rows["tokens"], rows["labels"], rows["weight"], following.shape[0], before.shape[1]
    )


def _store(name: str, values: Set, work: Work) -> None:
    if name == "theta":
        work.tensors.update(values)
    else:
        work.copies[name] = {**work.copies.get(name, {}), **values}


def _optional(name: str | None, work: Work, context: PhaseContext) -> Set | None:
    return None if name is None else named_set(name, work, context.sets)


def kept_copies(plan: Plan, work: Work) -> dict[str, dict[str, np.ndarray]]:
    """The copies that the personal state keeps."""
    return {name: v for name, v in work.copies.items() if plan.keep is None or name in plan.keep}


def served(plan: Plan, work: Work, sets: Mapping[str, Set]) -> dict[str, np.ndarray]:
    """The device tensors that predictions use under ``plan.serve``.

    Only gradient-trained tensors have copies; a copy not yet made stands for theta.
    """
    tensors = dict(work.tensors)

    def resolve(name: str) -> Set:
        return named_set(name, work, sets) if name in work.copies or name in sets else work.tensors

    if isinstance(plan.serve, ServeMix):
        one, other = resolve(plan.serve.one), resolve(plan.serve.other)
        names = [n for n in one if n in other and tensors[n].dtype == np.float32]
        tensors.update(update.mix({n: one[n] for n in names}, other, plan.serve.alpha))
    else:
        tensors.update(resolve(plan.serve))
    return tensors
