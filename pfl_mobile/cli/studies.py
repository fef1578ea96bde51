"""`pfl strategies`, `pfl train`, `pfl compare`, `pfl recommend`: studies on the command line."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.common import EXIT_CODES, Json, Reporter, console, print_json, size, table
from pfl_mobile.errors import ConfigError
from pfl_mobile.plain_json import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pfl_mobile.study import Evaluation
    from pfl_mobile.study.compare import Comparison

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="file.py:function, package.module:function, or a recipe.")
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="SRC", help="Dataset, handed to the function as `data`.")
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Merges.")]
LocalEpochs = Annotated[
    int | None,
    typer.Option(
        "--local-epochs", min=1, help="Passes over a device's examples in a round; default: MODEL's."
    ),
]
Cohort = Annotated[int | None, typer.Option("--cohort", min=1, help="Devices in a round; default: MODEL's.")]
Groups = Annotated[
    Path | None,
    typer.Option(
        "--groups", metavar="FILE", help="Group of every user, JSON or CSV; default: the data's own."
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=0, help="Of the local engine; default: one a core.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("strategies")(strategies)
    app.command("train", epilog="Example:  pfl train activity --strategy fedrep --rounds 50.  " + EXIT_CODES)(
        train
    )
    app.command(
        "compare",
        epilog="Example:  pfl compare fedavg fedper ditto --data activity --rounds 30 --seeds 3.  "
        + EXIT_CODES,
    )(compare)
    app.command("recommend", epilog="Example:  pfl recommend runs/activity-fedrep.  " + EXIT_CODES)(recommend)


_YES_NO = {True: "yes", False: "no", None: "depends on its hyper-parameters"}


def strategies(
    name: Annotated[str | None, typer.Argument(help="One strategy, with its hyper-parameters.")] = None,
    as_json: Json = False,
) -> None:
    """List the strategies: paper, what is shared and what stays personal, hyper-parameters.

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
    rows = [
        (p["name"], p["default"], p["range"] or ", ".join(p["choices"] or ()) or p["type"], p["meaning"])
        for p in found["parameters"]
    ]
    if rows:
        out.print(table(["hyper-parameter", "default", "range", "meaning"], rows))


def train(
    model: Model,
    data: Data = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="S", help="See `pfl strategies`; default: MODEL's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A hyper-parameter of the strategy; may be repeated."
        ),
    ] = None,
    fairness: Annotated[
        str | None,
        typer.Option(
            "--fairness", metavar="F", help="How devices are weighted: a strategy that is a weighting."
        ),
    ] = None,
    groups: Groups = None,
    rounds: Rounds = 50,
    local_epochs: LocalEpochs = None,
    cohort: Cohort = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", help="Share of a round's devices that do not answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local or ray.")] = "local",
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

    JSON: run, study (the configuration), costs, fairness (whether a bound is met), files,
    evaluation (global_acc, personalized_acc, gain with interval,
    users_better, users_worse, worst_decile, per_group, worst_group_improvement).
    """
    from pfl_mobile.study import plots
    from pfl_mobile.study.runs import changed_study, is_started, note_source

    settings: dict[str, Any] = {} if data is None else {"data": data}
    wanted = {
        "strategy": strategy,
        "parameters": parameters(set_) if set_ else None,
        "fairness": fairness,
        "groups": None if groups is None else str(groups.expanduser().resolve()),
        "cohort": cohort,
        "dropout": dropout,
        "seed": seed,
        "processes": processes,
        "local_epochs": local_epochs,
    }
    changes = {name: value for name, value in wanted.items() if value is not None} | {
        "engine": engine,
        "device": device,
    }
    study = changed_study(model, settings, changes)
    folder = out or Path("runs") / f"{_stem(model)}-{study.strategy_name}"
    study = study.replace(folder=folder)
    # With --json, standard output is for the result alone.
    console(error=as_json).print(
        table(
            ["setting", "value"],
            _flat(study.effective() | {"rounds": rounds}),
            title="effective configuration",
        )
    )
    if not is_started(folder):
        note_source(folder, model, settings, changes)
    with (
        Reporter() as report,
        _resumable(report, folder),
        study.run(rounds, resume=resume, on_progress=report) as result,
    ):
        report("measure every user", None)
        found = result.compared(on_progress=report)
        files = [result.save(folder), plots.draw_users(found, folder / "users.png")]
        losses = {study.strategy_name: [math.nan if r.loss is None else r.loss for r in result.history]}
        files.append(plots.draw_history([r.round + 1 for r in result.history], losses, folder / "loss.png"))
        costs, fairness = result.costs(), result.fairness
    if as_json:
        print_json(
            {
                "run": str(folder),
                "study": study.effective(),
                "costs": costs,
                "fairness": fairness,
                "evaluation": found.to_json(),
                "files": [str(f) for f in files],
            }
        )
        return
    _show(found, costs, fairness, folder)


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
    cohort: Cohort = None,
    groups: Groups = None,
    users: Annotated[int | None, typer.Option("--users", min=1, help="Measure so many users.")] = None,
    processes: Processes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Of table and plots; default: runs/compare-SRC."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run strategies on the same users, cohorts and initial weights, and put them side by side.

    Gains are measured from `fedavg` of everything, one model for all, with 95 % intervals: over users with one
    seed, over seeds with several. Strategies that need personal layers get the study's; the others share them too.

    JSON: data, rounds, seeds, baseline, strategies (strategy, metric, global_acc, personalized_acc, gain, gain_low,
    gain_high, users_better, users_worse, worst_decile, std_over_users, worst_group, worst_group_improvement,
    forgetting, bytes_up, bytes_down, bytes_up_per_device, steps, failures, seconds), files.
    """
    from pfl_mobile.atomic import atomic_write, disk_errors
    from pfl_mobile.strategies import entry
    from pfl_mobile.strategies import names as all_names
    from pfl_mobile.study.compare import compare as run_comparison
    from pfl_mobile.study.runs import changed_study

    chosen = all_names() if names == ["all"] else list(names)
    for name in chosen:
        entry(name)  # fails before anything runs
    wanted = {
        "cohort": cohort,
        "processes": processes,
        "groups": None if groups is None else str(groups.expanduser().resolve()),
    }
    study = changed_study(data, {}, {name: value for name, value in wanted.items() if value is not None})
    folder = out or Path("runs") / f"compare-{_stem(data)}"
    with disk_errors(folder):  # before anything runs
        folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        found = run_comparison(
            study,
            chosen,
            rounds=rounds,
            local_epochs=local_epochs,
            seeds=range(seeds),
            users=users,
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
        return
    _show_comparison(found)
    console().print(f"\nwritten to {folder}")


def recommend(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that `pfl train` finished.")],
    users: Annotated[int | None, typer.Option("--users", min=1, help="Measure so many users.")] = None,
    as_json: Json = False,
) -> None:
    """Personalize or not, for whom and why.

    Where parts of the model are personal, the comparison is with the one model for all that `pfl train` trained too.

    JSON: verdict, min_examples, users, expected_gain (mean, low, high, level, users), appeal, heterogeneity,
    examples, why.
    """
    from pfl_mobile.study.runs import open_run

    with Reporter() as report, open_run(run) as result:
        found = result.recommend(users, on_progress=report)
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    out.print(f"[bold]{found.verdict}[/]", markup=True)
    for sentence in found.why:
        out.print(f"- {sentence}", markup=False)


@contextlib.contextmanager
def _resumable(report: Reporter, folder: Path) -> Iterator[None]:
    """Say after Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        report.note(f"interrupted; the same command with --resume goes on from the last round in {folder}")
        raise


def _stem(model: str) -> str:
    source, colon, function = model.rpartition(":")
    if not colon:
        return function
    return Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]


def parameters(given: list[str] | tuple[()]) -> dict[str, Any]:
    """Hyper-parameters given as ``NAME=VALUE``; values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {item!r} is not NAME=VALUE", mend="write for instance --set mu=0.1")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            rows += _flat(inner, f"{prefix}{name}.")
        elif not (isinstance(inner, dict) and not inner):
            rows.append((f"{prefix}{name}", str(inner)))
    return rows


def _show(found: Evaluation, costs: dict[str, float], fairness: str | None, folder: Path) -> None:
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
    if found.failed:
        rows.append(("users who failed", f"{len(found.failed)}, see `failed` in result.json"))
    rows.append(("worst tenth of the users", show(found.worst_decile)))
    for name, group in found.per_group.items():
        rows.append((f"group {name} ({group['users']} users)", show(group["personalized_acc"])))
    if found.worst_group_improvement is not None:
        rows.append(("worst group better by", show(found.worst_group_improvement, "+")))
    if fairness is not None:
        rows.append(("bound", fairness))
    rows += [
        ("sent up by a device in a round", size(costs["bytes_up_per_device"])),
        ("sent up in all", size(costs["bytes_up"])),
        ("failures", f"{costs['failures']:.0f}"),
        ("seconds", f"{costs['seconds']:.1f}"),
    ]
    out.print(table(["result", "value"], rows))
    out.print(f"\nwritten to {folder}; next: pfl recommend {folder}")


def _show_comparison(found: Comparison) -> None:
    columns, rows = found.table()
    out = console()
    if out.width < 120:  # the page has all columns
        kept = [i for i, c in enumerate(columns) if i < 4 or c.startswith(("worst tenth", "kB"))]
        columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    out.print(table(columns, rows, right=range(1, len(columns))))
    for line in found.misfits():
        out.print(line, markup=False)
