"""What all plots share: figures without a window, colours, and files that are whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pfl_mobile.errors import MissingDependencyError
from pfl_mobile.files.atomic import atomic_write, disk_errors

#: Colours: what all share, what is one's own, what is bad.
SHARED, PERSONAL, BAD = "#8a8f98", "#1f6feb", "#cf222e"


def figure(width: float, height: float) -> Any:
    """An empty figure.

    Args:
        width, height: inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "plots need the package 'matplotlib'", mend="pip install 'pfl-mobile[report]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes; arguments and errors as ``figure``."""
    drawn = figure(width, height)
    found = drawn.subplots()
    found.spines[["top", "right"]].set_visible(False)
    return drawn, found


def save(drawn: Any, path: Path) -> Path:
    """Write a PNG file; its folder is made."""
    picture = io.BytesIO()
    drawn.savefig(picture, dpi=130)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, picture.getvalue())
    return path
