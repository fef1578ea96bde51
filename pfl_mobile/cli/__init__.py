"""The ``pfl`` command. Heavy packages are imported by the command that needs them, never by ``--help``.

Exit codes: 0 fine; 1 a check failed (an engine disagrees with PyTorch); 2 wrong input or environment (the
message says how to mend it); 70 a fault of pfl-mobile itself, whose traceback --debug or PFL_DEBUG=1 shows; 130
interrupted. With ``--json``, standard output holds one JSON value and
nothing else, ``{"error": {"type", "message", "mend"}}`` after an error; progress goes to standard error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pfl_mobile.cli import (
    bundles,
    compare,
    data,
    demo,
    device,
    init,
    keys,
    privacy,
    serve,
    state,
    studies,
    users,
)
from pfl_mobile.cli.common import EXIT_CODES, run

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="pfl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="On-device personalization: look into bundles, check them, and personalize users with them.\n\n"
    "To make a bundle, use `pfl-export`. " + EXIT_CODES,
)
bundles.add_to(app)
users.add_to(app)
data.add_to(app)
state.add_to(app)
keys.add_to(app)
demo.add_to(app)
device.add_to(app)
init.add_to(app)
studies.add_to(app)
compare.add_to(app)
privacy.add_to(app)
serve.add_to(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``pfl`` and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    return run(app, "pfl", arguments)
