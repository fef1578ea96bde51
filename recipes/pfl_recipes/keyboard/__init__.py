"""The keyboard: next-word prediction that learns its user's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfl_mobile import Deployment
    from pfl_mobile.text import VocabularyRule


def deployment(
    data: str | None = None,
    report: Callable[[str, float | None], None] | None = None,
    vocabulary: VocabularyRule | None = None,
) -> Deployment:
    """The trained keyboard, ready for ``pfl-export keyboard``.

    Args:
        data: dataset name or JSONL file; by default one that a package registry has.
        report: told about progress.
        vocabulary: which words of the users may ship; by default those of 5 users.
    """
    from .recipe import deployment as build

    return build(data, report, vocabulary)
