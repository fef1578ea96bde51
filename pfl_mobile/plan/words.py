"""A plan in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pfl_mobile.plan.phases import (
    AssignSlotsPhase,
    ChoosePhase,
    CombinePhase,
    Lookahead,
    MeasurePhase,
    MemorizePhase,
    Mix,
    MovePhase,
    RepeatPhase,
    TrainPhase,
)
from pfl_mobile.plan.schema import Guard, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable


def plan_words(plan: Plan) -> list[str]:
    """What a device does with the plan, a line a step."""
    begin = "go on from the adopted state" if plan.start == "current" else "start from the shipped values"
    lines = [f"{begin}; hold out the newest {100 * plan.holdout:g} % of the examples"]
    lines += _phases(plan.phases)
    if plan.serve != "theta":
        serve = plan.serve
        what = (
            repr(serve)
            if isinstance(serve, str)
            else f"{serve.alpha:g} {serve.one} + {1 - serve.alpha:g} {serve.other}"
        )
        lines.append(f"predict with {what}")
    lines.append(_guard(plan.guard))
    if plan.remember_holdout:
        lines.append("once adopted, memorize the held-out examples too")
    sends = f"send the change of {', '.join(plan.upload)}" if plan.upload else "send nothing"
    if plan.upload_copies:
        sends += f", and of the copies {', '.join(plan.upload_copies)}"
    return [*lines, sends]


def _phases(phases: Iterable[object], indent: str = "") -> list[str]:
    lines = []
    for phase in phases:
        if isinstance(phase, RepeatPhase):
            lines.append(f"{indent}{phase.times} times:")
            lines += _phases(phase.phases, indent + "  ")
        elif isinstance(phase, AssignSlotsPhase):
            lines.append(
                f"{indent}give free slots of {phase.module!r} to unknown words seen {phase.min_count} "
                "times or more"
            )
        elif isinstance(phase, MemorizePhase):
            lines.append(f"{indent}write the examples into the memory {phase.module!r}")
        elif isinstance(phase, MovePhase):
            lines.append(f"{indent}move {phase.moves} towards {phase.toward} by a factor of {phase.rate:g}")
        elif isinstance(phase, CombinePhase):
            terms = (
                f"{t.times:g} {t.of}" + (" / learning rates" if t.per == "rate" else "") for t in phase.terms
            )
            lines.append(f"{indent}set {phase.makes} to {' + '.join(terms)}")
        elif isinstance(phase, MeasurePhase):
            lines.append(
                f"{indent}measure the {phase.metric} of {phase.at} and report it as {phase.report!r}"
            )
        elif isinstance(phase, ChoosePhase):
            lines.append(
                f"{indent}go on from what fits best of {', '.join(phase.among)}; report {phase.report!r}"
            )
        elif isinstance(phase, TrainPhase):
            lines.append(indent + _train(phase))
    return lines


def _train(phase: TrainPhase) -> str:
    what = ", ".join(phase.group) if phase.group != ("*",) else "all tensors"
    long = f"{phase.epochs} epochs" if phase.steps is None else f"{phase.steps} steps"
    if phase.max_steps is not None:
        long += f", {phase.max_steps} steps at most"
    optimizer = phase.optimizer
    words = [f"train {what}", f"for {long}", f"with {optimizer.kind}, lr {optimizer.lr:g}"]
    if phase.schedule == "linear":
        words.append("falling to 0")
    if optimizer.weight_decay:
        words.append(f"weight decay {optimizer.weight_decay:g}")
    if phase.clip is not None:
        words.append(f"gradients clipped to {phase.clip:g}")
    if phase.batches_per_step != 1:
        words.append(f"{phase.batches_per_step} batches a step")
    if phase.hold_batch:
        words.append("all on the same batch")
    if phase.trains != "theta":
        words.append(f"into the copy {phase.trains!r}")
    if phase.start_from is not None:
        words.append(f"starting from {phase.start_from}")
    if phase.anchor is not None:
        words.append(f"held near {phase.anchor} (mu {phase.mu})")
    if isinstance(phase.evaluate_at, Mix):
        words.append(f"gradients at a mix with {phase.evaluate_at.other}")
    elif isinstance(phase.evaluate_at, Lookahead):
        words.append(f"gradients one step of {phase.evaluate_at.step:g} ahead")
    if phase.control is not None:
        words.append(f"plus control {phase.control!r}")
    if phase.mask is not None:
        words.append(f"masked by {phase.mask!r}")
    return ", ".join(words)


def _guard(guard: Guard) -> str:
    better = "falls" if guard.lower_is_better else "rises"
    line = f"adopt the result only if {guard.metric} {better} on the held-out examples"
    if guard.tolerance:
        line += f" (or gets worse by less than {guard.tolerance:g})"
    if guard.min_examples > 1:
        line += f"; train nothing with fewer than {guard.min_examples} of them"
    if guard.appeal is not None:
        line += f"; train nothing when the shipped model already reaches {guard.appeal:g}"
    return line
