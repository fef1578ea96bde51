"""The keyboard: next-word prediction that learns its user's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfl_mobile.deployment import Deployment


def deployment(
    data: str | None = None, report: Callable[[str, float | None], None] | None = None
) -> Deployment:
    """The trained keyboard, ready for ``pfl-export keyboard``.

    Args:
        data: dataset name or JSONL file; by default one that a package registry has.
        report: told about progress.
    """
    from .recipe import deployment as build

    return build(data, report)
