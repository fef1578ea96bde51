"""Plots of a private federation's plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_mobile.study.figures import BAD, PERSONAL, SHARED, axes, save

if TYPE_CHECKING:
    from pfl_mobile.privacy.cost import Cost
    from pfl_mobile.privacy.plan import Option

_COLOURS = (PERSONAL, "#8250df", "#1a7f37", SHARED)


def draw_epsilon(points: Sequence[tuple[int, float]], budget: float, delta: float, path: Path) -> Path:
    """Epsilon after each round, and the budget.

    Args:
        points: round and epsilon.
        budget: at which training stops.
        delta: of both.
        path: of the PNG file.
    """
    figure, found = axes(6.4, 3.4)
    found.plot([0, *(r for r, _ in points)], [0, *(e for _, e in points)], color=PERSONAL, lw=1.5)
    found.axhline(budget, color=BAD, lw=1)
    found.annotate(
        f"budget {budget:g}",
        (points[-1][0], budget),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=BAD,
    )
    found.set_ylim(0, 1.1 * max(budget, points[-1][1]))
    found.set_xlim(0, None)
    found.set_xlabel("rounds")
    found.set_ylabel(f"epsilon (delta {delta:g})")
    return save(figure, path)


def draw_noise(options: Sequence[Option], path: Path) -> Path:
    """Noise in the model after all rounds against the cohort, a line for each mechanism and sampling."""
    figure, found = axes(6.4, 3.4)
    schemes = dict.fromkeys(option.scheme for option in options)
    for scheme, colour in zip(schemes, _COLOURS, strict=False):
        chosen = [option for option in options if option.scheme == scheme]
        found.plot(
            [option.config.cohort for option in chosen],
            [option.model_noise for option in chosen],
            "o-",
            ms=4,
            lw=1.2,
            color=colour,
            label=str(scheme),
        )
    found.set_xscale("log", base=2)
    found.set_yscale("log")
    cohorts = sorted({option.config.cohort for option in options})
    found.set_xticks(cohorts, [f"{cohort:,}" for cohort in cohorts])
    found.set_xlabel("devices in a round")
    found.set_ylabel("noise of a value of the model,\nin clip norms")
    found.legend(fontsize=8, frameon=False)
    return save(figure, path)


def draw_accuracy(costs: Sequence[Cost], metric: str, path: Path) -> Path:
    """What the model is worth against epsilon, and without noise and privacy as lines."""
    figure, found = axes(6.4, 3.4)
    private = sorted((c.epsilon, c.accuracy) for c in costs if c.epsilon is not None)
    found.plot([e for e, _ in private], [a for _, a in private], "o-", ms=4, lw=1.2, color=PERSONAL)
    for style, cost in zip(("-", "--"), (c for c in costs if c.epsilon is None), strict=False):
        found.axhline(cost.accuracy, color=SHARED, lw=1, ls=style, label=cost.label)
    found.set_xscale("log", base=2)
    found.set_xticks([e for e, _ in private], [f"{e:.3g}" for e, _ in private])
    found.minorticks_off()
    found.set_xlabel("epsilon of the planned federation")
    found.set_ylabel(f"{metric} in simulation")
    found.legend(fontsize=8, frameon=False)
    return save(figure, path)
