"""`pfl compare`: strategies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_mobile.cli.common import SOME_FAILED, STUDY_EXIT_CODES, Json, Reporter, console, print_json, table
from pfl_mobile.cli.merging import (
    CLIP_NORM,
    DELTA,
    EPSILON,
    MECHANISM,
    MIN_SEPARATION,
    PRIVACY,
    SAMPLING,
    Rule,
    show_simulated,
    study_privacy,
)
from pfl_mobile.cli.studies import (
    CohortSize,
    Groups,
    LocalEpochs,
    Processes,
    Rounds,
    resumable,
    show_settings,
    stem,
)
from pfl_mobile.files.plain_json import json_text

if TYPE_CHECKING:
    from pfl_mobile.study.comparison import Comparison


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "compare",
        epilog="Examples:  pfl compare fedavg fedper ditto --data activity --rounds 30 --seeds 3;  "
        "pfl compare fedper ditto --data activity --epsilon 8 --delta 1e-5.  " + STUDY_EXIT_CODES,
    )(compare)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="S1 S2 ...", help="Strategies, or `all`; fedavg is always among them."),
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="SRC", help="A recipe, a dataset, or file.py:function.")
    ] = "synthetic",
    rounds: Rounds = 30,
    local_epochs: LocalEpochs = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each, with seeds 0, 1, ...")] = 1,
    cohort: CohortSize = None,
    rule: Rule = None,
    privacy: Annotated[Path | None, PRIVACY] = None,
    epsilon: Annotated[float | None, EPSILON] = None,
    delta: Annotated[float | None, DELTA] = None,
    clip_norm: Annotated[float | None, CLIP_NORM] = None,
    mechanism: Annotated[str | None, MECHANISM] = None,
    sampling: Annotated[str | None, SAMPLING] = None,
    min_separation: Annotated[int | None, MIN_SEPARATION] = None,
    groups: Groups = None,
    users: Annotated[int | None, typer.Option("--users", min=1, help="Measure so many users.")] = None,
    processes: Processes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Of table, plots and runs; default: runs/compare-SRC."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Run strategies on the same users, cohorts and initial weights, and put them side by side.

    Gains are measured from `fedavg` of everything, one model for all, with 95 % intervals: over users with one
    seed, over seeds with several. Strategies that need personal layers get the study's; the others share them too.

    The effective configuration is printed first. Rule and privacy, with defaults as in `pfl train`, are those of every
    strategy, `fedavg` too; one whose merge they do not fit is listed with the reason.

    DIR/STRATEGY/seed-N keeps each run with a checkpoint every round: with --resume a comparison that was stopped goes
    on and ends in the same figures; more strategies and seeds come to those that are there.

    JSON: data, study (the configuration), rounds, seeds, baseline, files, strategies (strategy, metric, global_acc,
    personalized_acc, gain, gain_low, gain_high, users_better, users_worse, worst_decile, std_over_users, worst_group,
    worst_group_improvement, forgetting, bytes_up, bytes_up_full_sync (an average after every local step; null
    where a strategy is not about sending less), bytes_down, bytes_up_per_device, steps of all devices in the rounds,
    personal_steps of a user's own model after them, failures, seconds, privacy as in `pfl train`, begins_with: whose
    trained model it starts from, beginning: the bytes_up, bytes_down, bytes_up_per_device, steps and seconds of that,
    which come on top, as its epsilon does, failed: users that are in none of its figures, and why; or strategy, error
    and failed, where it did not run or its training failed).
    """
    from pfl_mobile.cli.runs import changed_study
    from pfl_mobile.files.atomic import atomic_write, disk_errors
    from pfl_mobile.strategies import entry
    from pfl_mobile.strategies import names as all_names
    from pfl_mobile.study.compare import common_settings
    from pfl_mobile.study.compare import compare as run_comparison
    from pfl_mobile.study.comparison import BASELINE

    chosen = all_names() if names == ["all"] else list(names)
    for name in chosen:
        entry(name)  # fails before anything runs
    wanted = {
        "cohort": cohort,
        "local_epochs": local_epochs,
        "processes": processes,
        "groups": None if groups is None else str(groups.expanduser().resolve()),
    }
    study = changed_study(data, {}, {name: value for name, value in wanted.items() if value is not None})
    protects = study_privacy(
        study,
        rounds,
        privacy,
        epsilon=epsilon,
        delta=delta,
        clip_norm=clip_norm,
        mechanism=mechanism,
        sampling=sampling,
        min_separation=min_separation,
    )
    merging = {"robust": rule, "privacy": protects}
    merging = {name: value for name, value in merging.items() if value is not None}
    if merging:  # its own strategy, which is not run, might refuse them
        study = study.replace(strategy=BASELINE, parameters=None, **merging)
    folder = out or Path("runs") / f"compare-{stem(data)}"
    with disk_errors(folder):  # before anything runs
        folder.mkdir(parents=True, exist_ok=True)
    plan = {"strategies": ", ".join(dict.fromkeys([BASELINE, *chosen])), "rounds": rounds, "seeds": seeds}
    show_settings(common_settings(study) | plan, as_json)
    with Reporter() as report, resumable(report, folder):
        found = run_comparison(
            study,
            chosen,
            rounds=rounds,
            seeds=range(seeds),
            users=users,
            folder=folder,
            resume=resume,
            on_progress=report,
        )
        report("write table and plots", None)
        files = found.draw(folder)
        page, record = folder / "comparison.md", folder / "comparison.json"
        atomic_write(record, json_text(found.to_json(users=True), indent=1).encode())
        atomic_write(page, found.markdown().encode())
        files += [page, record]
    if as_json:
        print_json(found.to_json() | {"files": [str(f) for f in files]})
    else:
        _show_comparison(found)
        if found.privacy is not None:
            show_simulated(BASELINE, found.privacy)
        console().print(f"\nwritten to {folder}")
    if found.some_failed:
        raise typer.Exit(SOME_FAILED)


def _show_comparison(found: Comparison) -> None:
    columns, rows = found.table()
    out = console()
    if out.width < 120:  # the page has all columns
        kept = [
            i
            for i, c in enumerate(columns)
            if i < 4 or c.startswith(("worst tenth", "epsilon", "failed", "kB"))
        ]
        columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    out.print(table(columns, rows, right=range(1, len(columns))))
    for line in found.remarks():
        out.print(line, markup=False)
