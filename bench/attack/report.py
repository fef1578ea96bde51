"""The results as plain values and as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from attack.run import CLEAN, FRACTIONS, RULES, Case, Outcome, Settings
from attack.threats import ATTACKS


def collect(settings: Settings, found: Iterable[tuple[Case, Outcome]], seconds: float) -> dict[str, Any]:
    """Means over the seeds: ``none.{rule}`` and ``attacks.{attack}.{percent}.{rule}``, each with ``accuracy``,
    ``accuracy_min``, ``attack_success`` (percent) and ``diverged`` (runs).
    """
    groups: dict[tuple[str, float, str], list[Outcome]] = {}
    for case, outcome in sorted(found, key=lambda pair: pair[0].seed):
        groups.setdefault((case.attack, case.fraction, case.rule), []).append(outcome)
    result: dict[str, Any] = {
        "settings": asdict(settings) | {"seeds": max(map(len, groups.values())), "rules": RULES},
        "none": {},
        "attacks": {},
        "seconds": round(seconds, 1),
    }
    for (attack, fraction, rule), outcomes in groups.items():
        cell = {
            "accuracy": round(float(np.mean([o.accuracy for o in outcomes])), 2),
            "accuracy_min": round(min(o.accuracy for o in outcomes), 2),
            "attack_success": round(float(np.mean([o.success for o in outcomes])), 2),
            "diverged": sum(o.diverged for o in outcomes),
        }
        if attack == CLEAN:
            result["none"][rule] = cell
        else:
            percent = result["attacks"].setdefault(attack, {}).setdefault(f"{fraction:.0%}", {})
            percent[rule] = cell
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each attack, accuracy by rule; of backdoors also how often they succeed."""
    rules = [rule for rule in RULES if rule in result["none"]]
    lines = [
        "| attack | malicious | " + " | ".join(rules) + " |",
        "| --- | ---: |" + " ---: |" * len(rules),
        _line("none", "0%", [_accuracy(result["none"][rule]) for rule in rules]),
    ]
    for attack, by_part in result["attacks"].items():
        for part in (f"{fraction:.0%}" for fraction in FRACTIONS):
            cells = [by_part[part][rule] for rule in rules]
            lines.append(_line(attack, part, [_accuracy(cell) for cell in cells]))
            if attack == "backdoor":
                success = [f"{cell['attack_success']:.1f}" for cell in cells]
                lines.append(_line("*backdoor: success*", part, success))
    return "\n".join(lines)


def page(result: dict[str, Any], command: str) -> str:
    """The Markdown file."""
    settings = result["settings"]
    attacks = "\n".join(f"- `{name}`: {attack.title}" for name, attack in ATTACKS.items())
    rules = "\n".join(
        f"- `{rule}`" + (f" ({', '.join(f'{k} = {v:g}' for k, v in values.items())})" if values else "")
        for rule, values in RULES.items()
    )
    return f"""# Attacks, and how merge rules bear them

Accuracy in percent on clean test images after {settings["rounds"]} rounds, mean of {settings["seeds"]} seeds. Of the
backdoor also its success: how many test images of other classes the trigger turns into the target; smaller is better.

{settings["dataset"]}, {settings["examples"]} images shared out to {settings["users"]} users by a Dirichlet
distribution with alpha = {settings["alpha"]:g}, all of them in every round; a network with {settings["hidden"]} hidden
units, one local epoch of SGD with rate {settings["lr"]:g} in a round.

The attackers know nothing of the rule. Attacks that are made against one do more harm (Baruch and others 2019, arXiv
1902.06156; Fang and others 2020, arXiv 1911.11815), and so do these where users differ more (`--alpha 0.1`): there
the rules that leave updates out cost accuracy without any attack, too.

{table(result)}

A star marks runs that ended because values were no longer finite; the accuracy is that of the model before.

Attacks:

{attacks}

Rules:

{rules}

Made by `{command}`.
"""


def _line(name: str, part: str, cells: list[str]) -> str:
    return f"| {name} | {part} | " + " | ".join(cells) + " |"


def _accuracy(cell: dict[str, Any]) -> str:
    return f"{cell['accuracy']:.1f}" + ("*" if cell["diverged"] else "")
