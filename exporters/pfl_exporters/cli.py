"""The ``pfl-export`` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_exporters.targets import resolve
from pfl_mobile.cli.common import (
    EXIT_CODES,
    Json,
    Reporter,
    console,
    missing_package,
    print_json,
    run,
    size,
    table,
)
from pfl_mobile.errors import UnwritableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_exporters.export import ExportReport

#: As ``pfl_exporters.targets`` has them; that module needs torch, ``--help`` and wrong names do not.

app = typer.Typer(name="pfl-export", add_completion=False, rich_markup_mode="markdown")


@app.command(
    epilog="Examples:  pfl-export keyboard --target android --out keyboard.pflb --sign release.pem;  "
    "pfl-export my_model.py:build --target android,onnx.  " + EXIT_CODES
)
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="file.py:function, package.module:function, a recipe, or a run's folder."
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="T",
            help="android, onnx, torch, or all; several with commas; default: android.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|FILE.pflb", help="Folder or .pflb file; default: ./NAME-bundle."),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option("--sign", metavar="KEY", help="Sign with this private key (pfl keys new FILE)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SRC", help="Dataset name or file, handed to the function."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random batches for the comparison.")] = 0,
    as_json: Json = False,
) -> None:
    """Export a personalizable model as a bundle of verified on-device training programs.

    The function takes no argument, or `data` and `report`, and returns a pfl_mobile.deployment.Deployment, or a
    pfl_mobile.Study, which is trained first. The folder of a run of `pfl train` gives what that run trained.
    Loss and every gradient of each exported program are compared with PyTorch before anything is written; when
    they differ nothing is left behind and the exit code is 1.

    JSON: bundle, name, version, engines, total_bytes, planned_memory_bytes, frozen_bytes, verified (by engine:
    loss_rel_err, grad_max_rel_err), seconds (by step).
    """
    targets = _targets(target or ["android"])
    with Reporter() as report:
        done = _export(model, targets, out, sign, data, seed, report)
    if as_json:
        print_json(done.to_json())
    else:
        _show(done)


def _targets(given: Sequence[str]) -> list[str]:
    names = [name.strip() for entry in given for name in entry.split(",") if name.strip()]
    return [target.name for target in resolve(names or ["android"])]


def _export(
    model: str,
    targets: Sequence[str],
    out: Path | None,
    sign: str | None,
    data: str | None,
    seed: int,
    report: Reporter,
) -> ExportReport:
    """Find out early what would fail late: keys, targets and places are looked at before any model is built."""
    from pfl_mobile.bundle.sign import load_private_key
    from pfl_mobile.user_code import find_function

    key = None if sign is None else load_private_key(sign)
    if out is not None:
        _check_place(out)
    report(f"load {model}")
    function = find_function(model)
    place = out if out is not None else Path(f"{function.name.replace('_', '-')}-bundle")
    _check_place(place)
    report(f"load the tools for {', '.join(targets)}")
    try:
        from pfl_exporters.export import export_bundle
        from pfl_exporters.targets import resolve
    except ModuleNotFoundError as error:
        raise missing_package(error, "pfl-export") or error from error
    for wanted in resolve(targets):
        wanted.load()
    report(f"build the model of {function.shown}")
    deployment = function.deployment(data, report)
    return export_bundle(deployment, targets, place, sign_key=key, report=report, seed=seed)


def _check_place(out: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent.

    Raises:
        UnwritableError: it holds something that is not a bundle, or may not be written.
    """
    folder = out.absolute().parent
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        why = "is not a folder" if not os.path.isdir(folder) else "may not be written"
        raise UnwritableError(f"cannot write {out}: {folder} {why}", mend="give another --out")
    if os.path.isfile(out) and out.suffix != ".pflb":
        raise UnwritableError(f"{out} is a file that is there already", mend="give a folder or a .pflb file")
    if os.path.isdir(out) and any(out.iterdir()) and not os.path.isfile(out / "manifest.json"):
        raise UnwritableError(
            f"{out} is a folder with other things in it, not a bundle",
            mend=f"give a new folder, for instance --out {out / 'bundle'}",
        )


def _show(done: ExportReport) -> None:
    out, manifest = console(), done.manifest
    rows = [
        (engine, f"{e['loss_rel_err']:.1e}", f"{e['grad_max_rel_err']:.1e}")
        for engine, e in done.errors.items()
    ]
    out.print(table(["engine", "loss error", "gradient error"], rows, right=[1, 2]), "")
    measured = manifest.measured
    out.print(
        f"{done.out}: {manifest.name} version {manifest.version}, {size(measured.total_bytes)}, "
        f"planned memory {size(measured.planned_memory_bytes)}, {sum(done.seconds.values()):.0f} s",
        markup=False,
    )
    out.print(f"look into it: pfl inspect {done.out}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``pfl-export`` and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    return run(app, "pfl-export", arguments)
