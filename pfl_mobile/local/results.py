"""What personalization did for a user, and for many users together."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import NoExamplesError
from pfl_mobile.plan.schema import LOWER_IS_BETTER

if TYPE_CHECKING:
    from pfl_mobile.local.report import TrainReport


@dataclass(frozen=True)
class UserResult:
    """What personalization did for one user; it holds none of the user's words.

    Attributes:
        user: the user's id.
        engine: that trained and measured.
        status: ``adopted``, ``kept``, ``skipped`` or ``cancelled``, see ``TrainReport``.
        examples: how many there were: ``all``, ``train``, ``holdout`` (for the guard), ``test``, ``older`` (beyond the
            newest that the bundle's ``max_examples`` keeps); and of them all, texts with ``no_words``, and texts with
            ``unknown_words`` only, for which the shipped vocabulary has nothing to learn from.
        before: metrics on the test part with the state that served until now.
        after: with the state that serves now; equal to ``before`` unless adopted.
        general_before: metrics on other people's examples with the state that served until now.
        general_after: with the state that serves now: what was forgotten.
        guard: its decision, see ``GuardReport``; None when cancelled.
        steps: optimizer steps.
        ms_per_step: median, in milliseconds; None when there was no step.
        peak_mb: largest memory of this process so far, in MB; None where the system does not say.
        slots: vocabulary slots that have a word now.
        seconds: training and the measurements before and after.
        report: the trainer's own report, with the state that serves now; not part of the JSON.
    """

    user: str
    engine: str
    status: str
    examples: Mapping[str, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    general_before: Mapping[str, float] | None
    general_after: Mapping[str, float] | None
    guard: Mapping[str, Any] | None
    steps: int
    ms_per_step: float | None
    peak_mb: float | None
    slots: int
    seconds: float
    report: TrainReport = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values of every field but ``report``, and its notes and warnings."""
        out = {name: value for name, value in vars(self).items() if name != "report"}
        out = {name: dict(v) if isinstance(v, Mapping) else v for name, v in out.items()}
        out["notes"] = [*self.report.notes, *(w.message for w in self.report.warnings)]
        return out


def summarize(results: Sequence[UserResult]) -> dict[str, Any]:
    """Means over users, each user counting the same.

    Recalls (``top1``, ``top3``, ...) are in percent, gains in points; other metrics are as measured.
    A user is better or worse by top-1 recall, or by the guard's metric where the bundle has no top-1.
    ``worst_decile_gain`` is the mean gain of the tenth of the users (at least one) who gained least.

    Returns:
        ``users``; for every metric M ``M_before``, ``M_after`` and, where general examples were measured,
        ``general_M_before``, ``general_M_after``; ``users_better``, ``users_worse``, ``worst_decile_gain``;
        ``adopted`` (users whose state was adopted); ``engine``; ``ms_per_step`` (median over users).

    Raises:
        NoExamplesError: there is no result.
    """
    if not results:
        raise NoExamplesError("there is no user to sum up", mend="personalize at least one")
    out: dict[str, Any] = {"users": len(results)}
    for prefix, before, after in (
        ("", [r.before for r in results], [r.after for r in results]),
        ("general_", [r.general_before for r in results], [r.general_after for r in results]),
    ):
        for name in sorted({n for metrics in before if metrics for n in metrics}):
            out[f"{prefix}{name}_before"] = _mean(name, before)
            out[f"{prefix}{name}_after"] = _mean(name, after)
    metric = "top1"
    if not all("top1" in r.before for r in results):
        metric = next((r.guard["metric"] for r in results if r.guard), "loss")
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    gains = sorted(
        sign * scale(metric) * (r.after[metric] - r.before[metric]) for r in results if metric in r.before
    )
    worst = gains[: max(1, -(-len(gains) // 10))]
    out |= {
        "users_better": sum(g > 0 for g in gains),
        "users_worse": sum(g < 0 for g in gains),
        "worst_decile_gain": statistics.fmean(worst) if worst else None,
        "adopted": sum(r.status == "adopted" for r in results),
        "engine": "+".join(sorted({r.engine for r in results})),
    }
    times = [r.ms_per_step for r in results if r.ms_per_step is not None]
    return out | {"ms_per_step": statistics.median(times) if times else None}


def peak_mb() -> float | None:
    """The largest resident memory of this process so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def is_recall(metric: str) -> bool:
    """Whether a metric is a recall (``top1``, ``top3``, ...), which is shown in percent."""
    return metric.startswith("top") and metric[3:].isdecimal()


def scale(metric: str) -> float:
    """What a metric is multiplied by to be shown: 100 for recalls, else 1."""
    return 100.0 if is_recall(metric) else 1.0


def _mean(name: str, metrics: Sequence[Mapping[str, float] | None]) -> float | None:
    values = [m[name] for m in metrics if m is not None and name in m]
    return scale(name) * statistics.fmean(values) if values else None
