"""`pfl strategies`, `pfl train`, `pfl recommend`: studies on the command line."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.common import (
    FAILED,
    SOME_FAILED,
    STUDY_EXIT_CODES,
    Json,
    Reporter,
    console,
    print_json,
    size,
    table,
)
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
    spent,
    study_privacy,
)
from pfl_mobile.data.failures import named
from pfl_mobile.errors import ConfigError, TrainingFailedError
from pfl_mobile.files.reading import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pfl_mobile.study import Evaluation

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="file.py:function, package.module:function, or a recipe.")
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="SRC", help="Dataset, handed to the function as `data`.")
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="NAME=VALUE",
        help="An argument of MODEL's function, for instance min_messages=50 for keyboard; may be repeated.",
    ),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Merges.")]
LocalEpochs = Annotated[
    int | None,
    typer.Option(
        "--local-epochs",
        min=1,
        help="Passes over a device's examples in a round; for scafflix and pfedme the steps that these are on an "
        "average device. Default: MODEL's.",
    ),
]
CohortSize = Annotated[
    int | None, typer.Option("--cohort", min=1, help="Devices in a round; default: MODEL's.")
]
Groups = Annotated[
    Path | None,
    typer.Option(
        "--groups", metavar="FILE", help="Group of every user, JSON or CSV; default: the data's own."
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=0, help="Of the local backend; default: one a core.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("strategies")(strategies)
    app.command(
        "train",
        epilog="Examples:  pfl train activity --strategy fedrep --rounds 50;  "
        "pfl train activity --epsilon 8 --delta 1e-5;  pfl train activity --rule median.  "
        + STUDY_EXIT_CODES,
    )(train)
    app.command("recommend", epilog="Example:  pfl recommend runs/activity-fedrep.  " + STUDY_EXIT_CODES)(
        recommend
    )


_YES_NO = {True: "yes", False: "no", None: "depends on its hyper-parameters"}


def strategies(
    name: Annotated[str | None, typer.Argument(help="One strategy, with its hyper-parameters.")] = None,
    as_json: Json = False,
) -> None:
    """List the strategies: paper, what is shared and what stays personal, hyper-parameters.

    JSON: name, title, paper, shares (what is shared), keeps (what is personal), split (whether it needs personal
    layers), private, why_not_private, parameters (the hyper-parameters: name, type, default, range, choices, meaning).

    Example: `pfl strategies scafflix`
    """
    from pfl_mobile.strategies import entries, entry

    if name is not None:
        found = entry(name).to_json()
        print_json(found) if as_json else _one(found)
        return
    listed = [e.to_json() for e in entries()]
    if as_json:
        print_json(listed)
        return
    rows = [(e["name"], e["title"], e["shares"], e["keeps"] or "nothing") for e in listed]
    out = console()
    out.print(table(["strategy", "what it is", "shared", "personal"], rows))
    out.print(f"\n{len(listed)} strategies; `pfl strategies NAME` shows the paper and the hyper-parameters")


def _one(found: dict[str, Any]) -> None:
    out = console()
    out.print(f"[bold]{found['name']}[/]: {found['title']}", markup=True)
    out.print(found["paper"], markup=False)
    out.print(f"shared: {found['shares']}", markup=False)
    out.print(f"personal: {found['keeps'] or 'nothing'}", markup=False)
    out.print(f"rounds can be differentially private: {_YES_NO[found['private']]}", markup=False)
    if found["why_not_private"]:
        out.print(f"  {found['why_not_private']}", markup=False)
    rows = [
        (p["name"], p["default"], p["range"] or ", ".join(p["choices"] or ()) or p["type"], p["meaning"])
        for p in found["parameters"]
    ]
    if rows:
        out.print(table(["hyper-parameter", "default", "range", "meaning"], rows))


def train(
    model: Model,
    data: Data = None,
    with_: With = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="S", help="See `pfl strategies`; default: MODEL's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the strategy, or else of the fairness (fairness.NAME in any case); may be "
            "repeated.",
        ),
    ] = None,
    fairness: Annotated[
        str | None,
        typer.Option(
            "--fairness",
            metavar="F",
            help="How devices are weighted: a strategy that is a kind of fairness, for instance qffl; a wrong name "
            "lists them.",
        ),
    ] = None,
    rule: Rule = None,
    privacy: Annotated[Path | None, PRIVACY] = None,
    epsilon: Annotated[float | None, EPSILON] = None,
    delta: Annotated[float | None, DELTA] = None,
    clip_norm: Annotated[float | None, CLIP_NORM] = None,
    mechanism: Annotated[str | None, MECHANISM] = None,
    sampling: Annotated[str | None, SAMPLING] = None,
    min_separation: Annotated[int | None, MIN_SEPARATION] = None,
    groups: Groups = None,
    rounds: Rounds = 50,
    local_epochs: LocalEpochs = None,
    cohort: CohortSize = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", help="Share of a round's devices that do not answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    backend: Annotated[str, typer.Option("--backend", help="local or ray.")] = "local",
    device: Annotated[
        str, typer.Option("--device", help="Where devices are simulated: cpu or cuda.")
    ] = "cpu",
    processes: Processes = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Of the run; default: runs/MODEL-STRATEGY.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Train a study: federated rounds, then every user's own model, and what it is worth.

    The effective configuration is printed first. A checkpoint is kept every round: a run that was stopped goes on
    with --resume and ends in the same bits. Where parts of the model are personal, one model for all is trained
    too, in as many rounds, to compare with.

    With --epsilon the rounds are merged under differential privacy of every user, as `pfl serve --epsilon` merges
    them: unless given with delta 1e-6, clip norm 1 and noise that is correlated over the rounds and counts on no
    sampling (matrix). It is simulated: it shows what privacy costs. Rule and privacy are MODEL's unless given, and
    those of the model for all too.

    JSON: run, study (the configuration), costs, fairness (whether a bound is met), privacy (what the rounds guarantee
    if the noise is secure: epsilon, delta, rounds, assumptions, not_covered, ...; null without privacy), files,
    evaluation (global_acc, personalized_acc, gain with interval,
    users_better, users_worse, worst_decile, per_group, worst_group_improvement, no_verdict: why nothing may be
    concluded, else null; failed: users that are in none of the figures, and why; failed_in_rounds: users that failed
    in some rounds; trainings: of devices in all rounds; untested users).
    """
    from pfl_mobile.cli.runs import changed_study, is_started, note_source
    from pfl_mobile.study import plots

    settings = parameters(with_ or (), option="--with") | ({} if data is None else {"data": data})
    wanted = {
        "strategy": strategy,
        "parameters": parameters(set_) if set_ else None,
        "fairness": fairness,
        "robust": rule,
        "groups": None if groups is None else str(groups.expanduser().resolve()),
        "cohort": cohort,
        "dropout": dropout,
        "seed": seed,
        "processes": processes,
        "local_epochs": local_epochs,
    }
    changes = {name: value for name, value in wanted.items() if value is not None} | {
        "backend": backend,
        "device": device,
    }
    study = changed_study(model, settings, changes)
    folder = out or Path("runs") / f"{stem(model)}-{study.strategy_name}"
    study = study.replace(folder=folder)
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
    if protects is not None:
        study = study.replace(privacy=protects)
        changes["privacy"] = protects.model_dump(mode="json")
    show_settings(study.effective() | {"rounds": rounds}, as_json)
    if not is_started(folder):
        note_source(folder, model, settings, changes)
    with (
        Reporter() as report,
        resumable(report, folder),
        study.run(rounds, resume=resume, on_progress=report) as result,
    ):
        report("measure every user", None)
        try:
            found = result.evaluate(on_progress=report)
        except TrainingFailedError:
            result.save(folder)  # who failed, and why
            raise
        files = [result.save(folder), plots.draw_users(found, folder / "users.png")]
        losses = {study.strategy_name: [math.nan if r.loss is None else r.loss for r in result.history]}
        files.append(plots.draw_history([r.round + 1 for r in result.history], losses, folder / "loss.png"))
        costs, fairness, said, used = result.costs(), result.fairness, result.privacy, result.effective()
    if as_json:
        print_json(
            {
                "run": str(folder),
                "study": used,
                "costs": costs,
                "fairness": fairness,
                "privacy": said,
                "evaluation": found.to_json(),
                "files": [str(f) for f in files],
            }
        )
    else:
        _show(found, costs, fairness, said)
        if said is not None:
            show_simulated(study.strategy_name, said)
        console().print(f"\nwritten to {folder}; next: pfl recommend {folder}")
    _exit(found.no_verdict is not None, {**found.trainings.sometimes, **found.failed})


def _exit(no_verdict: bool, failed: Mapping[str, str]) -> None:
    """End with the exit code that says that users failed."""
    if no_verdict or failed:
        raise typer.Exit(FAILED if no_verdict else SOME_FAILED)


def recommend(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that `pfl train` finished.")],
    users: Annotated[int | None, typer.Option("--users", min=1, help="Measure so many users.")] = None,
    as_json: Json = False,
) -> None:
    """Personalize or not, for whom and why.

    Where parts of the model are personal, the comparison is with the one model for all that `pfl train` trained too.

    JSON: verdict (personalize, personalize some, do not personalize; not enough data: too few users for anything to
    be certain; not measured: the strategy makes no models of users' own; training failed: more than 20 % of the users,
    or of the trainings in the rounds, failed, or training diverged or left most users' own models a larger loss on
    their own training examples), min_examples, users, expected_gain (mean, low, high, level, users) and appeal, null
    where training failed, heterogeneity, examples, why, failed: users that failed, and why.
    """
    from pfl_mobile.cli.runs import open_run

    with Reporter() as report, open_run(run) as result:
        found = result.recommend(users, on_progress=report)
    if as_json:
        print_json(found.to_json())
    else:
        out = console()
        out.print(f"[bold]{found.verdict}[/]", markup=True)
        for sentence in found.why:
            out.print(f"- {sentence}", markup=False)
    _exit(found.verdict == "training failed", found.failed)


@contextlib.contextmanager
def resumable(report: Reporter, folder: Path) -> Iterator[None]:
    """Say after Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        report.note(f"interrupted; the same command with --resume goes on in {folder}")
        raise


def stem(model: str) -> str:
    """A short name of a model, for folders of runs."""
    source, colon, function = model.rpartition(":")
    if not colon:
        return function
    return Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]


def parameters(given: list[str] | tuple[()], option: str = "--set") -> dict[str, Any]:
    """Hyper-parameters given as ``NAME=VALUE``; values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"{option} {item!r} is not NAME=VALUE", mend=f"write for instance {option} mu=0.1"
            )
        try:
            found[name] = parse_json(text, finite=False)
        except ValueError:
            found[name] = text
    return found


def show_settings(settings: dict[str, Any], as_json: bool) -> None:
    """Print the effective configuration; with --json on standard error, as standard output is for the result alone."""
    out = console(error=as_json)
    out.print(table(["setting", "value"], _flat(settings), title="effective configuration"))


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            rows += _flat(inner, f"{prefix}{name}.")
        elif not (isinstance(inner, dict) and not inner):
            rows.append((f"{prefix}{name}", str(inner)))
    return rows


def _against_full_sync(costs: dict[str, float]) -> list[tuple[str, str]]:
    full = costs.get("bytes_up_full_sync")
    if not full:
        return []
    what = "an average after every local step"
    return [("of full synchronization", f"{100 * costs['bytes_up'] / full:.0f} % of {size(full)}, {what}")]


def _show(
    found: Evaluation, costs: dict[str, float], fairness: str | None, said: dict[str, Any] | None
) -> None:
    from pfl_mobile.study.plots import number

    out = console()

    def show(value: float, sign: str = "") -> str:
        return number(found.metric, value, sign)

    rows: list[tuple[str, object]] = [(f"{found.metric}, own models", show(found.personalized_acc))]
    rows += [
        (f"{found.metric}, shared model", show(found.global_acc)),
        ("gain", found.gain),
        ("users better / worse", f"{found.users_better} / {found.users_worse} of {len(found.users)}"),
    ]
    if found.no_verdict is not None:
        rows.insert(0, ("training failed", f"nothing can be concluded: {found.no_verdict}"))
    if found.failed:
        rows.append(
            ("users who failed", f"{len(found.failed)}: {named(found.failed)}; in none of these figures")
        )
        rows.append(("the first of them", next(iter(found.failed.values()))))
    if found.trainings.sometimes:
        some = found.trainings.sometimes
        rows.append(("users who failed in some rounds", f"{len(some)}: {named(some)}"))
    if found.untested:
        rows.append(("users without test examples", f"{len(found.untested)}, see `untested` in result.json"))
    rows.append(("worst tenth of the users", show(found.worst_decile)))
    for name, group in found.per_group.items():
        rows.append((f"group {name} ({group['users']} users)", show(group["personalized_acc"])))
    if found.worst_group_improvement is not None:
        rows.append(("worst group better by", show(found.worst_group_improvement, "+")))
    if fairness is not None:
        rows.append(("bound", fairness))
    if said is not None:
        rows.append(("epsilon spent", spent(said)))
    rows += [
        ("sent up by a device in a round", size(costs["bytes_up_per_device"])),
        ("sent up in all", size(costs["bytes_up"])),
        *_against_full_sync(costs),
        ("failed trainings in the rounds", f"{costs['failures']:.0f} of {found.trainings.rounds}"),
        ("seconds", f"{costs['seconds']:.1f}"),
    ]
    out.print(table(["result", "value"], rows))
