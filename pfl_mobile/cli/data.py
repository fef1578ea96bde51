"""``pfl data``: datasets and their users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pfl_mobile.cli.common import EXIT_CODES, Json, Reporter, console, print_json, show_left_out, table

commands = typer.Typer(no_args_is_help=True, help="Datasets: list them, get them, list their users.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="data")


@commands.command("list", epilog="Example:  pfl data list  " + EXIT_CODES)
def list_datasets(as_json: Json = False) -> None:
    """List the known datasets, with licence and whether they are on this machine."""
    from pfl_mobile import data
    from pfl_mobile.data import cache

    found: list[dict[str, Any]] = []
    for name in data.names():
        dataset = data.find(name)
        obtained = "generated"
        if isinstance(dataset, data.PublishedDataset):
            obtained = "download" if dataset.obtain else "by hand"
            obtained = "here" if cache.path_of(dataset).exists() else obtained
        found.append(
            {"name": name, "summary": dataset.summary, "licence": dataset.licence, "available": obtained}
        )
    if as_json:
        print_json({"datasets": found, "cache": str(data.cache_dir())})
        return
    console().print(table(["name", "", "available", "licence"], [_row(d) for d in found]))
    console().print("\nget one: pfl data get NAME    messages of your own: JSONL lines with user, text, time")


def _row(found: dict[str, Any]) -> tuple[str, str, str, str]:
    return found["name"], found["summary"], found["available"], found["licence"]


@commands.command(
    "get", epilog="Example:  pfl data get nus-sms --from smsCorpus_en_xml_2015.03.09_all.zip  " + EXIT_CODES
)
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a dataset (pfl data list).")],
    from_file: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Its source file, already on this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Get a dataset into the cache, from its registry or from a file.

    The cache is $PFL_CACHE, else ~/.cache/pfl-mobile.
    """
    from pfl_mobile import data
    from pfl_mobile.data import cache

    entry = data.find(name)
    with Reporter() as report:
        if isinstance(entry, data.Dataset):
            messages = data.get(name, from_file, report)
            summary: dict[str, Any] = {**messages.summary(), "left_out": messages.counts_left_out()}
        else:
            summary = data.summary(data.population(name, from_file=from_file, progress=report))
    path = str(cache.path_of(entry)) if isinstance(entry, data.PublishedDataset) else None
    if as_json:
        print_json({**summary, "path": path})
        return
    counts = [
        f"{n} {key.replace('_', ' ')}" for key, n in summary.items() if key not in ("dataset", "left_out")
    ]
    console().print(f"{summary['dataset']}: {', '.join(counts)}", markup=False)
    show_left_out(summary.get("left_out"))


@commands.command("users", epilog="Example:  pfl data users nus-sms --min 100  " + EXIT_CODES)
def users(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Dataset name or JSONL file.")],
    least: Annotated[int, typer.Option("--min", help="Only users with so many messages or more.")] = 1,
    as_json: Json = False,
) -> None:
    """List the users of a dataset with their message counts, those with most messages first.

    A dataset may leave out repeated messages of a user; those of a file of your own are all kept.

    JSON: dataset, users (user, messages), fewer (users with fewer messages than --min), left_out (messages of the
    source that are not counted, by reason; null where an earlier version read it without counting).
    """
    from pfl_mobile import data

    with Reporter() as report:
        found = data.load(source, report)
    counts = sorted(((u, len(m)) for u, m in found.users.items()), key=lambda p: (-p[1], p[0]))
    fewer = sum(n < least for _, n in counts)
    counts = [(u, n) for u, n in counts if n >= least]
    if as_json:
        listed = [{"user": u, "messages": n} for u, n in counts]
        left = found.counts_left_out()
        print_json({"dataset": found.name, "users": listed, "fewer": fewer, "left_out": left})
        return
    console().print(table(["user", "messages"], counts, right=[1]))
    if fewer:
        console().print(f"{fewer} users with fewer than {least} messages (--min) are not shown")
    show_left_out(found.counts_left_out())
