"""Pictures of a keyboard run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfl_mobile.local.evaluation import UserResult
from pfl_mobile.study.figures import figure, save

BEFORE, AFTER, OTHER = "#9aa5b1", "#1f6feb", "#d29922"


def draw(folder: Path, results: Sequence[UserResult], found: Mapping[str, Any]) -> None:
    """Write ``users.png``: every user's recall before and after, and the means beside the trigram's.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    ordered = sorted(results, key=lambda r: r.after["top1"] - r.before["top1"])
    drawn = figure(10, max(3.2, 0.17 * len(ordered) + 1.6))
    users, means = drawn.subplots(1, 2, width_ratios=[3, 2])
    for row, r in enumerate(ordered):
        before, after = 100 * r.before["top1"], 100 * r.after["top1"]
        users.plot([before, after], [row, row], color=BEFORE if after >= before else OTHER, linewidth=1.5)
        users.plot(before, row, "o", color=BEFORE, markersize=4)
        users.plot(after, row, "o", color=AFTER, markersize=4)
    users.set_yticks([])
    users.set_ylabel(f"{len(ordered)} users, least gain at the bottom")
    users.set_xlabel("top-1 recall, % (grey before, blue after)")
    users.set_title("Each user before and after", loc="left", fontsize=10)
    names = ["top-1\nshared", "top-1\npersonal", "trigram\npersonal", "top-3\nshared", "top-3\npersonal"]
    values = [
        found["top1_before"],
        found["top1_after"],
        found["trigram_top1_after"],
        found["top3_before"],
        found["top3_after"],
    ]
    bars = means.bar(names, values, color=[BEFORE, AFTER, OTHER, BEFORE, AFTER])
    means.bar_label(bars, fmt="%.1f", fontsize=8)
    means.tick_params(axis="x", labelsize=8)
    means.set_title("Mean over users, %", loc="left", fontsize=10)
    for axis in (users, means):
        axis.spines[["top", "right"]].set_visible(False)
    save(drawn, folder / "users.png")


def draw_rounds(path: Path, found: Mapping[str, Any]) -> None:
    """Write a picture of a federation: recall of the shared and of the own models over the rounds.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    drawn = figure(9, 3.6)
    for axes, name, label in zip(
        drawn.subplots(1, 2), ("top3", "loss"), ("top-3 recall, %", "loss, mean over devices"), strict=True
    ):
        shared = [found[f"shipped_{name}"], *found[f"global_{name}"]]
        own = found[f"personalized_{name}"]
        axes.plot(range(len(shared)), shared, "o-", color=BEFORE, label="shared model")
        axes.plot(range(1, len(own) + 1), own, "o-", color=AFTER, label="own models")
        axes.set_xticks(range(max(len(shared), len(own) + 1)))
        axes.set_xlabel("rounds")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    epsilon = found["epsilon"]
    private = "no privacy" if epsilon is None else f"epsilon {epsilon:.3g}, delta {found['delta']:g}"
    drawn.suptitle(f"{found['devices']} devices through {found['engine']}, {private}", fontsize=10)
    axes.legend(frameon=False)
    save(drawn, path)
