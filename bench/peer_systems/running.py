"""What a system gives to the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from peer_systems.models import Workload


@dataclass(frozen=True)
class Running:
    """A system that has loaded a workload.

    Attributes:
        step: computes loss and gradients once, as far as a caller could use them.
        gradients: those of a step by name of the trained parameter, for the sum over all labels, in PyTorch's layout.
    """

    step: Callable[[], object]
    gradients: Callable[[], dict[str, np.ndarray]]


class Preparing(Protocol):
    """A file that writes what devices are given."""

    def runtime(self) -> None:
        """Import what is needed."""

    def prepare(self, workload: Workload, folder: Path) -> None:
        """Write it into the run's folder, in a process of its own."""


class System(Protocol):
    """The file of a system. All functions run in the system's own environment."""

    #: Packages whose versions are told.
    PACKAGES: tuple[str, ...]

    def runtime(self) -> None:
        """Import the runtime, and hold it to one thread; memory is counted from here on."""

    def files(self, workload: Workload, folder: Path) -> list[Path]:
        """What a device must hold: program and values."""

    def load(self, workload: Workload, folder: Path) -> Running:
        """Load what was prepared."""
