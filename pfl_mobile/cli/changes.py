"""A study with settings that have the names of the command line's options, as the note of a run keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfl_mobile.study.study import Study

#: Options that are a part of ``Machine``.
_MACHINE = ("backend", "processes", "lanes", "device")

#: Options that are no setting of ``Study`` by themselves.
PARTS = (*_MACHINE, "dropout", "local_epochs", "local_steps")


def with_changes(study: Study, changes: Mapping[str, Any]) -> Study:
    """The study with other settings.

    Args:
        study: to change.
        changes: settings of ``Study`` by name; the parts of its ``Machine`` and ``Cohort`` by theirs, each in place of
            what the study has (``cohort`` is a number of devices then); ``local_epochs`` or ``local_steps``.

    Raises:
        As ``Study``.
    """
    rest = dict(changes)
    machine = {name: rest.pop(name) for name in _MACHINE if name in rest}
    if machine:
        rest["machine"] = replace(study.machine, **machine)
    if "dropout" in rest:
        dropout = rest.pop("dropout")
        rest["cohort"] = replace(study.cohort, size=rest.get("cohort", study.cohort.size), dropout=dropout)
    elif "cohort" in rest:
        rest["cohort"] = replace(study.cohort, size=rest["cohort"])
    return study.replace(**rest) if rest else study
