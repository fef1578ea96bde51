"""``pfl state`` and ``pfl peft``: the personal state that ``pfl personalize --state`` keeps."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.bundles import BundlePath, Key, open_bundle
from pfl_mobile.cli.common import EXIT_CODES, Json, console, percent, print_json, table
from pfl_mobile.errors import ConfigError, StateError

if TYPE_CHECKING:
    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.local.state import PersonalStateStore

commands = typer.Typer(
    no_args_is_help=True, help="Personal states: look at them, go back to an earlier one, forget words."
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the personal state.")]
Of = Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle that it belongs to.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="state")
    app.command(
        "peft", epilog="Example:  pfl peft keyboard-bundle --state ann-state --out adapter  " + EXIT_CODES
    )(peft)


def _store(folder: Path, bundle: Bundle) -> PersonalStateStore:
    from pfl_mobile.local.evaluation import personal_store

    if not os.path.isdir(folder):
        raise StateError(
            f"there is no personal state at {folder}",
            mend="make one with: pfl personalize BUNDLE --state DIR",
        )
    return personal_store(bundle, folder)


def _keep_what_is_chosen(store: PersonalStateStore) -> None:
    """Where the state is a device's, what a killed process was about to let serve no longer will."""
    from pfl_mobile.device.store import DeviceFolder

    place = store.directory.resolve()
    if place.name == "personal" and (place.parent / "queue").is_dir():
        with DeviceFolder(place.parent, store.model) as device:
            device.adopt_nothing()


def _describe(store: PersonalStateStore) -> dict[str, Any]:
    loaded = store.load()
    versions = [
        {
            "version": v.version,
            "parent": v.parent,
            "created": datetime.fromtimestamp(v.created, UTC).isoformat(timespec="seconds")
            if v.created
            else None,
            "metrics": dict(v.metrics),
            "current": v.current,
            "problem": v.problem,
        }
        for v in store.versions()
    ]
    return {
        "state": str(store.directory),
        "current": store.current,
        "serves": loaded.version,
        "slots": 0 if loaded.state is None else len(loaded.state.words),
        "warnings": [w.message for w in loaded.warnings],
        "versions": versions,
    }


def _print(store: PersonalStateStore, as_json: bool) -> None:
    found = _describe(store)
    if as_json:
        print_json(found)
        return
    out = console()
    serves = found["serves"]
    what = f"version {serves} serves" if serves else "the shipped values serve"
    out.print(f"{what}, {found['slots']} slots have a word")
    rows = [
        (
            v["version"],
            v["created"],
            "current" if v["current"] else "",
            v["problem"] or ", ".join(f"{m} {percent(v['metrics'], m)}" for m in v["metrics"]),
        )
        for v in found["versions"]
    ]
    if rows:
        out.print(table(["version", "saved (UTC)", "", "on the held-out examples"], rows, right=[0]))
    for warning in found["warnings"]:
        out.print(f"warning: {warning}", markup=False)


@commands.command("show", epilog="Example:  pfl state show ann-state --bundle keyboard-bundle  " + EXIT_CODES)
def show(folder: Folder, bundle: Of, as_json: Json = False) -> None:
    """List the saved versions and which one serves. The user's words are not shown."""
    with open_bundle(bundle, None) as opened:
        _print(_store(folder, opened), as_json)


@commands.command(
    "revert", epilog="Example:  pfl state revert ann-state --bundle keyboard-bundle  " + EXIT_CODES
)
def revert(
    folder: Folder,
    bundle: Of,
    to: Annotated[
        int | None, typer.Option("--to", help="Version to go back to; 0 for the shipped values.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go back to the version before the current one, or to the one given."""
    with open_bundle(bundle, None) as opened:
        store = _store(folder, opened)
        _keep_what_is_chosen(store)
        store.revert(to)
        _print(store, as_json)


@commands.command(
    "reset", epilog="Example:  pfl state reset ann-state --bundle keyboard-bundle  " + EXIT_CODES
)
def reset(
    folder: Folder,
    bundle: Of,
    erase: Annotated[
        bool, typer.Option("--erase", help="Delete all versions too: nothing personal is left.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go back to the shipped values. The versions stay and can be reverted to, unless --erase is given."""
    with open_bundle(bundle, None) as opened:
        store = _store(folder, opened)
        _keep_what_is_chosen(store)
        if erase:
            store.erase()
        else:
            store.reset()
        _print(store, as_json)


@commands.command(
    "forget",
    epilog="Example:  pfl state forget ann-state kestrel --bundle keyboard-bundle  " + EXIT_CODES,
)
def forget(
    folder: Folder,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="Words, one by one.")],
    bundle: Of,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="Also give what gradients trained its shipped values again: no single word can be taken out of it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Forget words: in their slots, in the n-gram memory, in every saved version; and never learn them again.

    The words go on a list of the state that only holds their digests. Trained values (LoRA, adapters) may still lean
    towards a word that the shipped vocabulary has; --retrain resets them, and the next personalization trains them
    without it. The messages are not the state's: erase those with the word where they are kept. What a device has
    sent to an aggregator before cannot be called back.

    JSON: state, words (as the keyboard cuts them), slots and entries (freed in the version that serves), versions
    (all rewritten), blocked (words on the list), trained (values that gradients trained are still there).
    """
    from pfl_mobile.local import forget as forgetting
    from pfl_mobile.local.evaluation import text_encoder

    with open_bundle(bundle, None) as opened:
        encoder = text_encoder(opened)
        if encoder is None:
            raise ConfigError(
                f"bundle {opened.manifest.name!r} takes arrays, so its states hold no words",
                mend="go back to the shipped values instead: pfl state reset DIR --bundle BUNDLE --erase",
            )
        store = _store(folder, opened)
        done = forgetting.forget(
            store, words, encoder, opened.manifest.tensors, opened.values(), retrain=retrain
        )
        found = {"state": str(store.directory), **asdict(done), "blocked": len(store.blocked)}
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(
        f"forgotten: {', '.join(done.words)}; {done.slots} slots and {done.entries} entries of the n-gram memory "
        f"freed, {len(done.versions)} versions rewritten; {found['blocked']} words are not learned again",
        markup=False,
    )
    if done.trained:
        out.print(
            "what gradients trained was trained on text with these words; --retrain resets it, and personalizing "
            "again trains it without them",
            markup=False,
        )
    out.print("your messages still hold them: erase those where they are kept", markup=False)


def peft(
    bundle: BundlePath,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Folder of the personal state.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the adapter.")],
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Recorded as base_model_name_or_path.")
    ] = None,
    public_key: Key = None,
    as_json: Json = False,
) -> None:
    """Export a personal state as a Hugging Face peft adapter: LoRA or else gates, with layers trained as a whole, or a
    prompt.
    """
    from pfl_mobile.bundle.peft import export_adapter, left_out

    with open_bundle(bundle, public_key) as opened:
        loaded = _store(state, opened).load()
        if loaded.state is None:
            raise StateError(
                f"no personal state serves in {state}, only the shipped values",
                mend="personalize first, or go back to a saved version: pfl state revert DIR --to VERSION",
            )
        manifest = opened.manifest
        modules = [m.model_dump(mode="json") for m in manifest.modules]
        export_adapter(
            out,
            loaded.state.tensors,
            {t.name: t.module for t in manifest.tensors if t.module is not None},
            modules,
            base_model=base_model,
        )
        others = left_out(modules)
    if as_json:
        print_json({"out": str(out), "version": loaded.version, "left_out": others})
        return
    console().print(f"{out}: peft adapter of version {loaded.version}", markup=False)
    if others:
        console().print(f"left out, as the adapter has no such modules: {', '.join(others)}", markup=False)
