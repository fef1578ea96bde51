"""Trained weights kept in the cache folder, so that a machine trains them once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from pfl_mobile.files.atomic import atomic_write, disk_errors


def load_weights(place: Path) -> dict[str, Any] | None:
    """Kept weights; None where there are none."""
    if not place.is_file():
        return None
    found: dict[str, Any] = torch.load(place, weights_only=True)
    return found


def keep_weights(place: Path, tensors: dict[str, Any]) -> None:
    """Keep weights; after a crash at any moment there are all of them or none.

    Raises:
        StorageFullError, UnwritableError: the disk is full, or the folder may not be written.
    """
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    atomic_write(place, buffer.getvalue())
