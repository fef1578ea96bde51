"""``pfl privacy``: plan the noise of a federation, audit it, read its ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.common import EXIT_CODES, FAILED, Json, Reporter, console, print_json, table
from pfl_mobile.cli.merging import (
    CLIP_NORM,
    DELTA,
    EPSILON,
    MECHANISM,
    MIN_SEPARATION,
    SAMPLING,
    show_statement,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.privacy import PrivacyConfig
    from pfl_mobile.privacy.audit import Audit
    from pfl_mobile.privacy.plan import Budget, Option
    from pfl_mobile.study.privacy_cost import StudyCost

#: Recipe that is simulated where none is named: it needs no download and takes seconds.
_SMALL = "synthetic"
#: Budgets that are simulated, in parts of the one that is planned.
_BUDGETS = (0.25, 0.5, 1.0, 2.0, 4.0)

commands = typer.Typer(
    no_args_is_help=True, help="Differential privacy of a federation: plan it, audit it, account for it."
)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="privacy")


@commands.command(
    "plan",
    epilog="Example:  pfl privacy plan --epsilon 2 --delta 1e-6 --population 100000 --rounds 500 --cohort 1000  "
    + EXIT_CODES,
)
def plan(
    epsilon: Annotated[float, EPSILON],
    population: Annotated[int, typer.Option("--population", min=1, help="Devices in all.")],
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1_000_000, help="Merges in all.")],
    cohort: Annotated[int, typer.Option("--cohort", min=1, help="Devices in a round.")],
    delta: Annotated[float | None, DELTA] = None,
    mechanism: Annotated[str | None, MECHANISM] = None,
    sampling: Annotated[str | None, SAMPLING] = None,
    min_separation: Annotated[int | None, MIN_SEPARATION] = None,
    clip_norm: Annotated[float | None, CLIP_NORM] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", min=1, help="Values of an update, to compare the noise's norm with it."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="MODEL",
            help="Simulate what privacy costs it: file.py:function, package.module:function, or a recipe; default: "
            "a small one.",
        ),
    ] = None,
    study_rounds: Annotated[int, typer.Option("--study-rounds", min=1, help="Rounds of a simulation.")] = 30,
    simulate: Annotated[bool, typer.Option("--simulate/--no-simulate", help="Whether to simulate.")] = True,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Of privacy.json and the plots.")] = Path(
        "privacy-plan"
    ),
    as_json: Json = False,
) -> None:
    """Find the noise that a privacy budget needs, and compare ways to spend the budget.

    Writes DIR/privacy.json, which `pfl serve --privacy` takes, and plots: epsilon by round, noise by cohort, and what
    a model is worth at several epsilons in simulation, with as much noise in a round's mean as planned.

    Delta is 1e-6 and the noise that of `pfl serve` (matrix) unless given. The clip norm is 1 unless given, or the
    median of the norms in the --study that is given. A separation of rounds is only assumed without sampling; unless
    given it is half of what is possible.

    JSON: mechanism, sampling, epsilon, delta, population, rounds, cohort, noise_multiplier, epsilon_first_round,
    round_noise_std_over_clip_norm, model_noise_std_over_clip_norm, noise_norm_over_clip_norm (with --width),
    epsilon_by_round, alternatives, config, statement, files; accuracy (study, metric, rounds, cohort, users, clip_norm,
    width, noise_scale, points: label, epsilon, noise_multiplier, accuracy), null with --no-simulate.
    """
    from pfl_mobile.federation import default_privacy as default
    from pfl_mobile.files.atomic import disk_errors
    from pfl_mobile.privacy import Ledger
    from pfl_mobile.privacy import plan as planning
    from pfl_mobile.privacy.cost import Cost
    from pfl_mobile.study import privacy_plots as plots

    scheme = default.named_scheme(mechanism, sampling)
    delta = default.DELTA if delta is None else delta
    with disk_errors(out):  # before anything runs
        out.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        measure = _measure(study, study_rounds, clip_norm, width, report) if simulate else None
        if study is not None and measure is not None:
            clip_norm, width = measure.clip_norm, measure.width
        used = 1.0 if clip_norm is None else clip_norm
        budget = planning.Budget(epsilon, delta, population, rounds, used, min_separation)
        report(f"noise for {scheme}", None)
        chosen = planning.option(budget, scheme, cohort)
        schemes = dict.fromkeys((*planning.COMPARED, scheme))
        found = planning.options(budget, cohort, list(schemes), known=[chosen], on_progress=report)
        report("epsilon by round", None)
        points = list(planning.epsilon_by_round(chosen.config, rounds))
        chosen.config.dump(out / "privacy.json")
        files = [
            out / "privacy.json",
            plots.draw_epsilon(points, epsilon, delta, out / "epsilon.png"),
            plots.draw_noise(found, out / "noise.png"),
        ]
        statement = Ledger.after(chosen.config, rounds).statement()
        accuracy = None
        if measure is not None:
            from pfl_mobile.study.plots import unit

            accuracy = _simulate(study, measure, budget, chosen, report)
            costs = [Cost(**point) for point in accuracy["points"]]
            files.append(plots.draw_accuracy(costs, unit(accuracy["metric"]), out / "accuracy.png"))
    ratio = None if width is None else planning.noise_to_update(chosen.config, width)
    if as_json:
        print_json(
            chosen.to_json()
            | {
                "delta": delta,
                "population": population,
                "rounds": rounds,
                "noise_norm_over_clip_norm": ratio,
                "epsilon_by_round": [{"round": r, "epsilon": e} for r, e in points],
                "alternatives": [option.to_json() for option in found],
                "config": chosen.config.model_dump(mode="json"),
                "statement": statement,
                "accuracy": accuracy,
                "files": [str(file) for file in files],
            }
        )
        return
    _show_plan(chosen, found, statement, ratio, accuracy)
    console().print(
        f"\nwritten to {out}; next: pfl serve BUNDLE --privacy {out / 'privacy.json'}", markup=False
    )


@commands.command(
    "audit", epilog="Example:  pfl privacy audit privacy-plan/privacy.json --rounds 20  " + EXIT_CODES
)
def audit(
    config: Annotated[Path, typer.Argument(metavar="PRIVACY.json", help="A privacy configuration.")],
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds to attack; default: those planned.")
    ] = None,
    canaries: Annotated[int, typer.Option("--canaries", help="Devices whose presence is guessed.")] = 1000,
    width: Annotated[int, typer.Option("--width", help="Values of an update.")] = 10_000,
    confidence: Annotated[float, typer.Option("--confidence", help="With which the bound holds.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Of the canaries; the noise is never repeated.")] = 0,
    as_json: Json = False,
) -> None:
    """Attack the private merge by membership inference, with its noise and without.

    Canaries take part or not by a coin; an attacker guesses the coins from the released means. What it reaches is a
    lower bound on epsilon: it must lie below the accounted one (exit code 1 if it does not), and be large without
    noise.

    JSON: private and without_noise (mechanism, epsilon_lower, epsilon_accounted, guesses, correct, auc), canaries,
    width, rounds, delta, confidence, holds.
    """
    from pfl_mobile.privacy import load_privacy
    from pfl_mobile.privacy.audit import audit as run_audit

    with Reporter() as report:
        found = run_audit(
            load_privacy(config),
            rounds,
            canaries=canaries,
            width=width,
            confidence=confidence,
            seed=seed,
            on_progress=report,
        )
    print_json(found.to_json()) if as_json else _show_audit(found)
    if not found.holds:
        raise typer.Exit(FAILED)


@commands.command("account", epilog="Example:  pfl privacy account ledger.json  " + EXIT_CODES)
def account(
    ledger: Annotated[
        Path, typer.Argument(metavar="LEDGER.json", help="GET /v1/admin/privacy/ledger of an aggregator.")
    ],
    delta: Annotated[
        float | None, typer.Option("--delta", min=0, max=1, help="Default: the ledger's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the rounds in a ledger have cost, and on which assumptions.

    An aggregator gives its ledger to whoever has the admin token:
    curl -H "Authorization: Bearer TOKEN" URL/v1/admin/privacy/ledger -o ledger.json

    JSON: the statement (private, epsilon, delta, rounds, unit, relation, mechanism, accountant, guarantee,
    assumptions, not_covered, local_epsilon, budget_epsilon) and epsilon_after_next_round.
    """
    from pfl_mobile.privacy import Ledger

    found = Ledger.load(ledger)
    if delta is not None:
        found = found.at(delta)
    said = found.statement() | {"epsilon_after_next_round": found.epsilon_after()}
    if as_json:
        print_json(said)
        return
    show_statement(said)


def _measure(
    study: str | None, rounds: int, clip_norm: float | None, width: int | None, report: Reporter
) -> StudyCost:
    """The study that shows what privacy costs."""
    from pfl_mobile.cli.user_code import load_study
    from pfl_mobile.strategies import Equally
    from pfl_mobile.study.privacy_cost import StudyCost
    from pfl_mobile.study.settings import Machine
    from pfl_mobile.study.variants import baseline

    report("measure norms of updates", None)
    if study is not None:
        return StudyCost(load_study(study), rounds, clip_norm)
    # the small one stands for the model that is planned for, so that a clip norm of that says nothing here
    small = baseline(load_study(_SMALL)).replace(machine=Machine(processes=0), fairness=Equally())
    return StudyCost(small, rounds, width=width)


def _simulate(
    study: str | None, measure: StudyCost, budget: Budget, chosen: Option, report: Reporter
) -> dict[str, Any]:
    """What the study is worth at several budgets."""
    from pfl_mobile.privacy import plan as planning
    from pfl_mobile.privacy.cost import accuracy_cost, without_noise
    from pfl_mobile.privacy.limits import MOST_EPSILON

    configs: list[PrivacyConfig | None] = [None, without_noise(chosen.config)]
    for factor in _BUDGETS:
        if factor * budget.epsilon > MOST_EPSILON:
            continue
        report(f"noise for epsilon {factor * budget.epsilon:g}", None)
        other = replace(budget, epsilon=factor * budget.epsilon)
        same = factor == 1
        found = chosen if same else planning.option(other, chosen.scheme, chosen.config.cohort)
        configs.append(found.config)
    costs = accuracy_cost(configs, measure.run, on_progress=report)
    return {
        "study": study or _SMALL,
        "metric": measure.metric,
        "rounds": measure.rounds,
        "users": len(measure.study.data),
        "cohort": measure.study.cohort.size,
        "clip_norm": measure.clip_norm,
        "width": measure.width,
        "noise_scale": measure.scale,
        "points": [cost.to_json() for cost in costs],
    }


def _show_plan(
    chosen: Option,
    found: Sequence[Option],
    statement: dict[str, Any],
    ratio: float | None,
    accuracy: dict[str, Any] | None,
) -> None:
    out = console()
    config = chosen.config
    rows: list[tuple[str, object]] = [
        ("noise multiplier", f"{config.counted_noise:.4g}"),
        ("epsilon after the first round", f"{chosen.epsilon_first:.3g}"),
        (f"epsilon after {config.rounds} rounds", f"{chosen.epsilon:.4g} at delta {config.delta:g}"),
        ("noise of a value in a round's mean", f"{chosen.round_noise:.3g} clip norms"),
        ("noise of a value in the model", f"{chosen.model_noise:.3g} clip norms, after all rounds"),
    ]
    if ratio is not None:
        rows.append(("norm of the noise in a round's mean", f"{ratio:.3g} clip norms"))
    out.print(table([f"{chosen.scheme}, {config.cohort} devices in a round", ""], rows))
    listed = [
        (
            option.scheme,
            option.config.cohort,
            f"{option.config.counted_noise:.3g}",
            f"{option.round_noise:.2e}",
            f"{option.model_noise:.2e}",
            _assumes(option),
        )
        for option in found
    ]
    columns = ["mechanism", "cohort", "noise multiplier", "noise, round", "noise, model", "assumes"]
    out.print()
    out.print(table(columns, listed, right=range(1, 5), title="ways to spend the same budget"))
    if accuracy is not None:
        out.print()
        _show_accuracy(accuracy)
    out.print()
    show_statement(statement)


def _show_accuracy(accuracy: dict[str, Any]) -> None:
    from pfl_mobile.study.plots import unit

    rows = []
    for point in accuracy["points"]:
        epsilon = "-" if point["epsilon"] is None else f"{point['epsilon']:.3g}"
        rows.append((point["label"], epsilon, f"{point['noise_multiplier']:.3g}", f"{point['accuracy']:.4g}"))
    scaled = (
        "" if accuracy["noise_scale"] == 1 else f", noise times {accuracy['noise_scale']:.3g} for the width"
    )
    title = (
        f"what it costs in simulation: {accuracy['study']}, {accuracy['width']} values, {accuracy['users']} users, "
        f"{accuracy['rounds']} rounds{scaled}"
    )
    columns = ["merge", "epsilon", "noise multiplier", unit(accuracy["metric"])]
    console().print(table(columns, rows, right=range(1, 4), title=title))


def _assumes(option: Option) -> str:
    from pfl_mobile.privacy import Fixed, Poisson

    participation = option.scheme.participation
    if issubclass(participation, Poisson):
        return "secret coins"
    if issubclass(participation, Fixed):
        return "secret cohorts drawn from all devices"
    times = option.config.participations(option.config.rounds or 0)
    return f"at most {times} rounds of a device, {option.config.min_separation} apart"


def _show_audit(found: Audit) -> None:
    rows = []
    for name, attack in (("with noise", found.private), ("without noise", found.without_noise)):
        accounted = "none" if attack.epsilon_accounted is None else f"{attack.epsilon_accounted:.3f}"
        right = f"{attack.correct} of {attack.guesses}"
        rows.append((name, f"{attack.auc:.3f}", right, f"{attack.epsilon_lower:.3f}", accounted))
    out = console()
    columns = ["merge", "attacker's AUC", "right guesses", "epsilon at least", "epsilon accounted"]
    out.print(table(columns, rows, right=range(1, 5)))
    out.print(
        f"{found.canaries} canaries, {found.rounds} rounds, {found.confidence:.0%} confidence, delta {found.delta:g}: "
        + ("the bound holds" if found.holds else "MORE LEAKS THAN WAS ACCOUNTED"),
        markup=False,
    )
