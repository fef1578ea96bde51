"""`pfl strategies`, `pfl train`, `pfl compare`, `pfl recommend`, `pfl init`: studies on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pfl_mobile.cli.common import Json, console, print_json, table

if TYPE_CHECKING:
    from typing import Any


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("strategies")(strategies)


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
    rows = [
        (p["name"], p["default"], p["range"] or ", ".join(p["choices"] or ()) or p["type"], p["meaning"])
        for p in found["parameters"]
    ]
    if rows:
        out.print(table(["hyper-parameter", "default", "range", "meaning"], rows))
