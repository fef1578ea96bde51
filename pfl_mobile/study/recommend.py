"""Personalize or not, for whom and why: a recommendation from measured gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import override

from pfl_mobile.data.failures import named
from pfl_mobile.local.results import is_recall
from pfl_mobile.study.evaluation import Evaluation
from pfl_mobile.study.statistics import Interval, interval

#: Fewer users than this do not carry a rule for some of them.
FEW_USERS = 20

#: Fewer users than this all gain by chance with a probability above 1 %, so nothing is certain of them.
CERTAIN_USERS = 6

#: Share of users who may end worse before the recommendation asks for the guard.
MANY_WORSE = 0.2

_TRY = "Run one that makes some, for instance 'fedavg_finetune' or 'ditto'."


@dataclass(frozen=True)
class Recommendation:
    """What to do, with the evidence.

    Attributes:
        verdict: ``personalize``, ``personalize some``, ``do not personalize``, ``not enough data`` with fewer than
            ``CERTAIN_USERS`` users, ``not measured`` where the strategy makes no models of users' own, or ``training
            failed`` where nothing may be concluded (``Evaluation.no_verdict``); no figure is told then.
        min_examples: personalize users with at least so many examples; None for all or nobody.
        users: how many of the study's users that is.
        expected_gain: mean gain of those users, in points or in the metric's units; where a rule chose them,
            measured on users that the rule was not chosen on. None where training failed.
        appeal: share of users for whom the shared model is at least as good as their own. None where training failed.
        heterogeneity: what was measured of it: ``label_divergence`` in bits (mean over users; None for real
            values), ``shared_spread`` (standard deviation of the shared model's metric over users, and
            ``sampling_spread``, what test sets of their sizes would show anyway).
        examples: 10th, 50th and 90th percentile of training examples a user.
        why: sentences.
        failed: users that failed, when they were measured or in rounds, and why.
    """

    verdict: str
    min_examples: int | None
    users: int
    expected_gain: Interval | None
    appeal: float | None
    heterogeneity: dict[str, float | None]
    examples: dict[str, float]
    why: Sequence[str]
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        gain = self.expected_gain and self.expected_gain.to_json()
        return {**vars(self), "expected_gain": gain, "why": list(self.why), "failed": dict(self.failed)}

    @override
    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"- {sentence}" for sentence in self.why)])


def recommend(found: Evaluation, label_divergence: np.ndarray | None = None) -> Recommendation:
    """A recommendation from an evaluation.

    Args:
        found: the shared model against each user's own.
        label_divergence: of each user's labels from everybody's (``statistics.divergence``), [n].
    """
    if found.no_verdict is not None:
        return training_failed(found.no_verdict, found.failed, label_divergence)
    gains, everyone = found.gains, found.gain
    appeal = float((gains <= 0).mean())
    low, middle, high = np.percentile(found.train_examples, [10, 50, 90])
    sampling = _sampling_spread(found)
    heterogeneity = {
        "label_divergence": None if label_divergence is None else float(np.mean(label_divergence)),
        "shared_spread": float(found.shared.std()),
        "sampling_spread": sampling,
    }
    why = [_gain_sentence(found, everyone), _appeal_sentence(appeal)]
    if label_divergence is not None:
        why.append(
            f"Users' labels differ by {heterogeneity['label_divergence']:.3f} bits on average (0: alike, 1: disjoint)."
        )
    if sampling is not None:
        more = "more than" if found.shared.std() > 1.25 * sampling else "hardly more than"
        why.append(
            f"The shared model's {found.metric} varies over users by {found.shared.std():.2f}, {more} test sets of "
            f"their sizes would show anyway ({sampling:.2f})."
        )
    verdict, least, chosen, expected = "do not personalize", None, 0, everyone
    if not found.has_own:
        verdict = "not measured"
        why = [f"The strategy makes no models of users' own, so all have the shared one. {_TRY}", *why[2:]]
    elif len(gains) < CERTAIN_USERS:
        verdict = "not enough data"
        why.append(
            f"{len(gains)} users are too few for a gain or a harm to be certain; measure {CERTAIN_USERS} or more."
        )
    elif everyone.low > 0:
        verdict, chosen = "personalize", len(gains)
    else:
        rule = _rule(found)
        if rule is not None:
            least, chosen, expected = rule
            verdict = "personalize some"
            why.append(
                f"Users with {least} examples or more gain {expected} (measured on users the rule was not chosen on)."
            )
    failed = {**found.trainings.sometimes, **found.failed}
    if failed:
        why.append(
            f"{len(failed)} users failed, in {len(found.failed)} cases so that they are in none of the figures: "
            f"{named(failed)}."
        )
    if verdict == "do not personalize":
        why.append(
            f"It does harm, certain at {100 * everyone.level:.0f} %, and those with many examples gain nothing certain."
            if everyone.high < 0
            else "No gain is certain, neither for all users nor for those with many examples."
        )
    elif chosen and found.users_worse > MANY_WORSE * len(gains):
        why.append(f"{found.users_worse} of {len(gains)} users end worse: keep the guard of the plan on.")
    return Recommendation(
        verdict,
        least,
        chosen,
        expected,
        appeal,
        heterogeneity,
        {"p10": float(low), "median": float(middle), "p90": float(high)},
        tuple(why),
        failed,
    )


def training_failed(
    why: str, failed: Mapping[str, str], label_divergence: np.ndarray | None = None
) -> Recommendation:
    """The recommendation where nothing may be concluded.

    Args:
        why: a clause.
        failed: users that failed, and why.
        label_divergence: as for ``recommend``; it is of the data alone.
    """
    reasons = list(dict.fromkeys(failed.values()))
    return Recommendation(
        "training failed",
        None,
        0,
        None,
        None,
        {"label_divergence": None if label_divergence is None else float(np.mean(label_divergence))},
        {},
        (
            f"Nothing can be concluded: {why}.",
            *(f"One reason: {reason}." for reason in reasons[:3]),
            "Where values are not finite or losses grow, lower the learning rate, set clip, or scale the inputs and "
            "targets to about 1; otherwise check the examples of these users.",
        ),
        dict(failed),
    )


def _rule(found: Evaluation) -> tuple[int, int, Interval] | None:
    """The least number of examples from which on a gain is certain: (it, users, their gain); None for none.

    It is chosen on every second user and must hold on the others.
    """
    count = len(found.users)
    if count < FEW_USERS:
        return None
    order = np.random.default_rng(0).permutation(count)
    fit, check = order[::2], order[1::2]
    for share in (0.25, 0.5, 0.75):
        least = int(np.ceil(np.quantile(found.train_examples, share)))
        many = found.train_examples >= least
        parts = [found.gains[part][many[part]] for part in (fit, check)]
        if min(len(p) for p in parts) < FEW_USERS // 4:
            return None
        first, second = (interval(p, level=found.level) for p in parts)
        if first.low > 0 and second.low > 0:
            return least, int(many.sum()), second
    return None


def _sampling_spread(found: Evaluation) -> float | None:
    """Standard deviation over users that recalls on test sets of their sizes show if all users are alike."""
    if not is_recall(found.metric):
        return None
    p = float(np.average(found.shared, weights=found.test_examples)) / 100
    return float(100 * np.sqrt(p * (1 - p) * np.mean(1 / found.test_examples)))


def _gain_sentence(found: Evaluation, gain: Interval) -> str:
    unit = "points of " if is_recall(found.metric) else ""
    return (
        f"Over {len(found.users)} users personalization gains {gain} {unit}{found.metric}; "
        f"{found.users_better} better, {found.users_worse} worse."
    )


def _appeal_sentence(appeal: float) -> str:
    return f"For {100 * appeal:.0f} % of the users the shared model is at least as good as their own."
