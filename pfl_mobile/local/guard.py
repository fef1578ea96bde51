"""The guard: a trained state is adopted only if it is better on the device's own newest examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Guard

Reason = Literal["better", "not_better", "within_tolerance", "too_few_examples", "good_enough", "not_finite"]


@dataclass(frozen=True)
class GuardReport:
    """What the guard decided; it holds no data and may be sent.

    Attributes:
        metric: the measured quantity.
        before: its value with the state that served until now; None when it was not measured.
        after: its value with the trained state; None when nothing was trained.
        examples: held-out examples.
        adopted: whether the trained state replaces the old one.
        reason: why.
    """

    metric: str
    before: float | None
    after: float | None
    examples: int
    adopted: bool
    reason: Reason


def before_training(
    guard: Guard, value: float | None, shipped: float | None, examples: int
) -> GuardReport | None:
    """The report when nothing should be trained, else None.

    Args:
        guard: the plan's guard.
        value: the metric of the state that serves now (None when there was nothing to measure it on).
        shipped: the metric of the shipped model (or the aggregator's latest), which the appeal looks at.
        examples: held-out examples.
    """
    if examples < guard.min_examples or value is None:
        return GuardReport(guard.metric, value, None, examples, False, "too_few_examples")
    if guard.appeal is not None and shipped is not None:
        enough = shipped <= guard.appeal if guard.lower_is_better else shipped >= guard.appeal
        if enough:
            return GuardReport(guard.metric, value, None, examples, False, "good_enough")
    return None


def decide(guard: Guard, before: float, after: float, examples: int) -> GuardReport:
    """Compare before and after, in float64.

    gain = before - after where lower is better, after - before otherwise; adopted if gain > 0, or if
    gain > -tolerance. A value that is not finite is never adopted.
    """
    if examples < guard.min_examples:
        return GuardReport(guard.metric, before, after, examples, False, "too_few_examples")
    if not math.isfinite(after):
        return GuardReport(guard.metric, before, after, examples, False, "not_finite")
    gain = before - after if guard.lower_is_better else after - before
    if gain > 0 or not math.isfinite(before):
        return GuardReport(guard.metric, before, after, examples, True, "better")
    if gain > -guard.tolerance:
        return GuardReport(guard.metric, before, after, examples, True, "within_tolerance")
    return GuardReport(guard.metric, before, after, examples, False, "not_better")
