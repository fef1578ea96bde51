"""How rounds are merged, as options: the rule and differential privacy, named alike in every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.common import Reporter, console
from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pfl_mobile.privacy import PrivacyConfig
    from pfl_mobile.study import Study


EPSILON = typer.Option("--epsilon", help="Privacy budget of all rounds together.")
DELTA = typer.Option("--delta", help="Probability with which the guarantee may fail.")
CLIP_NORM = typer.Option("--clip-norm", help="Largest L2 norm of an update.")
MECHANISM = typer.Option(
    "--mechanism",
    metavar="NAME",
    help="Whose noise: matrix (correlated over rounds; needs no sampling; the default, as of `pfl serve`), gaussian "
    "(independent in each round), or local (each device adds its own, and need not trust the aggregator).",
)
SAMPLING = typer.Option(
    "--sampling",
    metavar="NAME",
    help="How gaussian noise may count on cohorts being drawn in secret: poisson (its default), fixed, none. "
    "Without --mechanism it means gaussian noise.",
)
MIN_SEPARATION = typer.Option(
    "--min-separation", min=1, help="Rounds between two of one device; more needs less noise."
)
PRIVACY = typer.Option("--privacy", metavar="FILE", help="privacy.json of `pfl privacy plan`.")

Rule = Annotated[
    str | None,
    typer.Option(
        "--rule",
        metavar="NAME",
        help="How the mean of a round is taken: average, or a robust rule, for instance median; a wrong name lists "
        "them.",
    ),
]


def privacy_file(file: Path | None, stated: Mapping[str, Any]) -> PrivacyConfig | None:
    """What ``--privacy`` names; None where it is not given.

    Args:
        file: of the option.
        stated: other options that say what protects, by name.

    Raises:
        ConfigError: both are given; the file cannot be read, or is invalid.
    """
    if file is None:
        return None
    if stated:
        raise ConfigError(
            f"--privacy says --{next(iter(stated)).replace('_', '-')} already", mend="leave one out"
        )
    from pfl_mobile.privacy import load_privacy

    return load_privacy(file)


def study_privacy(
    study: Study, rounds: int, file: Path | None, **given: float | str | None
) -> PrivacyConfig | None:
    """The privacy of a study's rounds that options ask for; None where none of them is given.

    Args:
        study: whose users and cohorts the noise is calibrated for.
        rounds: that the budget is for.
        file: what ``--privacy`` names.
        given: ``epsilon``, ``delta``, ``clip_norm``, ``mechanism``, ``sampling``, ``min_separation``; None where not
            given.

    Raises:
        ConfigError: options contradict each other, miss the budget, or cost more than may be called private; no noise
            is enough.
        UnknownNameError: no such mechanism or sampling.
        MissingDependencyError: dp-accounting is not installed.
    """
    stated: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if file is not None or not stated:
        config = privacy_file(file, stated)
        if config is not None:
            from pfl_mobile.privacy.limits import check_guarantee

            check_guarantee(config, rounds)
        return config
    if "epsilon" not in stated:
        raise ConfigError(
            f"--{next(iter(stated)).replace('_', '-')} is given without a budget, so nothing would be private",
            mend="add --epsilon, or give --privacy FILE",
        )
    from pfl_mobile.federation.default_privacy import DELTA as default_delta
    from pfl_mobile.federation.default_privacy import default_privacy, named_scheme
    from pfl_mobile.privacy.plan import Budget, option

    mechanism, sampling = stated.pop("mechanism", None), stated.pop("sampling", None)
    if mechanism is None and sampling is None:
        return default_privacy(cohort=study.cohort.size, rounds=rounds, population=len(study.data), **stated)
    scheme = named_scheme(mechanism, sampling)
    if scheme.participation.sampled and "min_separation" in stated:
        raise ConfigError(
            f"with {scheme.sampling} sampling any device can be drawn in any round, so --min-separation cannot hold",
            mend="leave it out, or choose --mechanism matrix or --sampling none",
        )
    budget = Budget(population=len(study.data), rounds=rounds, **({"delta": default_delta} | stated))
    with Reporter() as report:
        report(f"noise for {scheme}", None)
        return option(budget, scheme, study.cohort.size).config


def spent(said: dict[str, Any]) -> str:
    """The epsilon of a statement in words."""
    from pfl_mobile.privacy.limits import rounded_up

    if not said["private"]:
        return "no bound: nothing is private"
    return f"{rounded_up(said['epsilon']):.4g} at delta {said['delta']:g}, in {said['rounds']} rounds"


def show_simulated(strategy: str, said: dict[str, Any]) -> None:
    """Show the statement of a strategy's rounds in a study, and that it protects none of the users in the data."""
    console().print(
        "\n[bold]simulated:[/] the noise repeats with the seed, so it protects nobody. "
        f"With secure noise the rounds of {strategy} would mean:"
    )
    show_statement(said)


def show_statement(said: dict[str, Any]) -> None:
    """Show what ``Ledger.statement`` says."""
    out = console()
    out.print(said["guarantee"], markup=False)
    out.print(f"noise: {said['mechanism']}; sampling: {said['sampling']}", markup=False)
    for key, title in (("relation", "compared"), ("accountant", "accountant")):
        if said[key]:
            out.print(f"{title}: {said[key]}", markup=False)
    if said.get("epsilon_after_next_round") is not None and said["private"]:
        out.print(f"one more round: epsilon {said['epsilon_after_next_round']:.4g}", markup=False)
    for title, sentences in (("assumed", said["assumptions"]), ("not covered", said["not_covered"])):
        if sentences:
            out.print(f"{title}:", markup=False)
        for sentence in sentences:
            out.print(f"- {sentence}", markup=False)
