"""WISDM activity recognition: what 36 people do, from the phone in their pocket.

Jennifer R. Kwapisz, Gary M. Weiss and Samuel A. Moore, "Activity Recognition using Cell Phone Accelerometers",
SensorKDD 2010. Windows of 10 seconds of the accelerometer, which do not overlap, each turned into 43 features:
per axis ten bins of its values, mean, time between peaks, mean absolute deviation and standard deviation, and the
mean length of the vector. Free to use with citation; not redistributed here.

Rows: ``x`` float32 [R, 43], standardised; a missing value (no peaks in a window) is 0, the mean. ``labels`` int64
[R], the index in :data:`ACTIVITIES`. ``weight`` float32 [R] of ones. Rows keep the order of the recording.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.data.tables import UserParts, check_fraction, rows_at, standardised
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import holdout_size

ACTIVITIES = ("Downstairs", "Jogging", "Sitting", "Standing", "Upstairs", "Walking")
_FEATURES = 43
_FILE = "WISDM_ar_v1.1_transformed.arff"

WHERE = (
    f"get {_FILE} from the WISDM Lab (activity prediction dataset, WISDM_ar_latest.tar.gz), then run "
    f"`pfl data get wisdm --from {_FILE}`"
)


def parse(path: Path, progress: Progress) -> Table:
    """Read the ARFF file: window id, user, 43 features, activity."""
    users: list[int] = []
    values: list[list[float]] = []
    labels: list[int] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        begun = False
        for number, line in enumerate(lines, 1):
            if begun and line.strip():
                _, user, *features, activity = line.strip().split(",")
                if len(features) != _FEATURES:
                    raise ValueError(f"line {number} has {len(features)} features")
                users.append(int(user))
                values.append([float("nan") if f == "?" else float(f) for f in features])
                labels.append(ACTIVITIES.index(activity))
            begun = begun or line.strip().lower() == "@data"
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", mend=WHERE) from error
    progress("wisdm: reading", 1.0)
    return {
        "user": np.asarray(users, np.int64),
        "x": np.asarray(values, np.float32),
        "labels": np.asarray(labels, np.int64),
    }


def build(table: Table, *, test: float = 0.2, split: str = "activity") -> ArrayPopulation:
    """The 36 people.

    People did one activity after the other, so the newest part of a recording is one or two activities, often the
    only time that they occur. ``split="activity"`` therefore tests on the newest part of each activity;
    ``split="time"`` on the newest part of the whole recording.

    Args:
        table: what ``parse`` gives.
        test: fraction of the windows (of each activity) that are tested.
        split: ``"activity"`` or ``"time"``.

    Raises:
        ConfigError: another split, or a fraction outside (0, 1).
    """
    check_fraction(test)
    if split not in ("activity", "time"):
        raise ConfigError(f"split={split!r}", mend="give 'activity' or 'time'")
    parts: UserParts = {}
    for user in np.unique(table["user"]):
        rows = rows_at({n: table[n] for n in ("x", "labels")}, table["user"] == user)
        rows["weight"] = np.ones(len(rows["labels"]), np.float32)
        newest = np.zeros(len(rows["labels"]), bool)
        kinds = rows["labels"] if split == "activity" else np.zeros_like(rows["labels"])
        for kind in np.unique(kinds):
            windows = np.flatnonzero(kinds == kind)
            newest[windows[len(windows) - holdout_size(len(windows), test) :]] = True
        parts[str(user)] = rows_at(rows, ~newest), rows_at(rows, newest)
    return ArrayPopulation.split("wisdm", standardised(parts, "x"))


DATASET = register(
    ArrayDataset(
        name="wisdm",
        summary="activity of 36 people from the phone in their pocket: 43 features, 6 classes",
        licence="free to use with citation, do not pass on",
        files={"8cb3fbbad6398ac4b817cc7b98f387efa89ac24b26d1270a5e7a1049a8f9c31a": _FILE},
        parse=parse,
        build=build,
        where=WHERE,
    )
)
