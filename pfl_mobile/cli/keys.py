"""``pfl keys``: keys that sign bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_mobile.cli.common import EXIT_CODES, Json, console, print_json

commands = typer.Typer(no_args_is_help=True, help="Keys that sign bundles.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(commands, name="keys")


@commands.callback()
def _group() -> None:
    """Keep ``new`` a subcommand, although it is the only one."""


@commands.command("new", epilog="Example:  pfl keys new release.pem  " + EXIT_CODES)
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key.")],
    as_json: Json = False,
) -> None:
    """Make an Ed25519 signing key: FILE (private, keep it safe) and FILE.pub (pin it in the app)."""
    from pfl_mobile.bundle.sign import generate_key

    public = generate_key(file)
    if as_json:
        print_json({"private_key": str(file), "public_key_file": f"{file}.pub", "public_key": public})
        return
    out = console()
    out.print(f"private key: {file} (keep it safe; sign with: pfl-export ... --sign {file})", markup=False)
    out.print(f"public key:  {file}.pub", markup=False)
    out.print(f"to pin:      {public}")
