"""A plan in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Guard, Plan


def plan_words(plan: Plan) -> list[str]:
    """What a device does with the plan, a line a step."""
    begin = "go on from the adopted state" if plan.start == "current" else "start from the shipped values"
    lines = [f"{begin}; hold out the newest {100 * plan.holdout:g} % of the examples"]
    lines += [line for phase in plan.phases for line in phase.words()]
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
