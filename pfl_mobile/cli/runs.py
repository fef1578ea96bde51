"""Runs on disk: what was run is written beside the results, so that a folder is enough to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import ConfigError
from pfl_mobile.files.atomic import PRIVATE, atomic_write, private_folder
from pfl_mobile.files.reading import read_json
from pfl_mobile.privacy import checked_privacy
from pfl_mobile.simulation.checkpoint import FILES

if TYPE_CHECKING:
    from pfl_mobile.study.result import StudyResult
    from pfl_mobile.study.study import Study

_SOURCE = "source.json"
#: Settings that had other names in the notes of earlier runs.
_RENAMED = {"engine": "backend"}


def note_source(folder: Path, model: str, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Write where the study of a run comes from.

    Args:
        folder: of the run.
        model: as the user named it; a file's path is made absolute.
        settings: given to its function.
        changes: what ``changed_study`` does to it afterwards.
    """
    source, colon, function = model.rpartition(":")
    if colon and source.endswith(".py"):
        model = f"{Path(source).expanduser().resolve()}:{function}"
    text = json.dumps({"model": model, "settings": dict(settings), "changes": dict(changes)}, indent=2)
    private_folder(folder, ours=(_SOURCE, *FILES))
    atomic_write(folder / _SOURCE, text.encode(), mode=PRIVATE)


def is_started(place: str | Path) -> bool:
    """Whether a path is the folder of a run that has a checkpoint, so that its note must stay as it is."""
    return is_run(place) and os.path.exists(Path(place) / "checkpoint")


def is_run(place: str | Path) -> bool:
    """Whether a path is the folder of a run."""
    return os.path.isfile(Path(place) / _SOURCE)


def study_of(folder: str | Path) -> Study:
    """The study of a run, built again from its source.

    Raises:
        ConfigError: the folder holds no run, or its note is damaged.
        UserCodeError: the function that makes the study fails.
    """
    path = Path(folder) / _SOURCE
    try:
        source = read_json(path, finite=False)
        model, settings, changes = source["model"], source["settings"], source["changes"]
        if not (isinstance(model, str) and isinstance(settings, dict) and isinstance(changes, dict)):
            raise TypeError("model is no text, or settings or changes are no objects")
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no run", mend="make one with `pfl train`") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged: {error}", mend="run `pfl train` again") from error
    changes = {_RENAMED.get(name, name): value for name, value in changes.items()}
    return changed_study(model, settings, {**changes, "folder": folder})


def changed_study(model: str, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Study:
    """The study that a function makes, with changes.

    Another strategy than its own that needs no personal layers shares them, as in ``compare``: federated averaging
    that keeps a layer on the devices would be another method under that name.

    Args:
        model: as the user named it.
        settings: given to its function.
        changes: settings in place of the study's own, by the names of :func:`with_changes`; ``parameters`` beside
            those it gives the same strategy; ``privacy`` as JSON values.
    """
    from pfl_mobile.cli.changes import with_changes
    from pfl_mobile.cli.user_code import load_study
    from pfl_mobile.study.variants import for_strategy

    study, changes = load_study(model, **settings), dict(changes)
    other = changes.get("strategy", study.strategy_name)
    if other != study.strategy_name:
        study = for_strategy(study, other)
    if "parameters" in changes:
        changes["parameters"] = {**study.parameters, **changes["parameters"]}
    if "privacy" in changes:
        changes["privacy"] = checked_privacy(changes["privacy"])
    return with_changes(study, changes)


def open_run(folder: str | Path) -> StudyResult:
    """The result of a finished run.

    Raises:
        ConfigError: the folder holds no finished run of these settings; and as ``study_of``.
    """
    return study_of(folder).result()
