"""The files that every system of a run reads: the model's values and one batch (safetensors)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from peer_systems.models import Workload


def values_file(folder: Path) -> Path:
    """All parameters by name, float32."""
    return folder / "values.safetensors"


def write(workload: Workload, folder: Path) -> None:
    """Write what the systems are given."""
    save_file(workload.draw(), values_file(folder))
    save_file(workload.draw_batch(), folder / "batch.safetensors")


def batch(folder: Path) -> dict[str, np.ndarray]:
    """The batch."""
    return load_file(folder / "batch.safetensors")


def values(folder: Path, workload: Workload) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The values that are trained, and the frozen ones."""
    found = load_file(values_file(folder))
    return {name: found.pop(name) for name in workload.trained}, found
