"""The gradients that all systems are compared with: PyTorch's in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peer_systems.models import Workload

FILE = "expected.npz"


def runtime() -> None:
    """PyTorch."""
    import torch

    torch.set_num_threads(1)


def prepare(workload: Workload, folder: Path) -> None:
    """Write them by name."""
    import torch

    from peer_systems import torch_models

    np.savez(folder / FILE, **torch_models.gradients(workload, folder, torch.float64))  # type: ignore[arg-type]
