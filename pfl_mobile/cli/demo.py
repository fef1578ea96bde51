"""``pfl demo``: complete runs of the recipes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pfl_mobile.cli.common import (
    EXIT_CODES,
    FAILED,
    OK,
    Json,
    Reporter,
    console,
    print_json,
    show_left_out,
    size,
    table,
)
from pfl_mobile.errors import ConfigError, missing_package
from pfl_mobile.text.vocabulary import MIN_USERS, VocabularyRule

MinUsers = Annotated[
    int,
    typer.Option(
        "--min-users", min=1, help="Users who must have written a word of the vocabulary that ships."
    ),
]

MinMessages = Annotated[
    int, typer.Option("--min-messages", min=2, help="Messages that a user needs to take part.")
]

commands = typer.Typer(no_args_is_help=True, help="Complete runs of the recipes.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="demo")


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
    min_users: MinUsers = MIN_USERS,
    min_messages: MinMessages = 100,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            metavar="FOLDER",
            help="A causal language model of transformers (or one .gguf file) that teaches the backbone beside the "
            "text; SmolLM2-135M takes about half an hour of one core with AMX.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a keyboard, export it for Android, personalize every held-out user through the exported program.

    JSON: dataset, users, top1_before, top1_after, top3_before, top3_after, users_better, users_worse,
    worst_decile_gain, general_top3_before, general_top3_after, trigram_top1_after, engine, ms_per_step, left_out
    (messages that nothing is done with, by reason).
    """
    module = _recipe("keyboard.demo", "the keyboard demo")
    with Reporter() as report:
        found: dict[str, Any] = module.run(
            data=data,
            out=out,
            users=users,
            min_messages=min_messages,
            report=report,
            vocabulary=VocabularyRule(min_users),
            teacher=teacher,
        )
    if as_json:
        print_json(found)
        return
    plain = [
        (k, f"{v:.2f}" if isinstance(v, float) else v)
        for k, v in found.items()
        if not isinstance(v, dict | list)
    ]
    console().print(table(["", ""], plain, right=[1]))
    show_left_out(found["left_out"])


@commands.command(
    "federated",
    epilog="Example:  pfl demo federated --devices 40 --rounds 5 --out federated-out  " + EXIT_CODES,
)
def federated(
    devices: Annotated[int, typer.Option("--devices", min=2, help="How many devices.")] = 40,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds.")] = 5,
    data: Annotated[
        str, typer.Option("--data", metavar="SRC", help="Dataset name or JSONL file with user and text.")
    ] = "sotu",
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="E", help="That the devices train with; a wrong name lists them."),
    ] = "executorch",
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Privacy budget over all rounds; default: 8.")
    ] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="No noise; the devices are told to allow that.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for everything that the run makes.")
    ] = None,
    min_users: MinUsers = MIN_USERS,
    min_messages: MinMessages = 100,
    as_json: Json = False,
) -> int:
    """Run a server and devices as real processes over real HTTP: the keyboard, trained in rounds with privacy.

    A small backbone is trained and exported; every device trains the program of its engine on messages of a user whom
    the backbone never saw. LoRA in the attention is shared, LoRA in the feed-forward layers is each device's own.

    JSON: rounds, global_top3 and personalized_top3 (percent, a number for every round: of the shared model that the
    round made, and of the devices' own models after it), epsilon, bytes_up, bytes_down, failures, engine, devices,
    seconds, shipped_top3 (before the first round), left_out (messages of the source, by reason), messages_on_devices,
    messages_unused (of held-out users, beyond what the devices keep), and more. The exit code is 1 when rounds are
    missing.
    """
    if no_privacy and epsilon is not None:
        raise ConfigError("--no-privacy and --epsilon contradict each other", mend="give one of them")
    budget = None if no_privacy else 8.0 if epsilon is None else epsilon
    module = _recipe("keyboard.federated", "the federated demo")
    with Reporter() as report:

        def on_round(figures: Any) -> None:
            report.note(
                f"after round {figures.round + 1}: top-3 {figures.shared:.2f} % with the shared model, "
                f"{figures.personalized:.2f} % with the own models ({figures.devices} devices)"
            )

        found: dict[str, Any] = module.run(
            data,
            devices,
            rounds,
            out,
            engine=engine,
            epsilon=budget,
            min_users=min_users,
            min_messages=min_messages,
            report=report,
            on_round=on_round,
        )
    if as_json:
        print_json(found)
    else:
        rows = [("before", f"{found['shipped_top3']:.2f}", "")]
        pairs = zip(found["global_top3"], found["personalized_top3"], strict=False)
        rows += [(str(i + 1), f"{shared:.2f}", f"{own:.2f}") for i, (shared, own) in enumerate(pairs)]
        title = "top-3 recall in percent"
        console().print(table(["round", "shared", "own"], rows, title=title, right=[1, 2]))
        private = (
            "none"
            if found["epsilon"] is None
            else f"epsilon {found['epsilon']:.3g}, delta {found['delta']:g}"
        )
        console().print(
            f"privacy {private}; {size(found['bytes_up'])} up, {size(found['bytes_down'])} down; "
            f"{found['failures']} failures; {found['seconds']:.0f} s; {found['report']}",
            markup=False,
        )
        console().print(
            f"{found['messages_on_devices']} messages on devices, {found['messages_unused']} of held-out users unused",
            markup=False,
        )
        show_left_out(found["left_out"])
    return OK if found["rounds"] == rounds else FAILED


def _recipe(name: str, what: str) -> Any:
    """A module of the recipes; MissingDependencyError when what it needs is not installed."""
    try:
        return importlib.import_module(f"pfl_recipes.{name}")
    except ModuleNotFoundError as error:
        raise missing_package(error, what) or error from error
