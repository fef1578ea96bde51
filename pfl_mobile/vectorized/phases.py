"""Runs the phases of a plan on several clients side by side: what ``local/phases.py`` does for one.

The arithmetic is that of ``local/update.py``, each operation over all lanes at once; only the order of sums
inside a product or a norm differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.errors import ConfigError, UnknownNameError, near
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
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.select import select
from pfl_mobile.vectorized.calls import Call, DeferredCall
from pfl_mobile.vectorized.deferred import LEAST_STEPS, MOST_ROWS, LateWeight
from pfl_mobile.vectorized.feed import Helping
from pfl_mobile.vectorized.lanes import FlatSet, Lanes
from pfl_mobile.vectorized.layout import non_finite
from pfl_mobile.vectorized.steps import Steps
from pfl_mobile.vectorized.update import LaneUpdateRule, lane_column


def run_plan(plan: Plan, lanes: Lanes, steps: Steps, sizes: Sequence[int], done: int = 0) -> None:
    """All phases in order, for all lanes.

    Args:
        plan: the plan.
        lanes: clients, those with the most rows first.
        steps: compiled functions.
        sizes: numbers of lanes to compile for, increasing; the last is at least the number of clients.
        done: as many phases, the first ones, are done already.

    Raises:
        ConfigError: the plan has a phase that only :class:`pfl_mobile.local.trainer.LocalTrainer` runs.
        UnknownNameError, TensorMismatchError: a set is missing, or lacks a tensor.
    """
    for name, start in plan.copies.items():
        group = select(start.group, steps.table)
        lanes.writable(name, group, lanes.named(start.of), keep=True)
    runner = _Runner(lanes, steps, sizes)
    for index, phase in enumerate(plan.steps()):
        if index >= done:
            runner.run(phase, index)
            lanes.start = None


class _Runner:
    def __init__(self, lanes: Lanes, steps: Steps, sizes: Sequence[int]) -> None:
        self.lanes, self.steps, self.sizes = lanes, steps, list(sizes)
        self._calls: dict[tuple[Any, ...], Call] = {}  # of this phase

    def run(self, phase: Step, index: int) -> None:
        self._calls.clear()
        match phase:
            case TrainPhase():
                self._train(phase, index)
            case MovePhase():
                self._move(phase)
            case CombinePhase():
                self._combine(phase)
            case MeasurePhase():
                values = self._measure(phase.at, phase.metric)
                for report, value in zip(self.lanes.reports, values, strict=True):
                    report[phase.report] = float(value)
            case ChoosePhase():
                self._choose(phase)
            case AssignSlotsPhase() | MemorizePhase():
                raise ConfigError(
                    f"a cohort cannot run the plan's {phase.kind} phase: it is no arithmetic on tensors",
                    mend="train these clients with pfl_mobile.local.trainer.LocalTrainer, or leave the phase out",
                )
            case _:
                assert_never(phase)

    # -- train -----------------------------------------------------------------------------------------------

    def _train(self, phase: TrainPhase, index: int) -> None:
        lanes, group = self.lanes, select(phase.group, self.steps.table)
        uses_start = "start" in phase.step_reads
        in_place = phase.trains == "theta" and phase.start_from is None
        if in_place:
            flat = lanes.theta if uses_start else lanes.rows
        else:
            source = lanes.named("theta" if phase.start_from is None else phase.start_from)
            source.need(group, f"the set {phase.start_from!r}")
            flat = lanes.writable(phase.trains, group, source, keep=phase.start_from is None)
        lanes.start = FlatSet(flat.clone(), [frozenset(group)]) if uses_start else None
        counts = np.array(lanes.feed.steps(phase))
        rates = _rates(phase, counts)
        lanes.rate = rates.sum(0)
        rule = LaneUpdateRule(phase, lanes, group, flat)
        late: dict[str, LateWeight] = lanes.late if in_place else {}
        if not (rule.plain and phase.batches_per_step == 1 and phase.evaluate_at == "theta"):
            lanes.settle()
            losses = self._general(phase, index, flat, group, rule, counts, rates)
        elif (
            counts.max() >= LEAST_STEPS
            and not phase.hold_batch
            and self.steps.deferred(len(counts), group) is not None
        ):
            losses = self._deferred(phase, index, flat, group, late, counts, rates)
        else:
            lanes.settle()
            losses = self._sgd(phase, index, flat, group, counts, rates)
        lanes.losses += losses
        lanes.done += counts
        bad = lanes.non_finite(flat, late, group) | ~np.isfinite(losses)
        if not in_place:
            for weight in late.values():
                weight.settle()
        lanes.fail(np.flatnonzero(bad), "the loss, a gradient or a tensor became NaN or infinite in training")

    def _sgd(
        self,
        phase: TrainPhase,
        index: int,
        flat: Tensor,
        group: list[str],
        counts: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """Plain SGD: the compiled function subtracts lr times the mean gradient itself."""
        total = np.zeros(len(counts))
        sizes = np.array([self._fit(n) for n in (counts > np.arange(counts.max())[:, None]).sum(1).tolist()])
        calls: dict[int, Call] = {}
        step = 0
        for chunk in self.lanes.feed.chunks(phase, index):
            begin, stop = step, step + len(chunk.weights)
            while step < stop:
                size = int(sizes[step])
                ending = np.flatnonzero(sizes[step:stop] != size)
                end = step + int(ending[0]) if len(ending) else stop
                if size not in calls:
                    calls[size] = Call(self.steps, self.lanes, size, flat, group, sgd=True)
                total[:size] += calls[size].descend(chunk, slice(step - begin, end - begin), rates[step:end])
                step = end
        return total

    def _deferred(
        self,
        phase: TrainPhase,
        index: int,
        flat: Tensor,
        group: list[str],
        late: dict[str, LateWeight],
        counts: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """Plain SGD where the weights of wide first layers are left to ``late``."""
        call = DeferredCall(self.steps, self.lanes, flat, group, late, self.sizes)
        total = np.zeros(len(counts))
        step = 0
        for chunk in self.lanes.feed.chunks(phase, index, call.entries, max(MOST_ROWS // self.steps.size, 1)):
            stop = step + len(chunk.weights)
            total += call.descend(chunk, np.clip(counts - step, 0, stop - step), rates[step:stop])
            step = stop
        return total

    def _general(
        self,
        phase: TrainPhase,
        index: int,
        flat: Tensor,
        group: list[str],
        rule: LaneUpdateRule,
        counts: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """Any rule: gradients into flat rows, then the update."""
        total = np.zeros(len(counts))
        point = flat if phase.evaluate_at == "theta" else torch.empty_like(flat)
        other = None
        if isinstance(phase.evaluate_at, Mix):
            other = self.lanes.named(phase.evaluate_at.other)
            other.need(group, f"the set {phase.evaluate_at.other!r}")
        gradient = torch.zeros_like(flat)
        helpings = self.lanes.feed.train(phase, index)
        for s in range(int(counts.max())):
            active = int(np.count_nonzero(counts > s))
            if other is not None and isinstance(phase.evaluate_at, Mix):
                rule.mix(point[:active], flat[:active], other.flat[:active], phase.evaluate_at.alpha)
            elif isinstance(phase.evaluate_at, Lookahead):
                self._gradient(next(helpings), flat, gradient, group, active)
                rule.look(point[:active], flat[:active], gradient[:active], phase.evaluate_at.step)
            losses = self._gradient(next(helpings), point, gradient, group, active)
            total[:active] += losses
            rule.apply(s, active, gradient, rates[s, :active])
        return total

    def _gradient(
        self, helping: Helping, point: Tensor, gradient: Tensor, group: list[str], active: int
    ) -> np.ndarray:
        """Gradients of the mean losses at ``point`` into ``gradient``; the mean losses, float64 [active]."""
        size = self._fit(active)
        key = (size, point.data_ptr(), tuple(group))
        if key not in self._calls:
            self._calls[key] = Call(self.steps, self.lanes, size, point, group, sgd=False)
        call = self._calls[key]
        w = helping.weights[:size]
        scale = np.divide(1.0, w, out=np.zeros(size), where=w > 0)
        loss = np.zeros(size)
        for number, batch in enumerate(helping.batches):
            if number and not self._any_weight(batch, size):
                continue
            out = call(batch, scale)
            loss += out[0].cpu().numpy().astype(np.float64).reshape(-1)
            for name, grad in zip(group, out[1:], strict=True):
                place = self.lanes.layout.view(gradient[:size], name)
                if number:
                    place.add_(grad.view(place.shape))
                else:
                    place.copy_(grad.view(place.shape))
        mean: np.ndarray = (loss * scale)[:active]
        return mean

    @staticmethod
    def _any_weight(batch: dict[str, Tensor], size: int) -> bool:
        return bool(batch["weight"][:size].any())

    def _fit(self, active: int) -> int:
        """The smallest compiled number of lanes that holds so many."""
        return next(size for size in self.sizes if size >= active)

    # -- the other phases ------------------------------------------------------------------------------------

    def _move(self, phase: MovePhase) -> None:
        group = select(phase.group, self.steps.table)
        x, y = self.lanes.named(phase.moves), self.lanes.named(phase.toward)
        x.need(group, f"the set {phase.moves!r}")
        y.need(group, f"the set {phase.toward!r}")
        flat = x.flat if phase.moves == "theta" or phase.moves in self.lanes.copies else None
        if flat is None:
            flat = self.lanes.writable(phase.moves, group, x, keep=False)
        for r in self.lanes.layout.ranges(group):
            if phase.rate == 1:
                flat[:, r] = y.flat[:, r]
            else:
                flat[:, r] -= (flat[:, r] - y.flat[:, r]) * phase.rate

    def _combine(self, phase: CombinePhase) -> None:
        group = select(phase.group, self.steps.table)
        total = torch.zeros_like(self.lanes.rows)
        for k, term in enumerate(phase.terms):
            values = self.lanes.named(term.of)
            values.need(group, "a combined set")
            times: float | Tensor = term.times
            if term.per == "rate":
                with np.errstate(divide="ignore"):
                    times = lane_column(term.times / self.lanes.rate, total.device)
            for r in self.lanes.layout.ranges(group):
                part = values.flat[:, r] * times
                total[:, r] = part if k == 0 else total[:, r] + part
        ranges = self.lanes.layout.ranges(group)
        bad = non_finite(total, ranges).cpu().numpy()
        self.lanes.fail(np.flatnonzero(bad), f"the set {phase.makes!r} became NaN or infinite")
        made = FlatSet(total, [frozenset(group)])
        self.lanes.writable(phase.makes, group, made, keep=False)

    def _measure(self, at: str, metric: str) -> np.ndarray:
        """A metric of every lane's training rows, float64 [lanes]."""
        values = self.lanes.named(at)
        flat = self.lanes.theta
        if at != "theta":
            flat = flat.clone()
            for lane in range(len(flat)):
                k = min(lane, len(values.names) - 1)
                for r in self.lanes.layout.ranges(values.names[k]):
                    flat[lane, r] = values.flat[min(lane, len(values.flat) - 1), r]
        metrics = self.evaluate(flat)
        if metric not in metrics:
            raise UnknownNameError(
                f"the plan measures {metric!r}, which the task does not", mend=near(metric, metrics)
            )
        bad = ~np.isfinite(metrics[metric])
        self.lanes.fail(np.flatnonzero(bad), f"the {metric} of the set {at!r} is NaN or infinite")
        return metrics[metric]

    def evaluate(self, flat: Tensor, *, common: bool = False) -> dict[str, np.ndarray]:
        """Metrics of every lane's rows with its row of ``flat``: sums divided by the weight, float64 [lanes].

        With ``common`` all lanes take the first row, so that every layer is one product for all of them.
        """
        counts = -(-np.array(self.lanes.feed.counts) // self.steps.size)
        outputs = self.steps.graph("evaluate").outputs
        totals = {name: np.zeros(len(counts)) for name in outputs}
        calls: dict[int, Call] = {}
        for s, helping in enumerate(self.lanes.feed.in_order()):
            size = self._fit(int(np.count_nonzero(counts > s)))
            if size not in calls:
                calls[size] = Call(self.steps, self.lanes, size, flat, None, sgd=False, common=common)
            for name, value in zip(outputs, calls[size](helping.batches[0], None), strict=True):
                live = helping.weights[:size] > 0
                totals[name][:size] += np.where(live, value.cpu().numpy().reshape(-1), 0)
        weight = totals.pop("weight_sum")
        return {n.removesuffix("_sum"): t / weight for n, t in totals.items() if n.endswith("_sum")}

    def _choose(self, phase: ChoosePhase) -> None:
        group = select(phase.group, self.steps.table)
        losses = np.stack([self._measure(name, "loss") for name in phase.among])
        best = np.argmin(np.where(np.isnan(losses), math.inf, losses), axis=0)
        old = self.lanes.theta.clone() if "theta" in phase.among else self.lanes.theta
        for k, name in enumerate(phase.among):
            values = self.lanes.named(name)
            values.need(group, f"the set {name!r}")
            source = old if name == "theta" else values.flat
            for lane in np.flatnonzero(best == k):
                for r in self.lanes.layout.ranges(group):
                    self.lanes.theta[lane, r] = source[min(lane, len(source) - 1), r]
        for report, index in zip(self.lanes.reports, best, strict=True):
            report[phase.report] = float(index)


def _rates(phase: TrainPhase, counts: np.ndarray) -> np.ndarray:
    """Learning rate of each step and lane, float64 [steps, lanes]; 0 where a lane has ended."""
    step = np.arange(counts.max())[:, None]
    lr = np.full((len(step), len(counts)), phase.optimizer.lr)
    if phase.schedule == "linear":
        lr = lr * (1 - step / counts)
    return np.where(step < counts, lr, 0.0)


def measured(lanes: Lanes, steps: Steps, sizes: Sequence[int], *, common: bool) -> dict[str, np.ndarray]:
    """Metrics of every lane's rows with its own tensors, or all with the first's; float64 [lanes] each."""
    return _Runner(lanes, steps, sizes).evaluate(lanes.theta, common=common)
