"""Whether a disk has space left."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pfl_mobile.errors import StorageFullError
from pfl_mobile.files.atomic import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes that must be free: less is gone with the next uploads and the next version.
LEAST_FREE = 64 << 20


def check_space(folder: Path) -> None:
    """Ask the disk of a folder whether it has space.

    Raises:
        StorageFullError: less than `LEAST_FREE` is left.
        UnwritableError: the folder cannot be read.
    """
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise StorageFullError(
            f"the disk of {folder} has {free / (1 << 20):.0f} MiB left, less than {LEAST_FREE >> 20}",
            mend="free some space",
        )
