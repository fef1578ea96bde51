"""C-MAPSS FD001: a hundred simulated jet engines that run until they fail.

Abhinav Saxena et al., "Damage Propagation Modeling for Aircraft Engine Run-to-Failure Simulation", PHM 2008; NASA
Prognostics Data Repository, a work of the US government. Read is ``train_FD001.txt``, whose engines are followed to
the end. (``test_FD001.txt`` holds other engines, cut off before the end: it tests a model on new engines, not
one that knows its engines, and is not used here.) Each engine starts with a different, unknown wear. NASA's file is
complete; a copy that many public repositories hold lacks 47 values in 39 lines, which are filled with the engine's
last value before (the next one at the start of its life).

**Users are fleets.** An engine fails once, at the end of its life, so a split in time within one engine would train
on healthy cycles only and test on wear that nobody ever saw. A user therefore has several engines, in order
of their numbers, and its newest engines are the test, whole lives of them. The data has no calendar and no owners:
that engines are owned in order of their numbers is our assumption, and makes fleets alike. With ``users=100`` each
engine is a user of its own all the same, and its newest cycles are the test.

Rows: ``x`` float32 [R, window, 14], the last ``window`` cycles of the 14 sensors that change in FD001, standardised
with all users' training cycles; ``weight`` float32 [R] of ones; and for ``task="rul"`` ``labels`` float32 [R, 1], the
cycles left, at most 125, divided by 125 (Heimes 2008: earlier, wear does not show); for ``task="failing"`` ``labels``
int64 [R], 1 where the engine fails within 30 cycles. No cycle is in a training and in a test window.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.data.tables import UserParts, check_fraction
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import Rows, holdout_size

#: Cycles left above which an engine counts as new.
MOST_LEFT = 125
#: Cycles before the end within which an engine counts as failing.
FAILING = 30
#: The sensors used, numbered from 1 as in the paper.
SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)

_COLUMNS = 26  # engine, cycle, 3 settings, 21 sensors
_TEXT, _GZIP = "train_FD001.txt", "train_FD001.txt.gz"

WHERE = (
    "get CMAPSSData.zip (turbofan engine degradation simulation) from NASA's Prognostics Data Repository, unzip it, "
    f"then run `pfl data get cmapss --from {_TEXT}`"
)


def parse(path: Path, progress: Progress) -> Table:
    """Read the text file, or its gzip: engine, cycle, 3 settings and 21 sensors a line."""
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("ascii").splitlines()
        values = np.array([[_number(v) for v in line.split()] for line in lines if line.strip()])
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", mend=WHERE) from error
    if values.ndim != 2 or values.shape[1] != _COLUMNS:
        raise DataError(f"{path} has shape {list(values.shape)}, not lines of {_COLUMNS} numbers", mend=WHERE)
    progress("cmapss: reading", 1.0)
    sensors = values[:, [4 + s for s in SENSORS]]
    return {
        "engine": values[:, 0].astype(np.int64),
        "cycle": values[:, 1].astype(np.int64),
        "sensors": sensors,
    }


def _number(word: str) -> float:
    return float("nan") if word.strip("'\"").lower() in ("n/a", "nan", "none") else float(word)


def _filled(values: np.ndarray) -> np.ndarray:
    """Missing values of a column replaced by the last one before, the first ones by the next."""
    known = np.flatnonzero(~np.isnan(values))
    before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(before, 0)]]


def build(
    table: Table,
    *,
    users: int = 20,
    task: str = "rul",
    window: int = 30,
    stride: int = 1,
    test: float = 0.2,
) -> ArrayPopulation:
    """The fleets.

    Args:
        table: what ``parse`` gives.
        users: number of fleets, 2 to 100; engines are shared out in order, as evenly as possible.
        task: ``"rul"`` or ``"failing"``.
        window: cycles in a row of ``x``.
        stride: cycles between one row and the next.
        test: fraction of a fleet's engines, at least one (of the one engine's cycles, where a fleet has one).

    Raises:
        ConfigError: an impossible option.
    """
    check_fraction(test)
    engines = np.unique(table["engine"])
    shortest = int(np.bincount(table["engine"])[engines].min())
    if task not in ("rul", "failing"):
        raise ConfigError(f"task={task!r}", mend="give 'rul' or 'failing'")
    if not 2 <= users <= len(engines):
        raise ConfigError(f"users={users}", mend=f"give 2 to {len(engines)}")
    if not 1 <= window <= shortest // 2 or stride < 1:
        raise ConfigError(
            f"window={window}, stride={stride}",
            mend=f"give a window of 1 to {shortest // 2} and a stride of 1 or more",
        )
    shares = [[_cycles(table, e) for e in fleet] for fleet in np.array_split(engines, users)]
    lives = [_older_and_newer(share, test) for share in shares]
    seen = np.concatenate([sensors for older, _ in lives for sensors, _ in older])
    mean, spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-9)

    def rows(cycles: list[tuple[np.ndarray, np.ndarray]]) -> Rows:
        parts = [_windows((sensors - mean) / spread, left, task, window, stride) for sensors, left in cycles]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    parts: UserParts = {
        f"fleet-{i:02d}": (rows(older), rows(newer)) for i, (older, newer) in enumerate(lives)
    }
    return ArrayPopulation.split("cmapss", parts)


def _cycles(table: Table, engine: int) -> tuple[np.ndarray, np.ndarray]:
    """Sensors [C, 14] and cycles left [C] of one engine, in order."""
    own = np.flatnonzero(table["engine"] == engine)
    own = own[np.argsort(table["cycle"][own], kind="stable")]
    cycle = table["cycle"][own]
    return np.apply_along_axis(_filled, 0, table["sensors"][own]), cycle[-1] - cycle


_Lives = list[tuple[np.ndarray, np.ndarray]]


def _older_and_newer(share: _Lives, test: float) -> tuple[_Lives, _Lives]:
    if len(share) > 1:
        cut = len(share) - holdout_size(len(share), test)
        return share[:cut], share[cut:]
    [(sensors, left)] = share
    cut = len(left) - holdout_size(len(left), test)
    return [(sensors[:cut], left[:cut])], [(sensors[cut:], left[cut:])]


def _windows(sensors: np.ndarray, left: np.ndarray, task: str, window: int, stride: int) -> Rows:
    ends = np.arange(window - 1, len(left), stride)
    if task == "rul":
        labels = (np.minimum(left[ends], MOST_LEFT) / MOST_LEFT).astype(np.float32)[:, None]
    else:
        labels = (left[ends] < FAILING).astype(np.int64)
    return {
        "x": sensors[ends[:, None] + np.arange(1 - window, 1)].astype(np.float32),
        "labels": labels,
        "weight": np.ones(len(ends), np.float32),
    }


DATASET = register(
    ArrayDataset(
        name="cmapss",
        summary="100 jet engines in 20 fleets: cycles left until failure, or failing within 30",
        licence="work of the US government",
        files={
            "963b5e22825b34d8b21c69e1aeb4af3e647050eb672ee8834ba4b5d91d2de0f8": f"{_TEXT} of NASA",
            "c0fd38f73b764980c56b5dc0abbc0a98d888fdc757a8eaef5acfc1f7ac21805f": f"{_TEXT} with 47 missing values",
            "bc8b7155fbe29dda4cf81258d908ed43d744235bee5d3202a4a436b38d863277": f"{_GZIP}, a gzip of the latter",
        },
        parse=parse,
        build=build,
        where=WHERE,
    )
)
