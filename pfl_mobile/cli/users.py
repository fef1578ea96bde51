"""``pfl personalize``: what a phone does, for one user of a dataset."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_mobile.cli.bundles import BundlePath, Engine, Key, open_bundle
from pfl_mobile.cli.common import (
    EXIT_CODES,
    INTERRUPTED,
    OK,
    Json,
    Reporter,
    console,
    interruptible,
    percent,
    print_json,
    show_left_out,
    table,
)
from pfl_mobile.cli.rows import rows_of
from pfl_mobile.errors import NoExamplesError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.local.evaluation import UserResult
    from pfl_mobile.local.report import Progress
    from pfl_mobile.local.trainer import Examples

#: Steps between checkpoints where a state folder is given.
CHECKPOINT_EVERY = 10

Source = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SRC",
        help="For a bundle that takes messages: a dataset (pfl data list), or a JSONL file with user and text. For "
        "one that takes arrays: a dataset, a recipe or file.py:function, whose study says what the rows are, or a .npz "
        "file.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "personalize",
        epilog="Example:  pfl personalize keyboard-bundle --data nus-sms --user 51 --state ann-state  "
        + EXIT_CODES,
    )(personalize)


def personalize(
    bundle: BundlePath,
    data: Source,
    user: Annotated[
        str, typer.Option("--user", metavar="ID", help="A user of the data (pfl data users SRC).")
    ],
    engine: Engine = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Keep the personal state of this user here, and go on from what is here.",
        ),
    ] = None,
    general: Annotated[
        str | None,
        typer.Option("--general", metavar="SRC", help="Other people's data, to measure forgetting."),
    ] = None,
    test: Annotated[
        float,
        typer.Option(
            "--test", min=0.01, max=0.99, help="Share of the user's examples, the newest, to test on."
        ),
    ] = 0.2,
    public_key: Key = None,
    as_json: Json = False,
) -> int:
    """Personalize one user through the exported programs and measure before and after.

    The newest part of the user's messages (--test) is never trained on. Training happens as the bundle's plan
    says; its guard adopts the result only if it is better on examples that were held out. Ctrl-C cancels and
    keeps the state; with --state, the same command goes on where it stopped.

    JSON: user, engine, status (adopted, kept, skipped, cancelled), examples (counts: all, train, holdout, test, older
    than what the bundle keeps, texts with no_words or unknown_words only), left_out (messages of the source that are
    not among them, by reason), before and after (metrics on the test part; recalls are fractions of 1), guard, steps,
    ms_per_step, peak_mb, slots, seconds.
    """
    from pfl_mobile.data.usertext import said_left_out
    from pfl_mobile.engines import open_session
    from pfl_mobile.local.evaluation import Evaluator, personal_store
    from pfl_mobile.local.parts import count_examples

    with Reporter() as report, open_bundle(bundle, public_key) as opened:
        examples, left_out = user_examples(opened, data, user, report)
        if count_examples(examples) < 2 and left_out:
            raise NoExamplesError(
                f"user {user!r} of {data} has {count_examples(examples)} example; left out: {said_left_out(left_out)}",
                mend="give at least 3: one to learn from, one for the guard, one to test on",
            )
        others = None if general is None else _general(opened, general, user, report)
        store = None if state is None else personal_store(opened, state, user)
        report("load the programs")
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(open_session(opened, engine))
            cancel = stack.enter_context(interruptible(report))
            every = None if store is None else CHECKPOINT_EVERY
            report(f"run the golden batch on {session.name}")
            evaluator = Evaluator(opened, session, general=others, checkpoint_every=every)
            report(f"measure {user}")

            shown = user if len(user) <= 12 else user[:11] + "\u2026"

            def on_progress(at: Progress) -> None:
                report(
                    f"personalize {shown}, step {at.step}/{at.of}, loss {at.loss:.3f}",
                    at.step / max(at.of, 1),
                )

            result = evaluator.personalize(
                user, examples, test=test, state=store, on_progress=on_progress, cancel=cancel
            )
    if as_json:
        print_json(result.to_json() | {"left_out": left_out})
    else:
        _show(result, state)
        show_left_out(left_out)
    return INTERRUPTED if result.status == "cancelled" else OK


def user_examples(
    bundle: Bundle, source: str, user: str, report: Reporter
) -> tuple[Examples, dict[str, int] | None]:
    """The examples of a user, oldest first: texts, or arrays for a bundle that takes them; and what was left out of
    the user's messages, by reason.
    """
    from pfl_mobile import data

    if _takes_rows(bundle, source):
        return rows_of(bundle.manifest, source, user, report), {}
    found = data.load(source, report)
    return found.texts(user), found.counts_left_out(user)


def _general(bundle: Bundle, source: str, user: str, report: Reporter) -> Examples:
    from pfl_mobile import data

    if _takes_rows(bundle, source):
        return rows_of(bundle.manifest, source, user, report, others=True)
    found = data.load(source, report)
    return [text for name in found.users if name != user for text in found.texts(name)]


def _takes_rows(bundle: Bundle, source: str) -> bool:
    encoder = bundle.manifest.encoder
    return source.endswith(".npz") or encoder is None or encoder.kind == "arrays"


def _show(result: UserResult, state: Path | None) -> None:
    out = console()
    rows = [(m, percent(result.before, m), percent(result.after, m)) for m in result.before]
    if result.general_before is not None and result.general_after is not None:
        both = result.general_before, result.general_after
        rows += [(f"general {m}", percent(both[0], m), percent(both[1], m)) for m in both[0]]
    counts = result.examples
    out.print(
        f"user {result.user}: {counts['all']} examples: {counts['train']} to train on, "
        f"{counts['holdout']} for the guard, {counts['test']} to test on",
        markup=False,
    )
    for words in unused_words(counts):
        out.print(words, markup=False)
    out.print(table(["", "before", "after"], rows, right=[1, 2]))
    out.print(_decision(result), markup=False)
    if result.steps:
        speed = "" if result.ms_per_step is None else f", {result.ms_per_step:.1f} ms each"
        memory = "" if result.peak_mb is None else f", peak memory {result.peak_mb:.0f} MB"
        out.print(f"{result.steps} steps on {result.engine}{speed}{memory}, {result.seconds:.1f} s in all")
    for note in result.to_json()["notes"]:
        out.print(f"note: {note}", markup=False)
    if result.status == "cancelled" and state is not None:
        out.print("the same command goes on from the last checkpoint")


def unused_words(counts: Mapping[str, int]) -> list[str]:
    """What is not learned from, in words."""
    found = []
    if counts.get("older"):
        found.append(
            f"{counts['older']} older examples are not used, the bundle keeps the newest (max_examples)"
        )
    if counts.get("no_words"):
        found.append(f"{counts['no_words']} messages without a word give nothing to learn from")
    if counts.get("unknown_words"):
        found.append(f"{counts['unknown_words']} messages have no word of the shipped vocabulary")
    return found


def _decision(result: UserResult) -> str:
    guard = result.guard
    if guard is None:
        return "cancelled: the state is as it was"
    why = {
        "better": "it is better",
        "not_better": "it is not better",
        "within_tolerance": "it is as good, within the plan's tolerance",
        "too_few_examples": "there are too few held-out examples",
        "good_enough": "the shipped model is good enough already",
        "not_finite": "it is not a number",
    }[guard["reason"]]
    numbers = [f"{guard[k]:.4f}" for k in ("before", "after") if guard[k] is not None]
    what = f"{guard['metric']} {' -> '.join(numbers)} on {guard['examples']} held-out examples"
    verdict = {
        "adopted": "adopted",
        "kept": "not adopted, the old state serves",
        "skipped": "nothing was trained",
    }
    return f"guard: {verdict[result.status]}: {why} ({what})"
