"""What a device has sent under its own noise, counted by itself: the aggregator's figures are not believed.

Kept in the device's folder, so that restarts and other federations of the same model go on with the same count.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfl_mobile.errors import DeviceFolderError
from pfl_mobile.files.atomic import PRIVATE, atomic_write
from pfl_mobile.files.reading import read_json
from pfl_mobile.privacy.local import local_epsilon

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION = 1
#: The largest sum that is kept: noise this small hides nothing anyway, and infinity is no JSON.
_MOST = 1e300


@dataclass(frozen=True)
class _Count:
    updates: int = 0
    inverse_squares: float = 0.0

    def plus(self, noise_multiplier: float) -> _Count:
        # z is divided by twice: its square may underflow
        more = 1 / noise_multiplier / noise_multiplier
        return _Count(self.updates + 1, min(self.inverse_squares + more, _MOST))


class SentNoise:
    """Updates that left this device under its own noise: how many, and the sum of z^-2, which is what epsilon needs.

    An update counts once it is made, before its upload begins, and never again: one that is resumed has the same
    noise, one that is trained anew has fresh noise and counts anew.

    Args:
        path: of the file; where there is none, nothing was sent.

    Raises:
        DeviceFolderError: the file is damaged, so it is not known what was sent.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, _read(path)

    @property
    def updates(self) -> int:
        """How many there were."""
        return self._count.updates

    def add(self, noise_multiplier: float) -> None:
        """Count an update that is about to be sent; it is on the disk when this returns.

        Args:
            noise_multiplier: z > 0 of its noise, relative to its clip norm.

        Raises:
            StorageFullError, UnwritableError: it cannot be counted, so it must not be sent.
        """
        count = self._count.plus(noise_multiplier)
        content = {
            "schema_version": SCHEMA_VERSION,
            "updates": count.updates,
            "inverse_squares": count.inverse_squares,
        }
        atomic_write(self._path, (json.dumps(content) + "\n").encode(), mode=PRIVATE)
        self._count = count

    def epsilon(self, delta: float, *more: float) -> float:
        """Epsilon of all that was sent, and of more updates.

        Args:
            delta: in 0..1.
            more: z > 0 of each.
        """
        count = self._count
        for noise_multiplier in more:
            count = count.plus(noise_multiplier)
        return local_epsilon(count.inverse_squares, delta)


def _read(path: Path) -> _Count:
    try:
        found = read_json(path)
        version, updates, inverse = found["schema_version"], found["updates"], float(found["inverse_squares"])
        fits = (
            isinstance(updates, int)
            and updates >= 0
            and math.isfinite(inverse)
            and (inverse > 0) == (updates > 0)
        )
    except FileNotFoundError:
        return _Count()
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(path, repr(error)) from error
    if version != SCHEMA_VERSION:
        raise DeviceFolderError(
            f"{path} has schema {version}, this version reads {SCHEMA_VERSION}", mend="update pfl-mobile"
        )
    if not fits:
        raise _damaged(path, "its numbers are out of range")
    return _Count(updates, inverse)


def _damaged(path: Path, why: str) -> DeviceFolderError:
    return DeviceFolderError(
        f"{path} is damaged ({why}), so it is not known how much was sent under this device's noise",
        mend="restore it from a backup; only the user can decide to remove it and to begin to count anew",
    )
