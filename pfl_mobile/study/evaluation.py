"""What a study found out about its users: the shared model against each user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pfl_mobile.data.failures import counted, named
from pfl_mobile.errors import NoExamplesError, TrainingFailedError
from pfl_mobile.plan.schema import LOWER_IS_BETTER
from pfl_mobile.study.statistics import Interval, interval

#: Where a larger share of the users failed, or of the trainings in the rounds, there is no verdict on the others.
MOST_FAILED = 0.2

#: How much larger a user's loss on its own training examples may be after training, in parts of what it was before.
_NO_LARGER = 0.01

#: A round whose mean training loss is so many times that of any user before training has diverged, wherever it ends.
_DIVERGED = 10.0


@dataclass(frozen=True)
class Trainings:
    """How training went in the rounds, over all users, measured or not.

    Attributes:
        rounds: trainings of devices in all rounds, failed ones included.
        failed: users that failed in every round that they took part in, and why.
        sometimes: users that failed in some of their rounds, in how many and why.
        lost: trainings that failed of users who did not fail in all their rounds.
        largest_loss: the largest mean training loss of a round; None where nothing was trained.
    """

    rounds: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    sometimes: Mapping[str, str] = field(default_factory=dict)
    lost: int = 0
    largest_loss: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every user on that user's test examples, which no training has seen.

    Recalls (``top1``, ...) are in percent and gains in points; other metrics are as measured. A gain is positive
    where personalization helps, whichever way the metric points.

    Attributes:
        metric: what is compared.
        users: ids of the users that were measured: they have test examples, and did not fail.
        groups: each user's group; empty where there are none.
        train_examples: of each user, int64 [n].
        test_examples: of each user, int64 [n]; for tokens, how many labels count.
        shared: metric of the shared model, float64 [n].
        personal: metric of the user's own model, float64 [n]; equal to ``shared`` where the strategy makes none.
        general_shared, general_personal: on examples of many users: what personalization forgets. Own models only;
            None where there are none, or no shared model to compare with.
        level: of the intervals.
        failed: users that are in none of the figures, and why, as ``<error>: <reason>``: their rows cannot be used,
            training failed in all their rounds or when their own model was made, or a model of theirs is not finite.
        shared_is_trained: False where the shared model has personal layers as they were shipped, which makes it no
            fair measure of what one model for all can do.
        has_own: False where the strategy makes no models of users' own.
        personal_steps: optimizer steps that a user's own model took after the rounds, mean over users.
        untested: users that have no test examples, so that nothing else is told of them.
        trainings: how training went in the rounds.
        losses: of each user on its training examples, or 256 of more, before any training and with the model that it
            ends with, float64 [n, 2]; None where that was not measured.
        beside: why nothing can be concluded from the shared model, where that is another run's; None where it can.
    """

    metric: str
    users: Sequence[str]
    groups: Sequence[str]
    train_examples: np.ndarray
    test_examples: np.ndarray
    shared: np.ndarray
    personal: np.ndarray
    general_shared: float | None = None
    general_personal: np.ndarray | None = None
    level: float = 0.95
    failed: Mapping[str, str] = field(default_factory=dict)
    shared_is_trained: bool = True
    has_own: bool = True
    personal_steps: float = 0.0
    untested: Sequence[str] = ()
    trainings: Trainings = field(default_factory=Trainings)
    losses: np.ndarray | None = None
    beside: str | None = None

    def __post_init__(self) -> None:
        """Refuse an evaluation of nobody (NoExamplesError, TrainingFailedError)."""
        if len(self.users):
            return
        if not self.failed:
            raise NoExamplesError("no user has test examples", mend="hold out a part of each user's examples")
        error = TrainingFailedError(
            f"all {len(self.failed)} users failed ({counted(self.failed.values())}): {named(self.failed)}; "
            f"the first: {next(iter(self.failed.values()))}",
            mend="lower the learning rate or set clip where values are not finite; otherwise check the examples",
        )
        error.failed = dict(self.failed)
        raise error

    @property
    def no_verdict(self) -> str | None:
        """Why nothing may be concluded from the figures; None where they stand.

        More than ``MOST_FAILED`` of the users failed, or of the trainings in the rounds; or training did not work: it
        went through losses many times those before it, or left most users' own models a larger one on their own
        training examples. (One model for all may do that to users who differ, and is no failure of training.)
        """
        failed, trainings = self.failed, self.trainings
        everyone = len(self.users) + len(failed)
        if len(failed) > MOST_FAILED * everyone:
            return (
                f"{len(failed)} of {everyone} users failed, more than {100 * MOST_FAILED:.0f} % "
                f"({counted(failed.values())}): {named(failed)}"
            )
        if trainings.lost > MOST_FAILED * trainings.rounds:
            return (
                f"{trainings.lost} of {trainings.rounds} trainings in the rounds failed, more than "
                f"{100 * MOST_FAILED:.0f} %: {named({**trainings.failed, **trainings.sometimes})}"
            )
        if self.losses is not None and trainings.largest_loss is not None:
            worst = float(self.losses[:, 0].max())
            if trainings.largest_loss > _DIVERGED * worst > 0:
                return (
                    f"training diverged: the mean training loss of a round was {trainings.largest_loss:.4g}, that of "
                    f"no user above {worst:.4g} before training"
                )
        larger = self.users_untaught
        if self.has_own and larger > len(self.users) / 2:
            assert self.losses is not None
            before, after = self.losses.mean(axis=0)
            return (
                f"training made the loss on users' own training examples larger for {larger} of {len(self.users)} "
                f"users (mean {before:.4g} before, {after:.4g} after)"
            )
        return self.beside

    @property
    def users_untaught(self) -> int:
        """Users whose loss on their own training examples is larger than before any training."""
        if self.losses is None:
            return 0
        before, after = self.losses.T
        return int((after > before + _NO_LARGER * np.abs(before)).sum())

    def against(self, other: Evaluation) -> Evaluation:
        """The same with the shared model of another evaluation, of the users that both have measured.

        Users that failed in the other one have nothing to be compared with, so they have failed here too.
        """
        place = {user: i for i, user in enumerate(other.users)}
        kept = [i for i, user in enumerate(self.users) if user in place]
        missing = [user for user in self.users if user not in place]
        failed = {**self.failed, **{u: other.failed.get(u, "NoExamplesError: not measured") for u in missing}}
        both = [place[self.users[i]] for i in kept]
        return replace(
            self,
            users=[self.users[i] for i in kept],
            groups=[self.groups[i] for i in kept] if self.groups else [],
            train_examples=self.train_examples[kept],
            test_examples=self.test_examples[kept],
            shared=other.shared[both],
            personal=self.personal[kept],
            losses=None if self.losses is None else self.losses[kept],
            failed=failed,
            beside=other.no_verdict and f"of the one model for all, {other.no_verdict}",
        )

    @property
    def sign(self) -> float:
        """1 where larger is better, else -1."""
        return -1.0 if self.metric in LOWER_IS_BETTER else 1.0

    @property
    def gains(self) -> np.ndarray:
        """How much better each user's own model is, float64 [n]."""
        return np.asarray(self.sign * (self.personal - self.shared), np.float64)

    @property
    def global_acc(self) -> float:
        """Mean over users with the shared model."""
        return float(self.shared.mean())

    @property
    def personalized_acc(self) -> float:
        """Mean over users with their own models."""
        return float(self.personal.mean())

    @property
    def gain(self) -> Interval:
        """Mean gain with its interval."""
        return interval(self.gains, level=self.level)

    @property
    def users_better(self) -> int:
        """Users whose own model is better."""
        return int((self.gains > 0).sum())

    @property
    def users_worse(self) -> int:
        """Users whose own model is worse."""
        return int((self.gains < 0).sum())

    @property
    def worst_decile_gain(self) -> float:
        """Mean gain of the tenth of the users who gain least, at least one."""
        return float(np.sort(self.gains)[: max(1, -(-len(self.gains) // 10))].mean())

    @property
    def worst_decile(self) -> float:
        """Mean over the tenth of the users whose own models are worst, at least one."""
        order = np.sort(self.sign * self.personal)[: max(1, -(-len(self.users) // 10))]
        return float(self.sign * order.mean())

    @property
    def per_group(self) -> dict[str, dict[str, Any]]:
        """For each group: users, mean with the shared model and with their own, and the gain's interval."""
        out: dict[str, dict[str, Any]] = {}
        for group in sorted(set(self.groups)):
            rows = np.array([g == group for g in self.groups])
            out[group] = {
                "users": int(rows.sum()),
                "global_acc": float(self.shared[rows].mean()),
                "personalized_acc": float(self.personal[rows].mean()),
                "gain": interval(self.gains[rows], level=self.level),
            }
        return out

    @property
    def worst_group_improvement(self) -> float | None:
        """How much better the worst group is off with personal models than the worst was with the shared one.

        The worst group may be another one afterwards. None where there are no groups.
        """
        groups = self.per_group
        if not groups:
            return None
        before = min(self.sign * g["global_acc"] for g in groups.values())
        after = min(self.sign * g["personalized_acc"] for g in groups.values())
        return float(after - before)

    @property
    def forgetting(self) -> float | None:
        """How much worse users' own models are on many users' examples than the shared one, on average."""
        if self.general_shared is None or self.general_personal is None:
            return None
        return float(self.sign * (self.general_shared - self.general_personal.mean()))

    def per_user(self) -> list[dict[str, Any]]:
        """One record a user."""
        return [
            {
                "user": user,
                "group": self.groups[i] if self.groups else None,
                "train_examples": int(self.train_examples[i]),
                "test_examples": int(self.test_examples[i]),
                "global": float(self.shared[i]),
                "personalized": float(self.personal[i]),
                "gain": float(self.gains[i]),
            }
            for i, user in enumerate(self.users)
        ]

    def spread(self) -> dict[str, float]:
        """Standard deviation over users, and 10th, 50th and 90th percentile, of the personal models."""
        low, middle, high = np.percentile(self.personal, [10, 50, 90])
        found = {"std": self.personal.std(), "p10": low, "median": middle, "p90": high}
        return {name: float(value) for name, value in found.items()}

    def to_json(self, *, users: bool = False) -> dict[str, Any]:
        """Plain values; with ``users`` the record of every user too."""
        out: dict[str, Any] = {
            "metric": self.metric,
            "users": len(self.users),
            "global_acc": self.global_acc,
            "global_is_trained": self.shared_is_trained,
            "personalized_acc": self.personalized_acc,
            "gain": self.gain.to_json(),
            "users_better": self.users_better,
            "users_worse": self.users_worse,
            "worst_decile": self.worst_decile,
            "worst_decile_gain": self.worst_decile_gain,
            "spread": self.spread(),
            "per_group": {name: {**g, "gain": g["gain"].to_json()} for name, g in self.per_group.items()},
            "worst_group_improvement": self.worst_group_improvement,
            "forgetting": self.forgetting,
            "personal_steps": self.personal_steps,
            "no_verdict": self.no_verdict,
            "failed": dict(self.failed),
            "failed_in_rounds": dict(self.trainings.sometimes),
            "trainings": self.trainings.rounds,
            "untested": list(self.untested),
        }
        return out | ({"per_user": self.per_user()} if users else {})
