"""``pfl demo``: complete runs of the recipes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pfl_mobile.cli.common import EXIT_CODES, Json, Reporter, console, missing_package, print_json, table

commands = typer.Typer(no_args_is_help=True, help="Complete runs of the recipes.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="demo")


@commands.callback()
def _group() -> None:
    """Keep ``keyboard`` a subcommand, although it is the only one."""


@commands.command(
    "keyboard", epilog="Example:  pfl demo keyboard --data nus-sms --out demo-out  " + EXIT_CODES
)
def keyboard(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SRC",
            help="Dataset name or JSONL file; by default one from a package registry.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for bundle, tables and plots.")
    ] = None,
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="Personalize at most so many users.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a keyboard, export it for Android, personalize every held-out user through the exported program.

    JSON: dataset, users, top1_before, top1_after, top3_before, top3_after, users_better, users_worse,
    worst_decile_gain, general_top3_before, general_top3_after, trigram_top1_after, engine, ms_per_step.
    """
    try:
        module = importlib.import_module("pfl_recipes.keyboard.demo")
    except ModuleNotFoundError as error:
        missing = missing_package(error, "the keyboard demo")
        if missing is None:
            raise
        raise missing from error
    with Reporter() as report:
        found: dict[str, Any] = module.run(data=data, out=out, users=users, report=report)
    if as_json:
        print_json(found)
        return
    plain = [
        (k, f"{v:.2f}" if isinstance(v, float) else v)
        for k, v in found.items()
        if not isinstance(v, dict | list)
    ]
    console().print(table(["", ""], plain, right=[1]))
