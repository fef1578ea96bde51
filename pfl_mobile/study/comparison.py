"""What strategies side by side cost and bring: as records, as a table and as plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.data.failures import kind, named
from pfl_mobile.errors import (
    CohortFailedError,
    NoExamplesError,
    NonFiniteError,
    TooFewUpdatesError,
    TrainingFailedError,
)
from pfl_mobile.privacy.limits import rounded_up
from pfl_mobile.study import plots
from pfl_mobile.study.statistics import interval, student_interval

if TYPE_CHECKING:
    from pfl_mobile.study.evaluation import Evaluation

#: The strategy that gains are measured from: one model for all.
BASELINE = "fedavg"


@dataclass
class Compared:
    """One strategy over all seeds.

    Attributes:
        name: of the strategy.
        evaluations: one for each seed.
        costs: of the run with each seed, see ``StudyResult.costs``.
        losses: mean training loss of each round, with the first seed.
        privacy: what its rounds would guarantee with secure noise, of the seed that cost most; None without privacy.
        begins_with: the strategy whose trained model it begins with; what that cost comes on top, see
            ``Comparison.rows``.
        error: why there are no figures, ``<error>: <reason>``: it did not run, or its training failed; else None.
        failed: users that failed, where training did, and why.
    """

    name: str
    evaluations: list[Evaluation] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    privacy: dict[str, Any] | None = None
    begins_with: str | None = None
    error: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed_users(self) -> dict[str, str]:
        """Users that failed with any seed, so that they are in none of its figures, and why."""
        found = dict(self.failed)
        for evaluation in self.evaluations:
            found |= evaluation.failed
        return found


@dataclass(frozen=True)
class Comparison:
    """Strategies side by side; the first is ``fedavg`` of everything, what gains are measured from.

    Attributes:
        data: its name.
        settings: that all strategies have, see ``compare.common_settings``.
        rounds: of each run.
        seeds: one run of each strategy with each.
        results: by name of the strategy.
    """

    data: str
    settings: Mapping[str, Any]
    rounds: int
    seeds: Sequence[int]
    results: Mapping[str, Compared]

    def rows(self) -> list[dict[str, Any]]:
        """One record for each strategy.

        ``global_acc`` is None where the shared model has untrained personal layers. ``personalized_acc`` is the mean
        over users (then over seeds) of each user's own model, ``gain`` that minus the same with the baseline, with a
        95 % interval: over users with one seed (bootstrap), over seeds with more (Student's t). ``privacy`` is the
        statement of its rounds (``StudyResult.privacy``), to which that of ``begins_with`` adds up.

        ``failed`` are the users that are in none of its figures, and why, with any seed; the means are over the others,
        and gains over those that the baseline has measured too.

        ``steps`` are those of all merged devices in all rounds, ``personal_steps`` those that a user's own model took
        afterwards, mean over users. ``bytes_up_full_sync``, as in ``StudyResult.costs``, is None where a strategy is
        not about sending less. ``beginning`` has the costs of the rounds of ``begins_with``, which are in none of
        the others.
        """
        return self._rows

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        base = self.results[BASELINE].evaluations
        return [self._row(found, base) for found in self.results.values()]

    def _row(self, found: Compared, base: Sequence[Evaluation]) -> dict[str, Any]:
        evaluations, costs = found.evaluations, found.costs
        if found.error is not None:
            return {"strategy": found.name, "error": found.error, "failed": found.failed_users}

        def mean(values: Sequence[float | None]) -> float | None:
            known = [v for v in values if v is not None]
            if len(known) == 1:
                return known[0]  # a count of users stays one
            return float(np.mean(known)) if known else None

        gains = [e.against(b) for e, b in zip(evaluations, base, strict=True)]
        low, high = _gain_interval(gains)
        return {
            "strategy": found.name,
            "error": None,
            "metric": evaluations[0].metric,
            "global_acc": mean([e.global_acc if e.shared_is_trained else None for e in evaluations]),
            "personalized_acc": mean([e.personalized_acc for e in evaluations]),
            "gain": mean([float(e.gains.mean()) for e in gains]),
            "gain_low": low,
            "gain_high": high,
            "users_better": mean([e.users_better for e in gains]),
            "users_worse": mean([e.users_worse for e in gains]),
            "worst_decile": mean([e.worst_decile for e in evaluations]),
            "std_over_users": mean([e.spread()["std"] for e in evaluations]),
            "worst_group": mean([_worst_group(e) for e in evaluations]),
            "worst_group_improvement": mean([e.worst_group_improvement for e in gains]),
            "forgetting": mean([e.forgetting for e in evaluations]),
            "bytes_up": mean([c["bytes_up"] for c in costs]),
            "bytes_down": mean([c["bytes_down"] for c in costs]),
            "bytes_up_per_device": mean([c["bytes_up_per_device"] for c in costs]),
            "bytes_up_full_sync": mean([c.get("bytes_up_full_sync") for c in costs]),
            "steps": mean([c["steps"] for c in costs]),
            "personal_steps": mean([e.personal_steps for e in evaluations]),
            "failures": mean([c["failures"] for c in costs]),
            "failed": found.failed_users,
            "seconds": mean([c["seconds"] for c in costs]),
            "privacy": found.privacy,
            "begins_with": found.begins_with,
            "beginning": None if found.begins_with is None else self._beginning(found.begins_with),
        }

    def _beginning(self, name: str) -> dict[str, float]:
        costs = self.results[name].costs
        names = ("bytes_up", "bytes_down", "bytes_up_per_device", "steps", "seconds")
        return {cost: float(np.mean([c[cost] for c in costs])) for cost in names}

    def to_json(self, *, users: bool = False) -> dict[str, Any]:
        """Plain values; with ``users`` every user's record too."""
        out: dict[str, Any] = {
            "data": self.data,
            "study": dict(self.settings),
            "rounds": self.rounds,
            "seeds": list(self.seeds),
            "baseline": BASELINE,
            "strategies": self.rows(),
        }
        if users:
            out["evaluations"] = {
                name: [e.to_json(users=True) for e in found.evaluations]
                for name, found in self.results.items()
            }
        return out

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and cells for people, one row a strategy."""
        rows = [r for r in self.rows() if r["error"] is None]
        columns = ["strategy", rows[0]["metric"], "gain (95 %)", "better / worse", "worst tenth", "std"]
        grouped = any(r["worst_group"] is not None for r in rows)
        columns += ["worst group"] if grouped else []
        private = self.privacy is not None
        columns += ["epsilon"] if private else []
        some_failed = any(r["failed"] for r in rows)
        columns += ["failed users"] if some_failed else []
        columns += ["forgetting", "kB up / device / round", "steps in rounds", "steps after / user", "s"]
        cells = []
        for r in rows:

            def number(value: float, sign: str = "", metric: str = r["metric"]) -> str:
                return plots.number(metric, value, sign)

            gain = number(r["gain"], "+")
            if not math.isnan(r["gain_low"]):  # one user has no interval
                gain += f" ({number(r['gain_low'], '+')} to {number(r['gain_high'], '+')})"
            line = [r["strategy"], number(r["personalized_acc"]), "-" if r["strategy"] == BASELINE else gain]
            line += [f"{r['users_better']:.0f} / {r['users_worse']:.0f}", number(r["worst_decile"])]
            line.append(number(r["std_over_users"]))
            line += [number(r["worst_group"])] if grouped else []
            begun = r["begins_with"]
            spent = [r["privacy"]] if begun is None else [r["privacy"], self.results[begun].privacy]
            line += [" + ".join(_epsilon(said) for said in spent)] if private else []
            line += [str(len(r["failed"]))] if some_failed else []
            line.append("-" if r["forgetting"] is None else number(r["forgetting"], "+"))

            def cost(name: str, digits: int, scale: float = 1.0, row: Mapping[str, Any] = r) -> str:
                parts = [row] if row["beginning"] is None else [row, row["beginning"]]
                return " + ".join(f"{part[name] / scale:.{digits}f}" for part in parts)

            line += [cost("bytes_up_per_device", 1, 1000), cost("steps", 0)]
            line += [f"{r['personal_steps']:.1f}", cost("seconds", 1)]
            cells.append(line)
        return columns, cells

    @property
    def privacy(self) -> dict[str, Any] | None:
        """What the baseline's rounds would guarantee with secure noise; None where rounds are not private."""
        return self.results[BASELINE].privacy

    def remarks(self) -> list[str]:
        """What did not run, and why; what is sent against full synchronization; what begins with another's model."""
        results = self.results.values()
        found = [_without_figures(f) for f in results if f.error is not None]
        found += [
            f"{len(f.failed_users)} users failed with {f.name} and are in none of its figures: {named(f.failed_users)}"
            for f in results
            if f.error is None and f.failed_users
        ]
        found += [
            f"{r['strategy']} sent {r['bytes_up'] / 1000:.1f} kB up in all, "
            f"{100 * r['bytes_up'] / r['bytes_up_full_sync']:.0f} % of what full synchronization, an average after "
            f"every local step, would send: {r['bytes_up_full_sync'] / 1000:.1f} kB"
            for r in self.rows()
            if r.get("bytes_up_full_sync")
        ]
        begun = [f.name for f in results if f.begins_with is not None]
        if begun:
            verb = "begins" if len(begun) == 1 else "begin"
            costs = "costs" if self.privacy is None else "costs and epsilon"
            found.append(
                f"{', '.join(begun)} {verb} with the model of {BASELINE}, whose {costs} come on top (after the +)"
            )
        return found

    @property
    def some_failed(self) -> bool:
        """Whether training failed for any user of any strategy."""
        return any(f.failed_users or _is_training_failure(f.error) for f in self.results.values())

    def markdown(self) -> str:
        """The table as a page."""
        columns, cells = self.table()
        head = f"# Strategies on {self.data}: {self.rounds} rounds, {len(self.seeds)} seed(s)"
        lines = [
            head,
            "",
            f"Each user's own model, mean over users. Gains from {BASELINE} of everything.",
            "",
        ]
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|" + " --- |" * len(columns))
        lines += ["| " + " | ".join(line) + " |" for line in cells]
        lines += ["", *self.remarks()]
        if self.privacy is not None:
            lines += ["", f"If the noise were secure, {BASELINE}: {self.privacy['guarantee']}", ""]
            lines += [f"- {sentence}" for sentence in self.privacy["assumptions"]]
        return "\n".join(
            [
                *lines,
                "",
                "![distribution over users](users.png)",
                "",
                "![loss](loss.png)",
                "",
                "![costs](costs.png)",
                "",
            ]
        )

    def draw(self, folder: Path) -> list[Path]:
        """Plots of the distribution over users, of the loss by round, and of what is sent against what users get."""
        ran = {name: found for name, found in self.results.items() if found.error is None}
        evaluations = {name: found.evaluations for name, found in ran.items()}
        losses = {name: found.losses for name, found in ran.items()}
        return [
            plots.draw_distributions(evaluations, folder / "users.png"),
            plots.draw_history(range(1, self.rounds + 1), losses, folder / "loss.png"),
            plots.draw_costs(
                [r for r in self.rows() if r["error"] is None], self.settings["users"], folder / "costs.png"
            ),
        ]


def _without_figures(found: Compared) -> str:
    says = "has no figures" if (found.error or "").startswith(TrainingFailedError.__name__) else "did not run"
    return f"{found.name} {says}: {found.error}"


def _is_training_failure(error: str | None) -> bool:
    kinds = (TrainingFailedError, CohortFailedError, NonFiniteError, NoExamplesError, TooFewUpdatesError)
    return error is not None and kind(error) in {one.__name__ for one in kinds}


def _epsilon(said: dict[str, Any]) -> str:
    return "none" if said["epsilon"] is None else f"{rounded_up(said['epsilon']):.4g}"


def _worst_group(found: Evaluation) -> float | None:
    groups = found.per_group.values()
    if not groups:
        return None
    return float(found.sign * min(found.sign * g["personalized_acc"] for g in groups))


def _gain_interval(gains: Sequence[Evaluation]) -> tuple[float, float]:
    if len(gains) == 1:
        found = interval(gains[0].gains)
        return found.low, found.high
    found = student_interval(np.array([e.gains.mean() for e in gains]))
    return found.low, found.high
