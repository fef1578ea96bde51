"""Plots of studies: how users fare, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.local.results import is_recall
from pfl_mobile.study.figures import BAD, PERSONAL, SHARED, save
from pfl_mobile.study.figures import axes as new_axes

if TYPE_CHECKING:
    from pfl_mobile.study.evaluation import Evaluation


_DASHES = ("-", "--", ":", "-.")


def unit(metric: str) -> str:
    """The metric's name with its unit."""
    return f"{metric} (%)" if is_recall(metric) else metric


def number(metric: str, value: float, sign: str = "") -> str:
    """A figure for people: recalls in percent with two decimals, others with four digits."""
    return f"{value:{sign}.2f}" if is_recall(metric) else f"{value:{sign}.4g}"


def draw_users(found: Evaluation, path: Path) -> Path:
    """Each user with the shared model and with the user's own; above the diagonal the own one is better."""
    figure, axes = new_axes(5.4, 5.0)
    worse = found.gains < 0
    low = float(min(found.shared.min(), found.personal.min()))
    high = float(max(found.shared.max(), found.personal.max()))
    axes.plot([low, high], [low, high], color=SHARED, lw=1)
    size = 12 + 48 * found.train_examples / max(1, int(found.train_examples.max()))
    axes.scatter(found.shared[~worse], found.personal[~worse], size[~worse], PERSONAL, alpha=0.65, lw=0)
    axes.scatter(found.shared[worse], found.personal[worse], size[worse], BAD, alpha=0.65, lw=0)
    untrained = "" if found.shared_is_trained else ", personal layers untrained"
    axes.set_xlabel(f"shared model{untrained}: {unit(found.metric)}")
    axes.set_ylabel(f"own model: {unit(found.metric)}")
    title = f"{len(found.users)} users: {found.users_better} better, {found.users_worse} worse"
    if found.failed:
        title += f"; {len(found.failed)} failed and are not shown"
    if found.no_verdict is not None:
        title += "\ntraining failed: nothing can be concluded"
    axes.set_title(title, fontsize=10)
    return save(figure, path)


def draw_distributions(found: Mapping[str, Sequence[Evaluation]], path: Path) -> Path:
    """For each strategy the distribution over users of the metric with their own models.

    Args:
        found: evaluations by strategy, one for each seed.
        path: of the PNG file.
    """
    names = list(found)
    metric = found[names[0]][0].metric
    figure, axes = new_axes(6.4, 0.3 * len(names) + 1.1)
    values = [np.concatenate([e.personal for e in found[name]]) for name in names]
    parts = axes.boxplot(
        values[::-1],
        orientation="horizontal",
        whis=(10, 90),
        widths=0.55,
        patch_artist=True,
        flierprops={"markersize": 2},
        medianprops={"color": PERSONAL},
    )
    for box in parts["boxes"]:
        box.set(facecolor=PERSONAL, alpha=0.35, linewidth=0.8)
    means = [float(v.mean()) for v in values][::-1]
    axes.plot(means, range(1, len(names) + 1), "|", color="black", ms=10)
    failed = {name: len({user for e in found[name] for user in e.failed}) for name in names}
    labels = [name + (f" ({failed[name]} failed)" if failed[name] else "") for name in names]
    axes.set_yticks(range(1, len(names) + 1), labels[::-1])
    axes.set_xlabel(f"{unit(metric)} of users' own models")
    figure.supxlabel(
        "box: middle half and median; whiskers: 10 % and 90 %; black bar: mean",
        fontsize=8,
        x=0.98,
        ha="right",
    )
    return save(figure, path)


def draw_history(rounds: Sequence[int], losses: Mapping[str, Sequence[float]], path: Path) -> Path:
    """Mean training loss by round, a line for each strategy; names stand in the order in which the lines end."""
    figure, axes = new_axes(6.4, max(3.2, 0.15 * len(losses) + 0.4))
    ordered = sorted(losses.items(), key=lambda found: -np.nansum(found[1][-1:]))
    for number, (name, values) in enumerate(ordered):
        style = _DASHES[number // 10 % len(_DASHES)]  # there are ten colours
        axes.plot(list(rounds)[: len(values)], list(values), style, lw=1.2, label=name)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round")
    axes.set_ylabel("mean training loss of the cohort")
    if len(losses) > 1:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, handlelength=3)
    return save(figure, path)


def draw_costs(rows: Sequence[Mapping[str, Any]], users: int, path: Path) -> Path:
    """What each strategy sends and computes against what its users get.

    Args:
        rows: ``Comparison.rows()`` of the strategies that ran.
        users: each of whom makes an own model once.
        path: of the PNG file.
    """
    figure, axes = new_axes(6.4, max(4.2, 0.15 * len(rows) + 0.8))

    def total(row: Mapping[str, Any], cost: str) -> float:
        return float(row[cost] + (row["beginning"] or {cost: 0})[cost])

    sent = [(total(r, "bytes_up") + total(r, "bytes_down")) / 1e6 for r in rows]
    steps = np.array([total(r, "steps") + users * r["personal_steps"] for r in rows], np.float64)
    size = 20 + 180 * steps / max(1.0, float(steps.max()))
    found = np.array([r["personalized_acc"] for r in rows], np.float64)
    axes.scatter(sent, found, size, PERSONAL, alpha=0.45, lw=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    # Names in a column beside the plot, as many strategies send the same and end alike.
    for number, place in zip(*_column((found - low) / (high - low)), strict=True):
        axes.annotate(
            rows[number]["strategy"],
            (sent[number], found[number]),
            fontsize=7,
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": SHARED, "lw": 0.4, "relpos": (0, 0.5)},
        )
    axes.set_xlabel(
        "sent up and down in all (MB)\narea: optimizer steps, in rounds and for every user's own model"
    )
    axes.set_ylabel(f"{unit(rows[0]['metric'])}, mean over users")
    return save(figure, path)


def _column(heights: np.ndarray) -> tuple[list[int], list[float]]:
    """Where names go in a column from 0 to 1, near to the heights of what they name but apart from each other.

    Returns:
        Which one is named, from the bottom up, and the heights of the names.
    """
    order = np.argsort(heights, kind="stable")
    steps = np.arange(len(order)) / max(24, len(order) - 1)  # 24 names fit into the smallest plot
    places = np.maximum.accumulate(heights[order] - steps) + steps
    top = 1 - steps[::-1]
    return order.tolist(), np.minimum(places, top).tolist()
