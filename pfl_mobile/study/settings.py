"""Groups of a study's settings: the devices of a round, and the machine that simulates them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pfl_mobile.errors import ConfigError
from pfl_mobile.study.checks import fraction, known_backend, whole

if TYPE_CHECKING:
    from pfl_mobile.simulation.backend import ClientBackend


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The devices of a round.

    Attributes:
        size: how many are drawn, 1 or more.
        dropout: share of them that do not answer, in [0, 1).

    Raises:
        ConfigError: one is out of range.
    """

    size: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range (ConfigError)."""
        whole("the cohort's size", self.size, 1)
        fraction("the cohort's dropout", self.dropout)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where devices are simulated, and how many at once. It changes results in their last bits at most.

    Attributes:
        backend: ``local``, ``ray`` or a ``ClientBackend``.
        processes: of the local backend; None for one a core, 0 for this process.
        lanes: devices trained at once in a process; None for 16, or 1 with convolutions.
        device: of PyTorch: ``cpu``, or ``cuda`` where there is a GPU.

    Raises:
        UnknownNameError: no backend has that name.
        ConfigError: a setting is out of range; PyTorch has no such device here.
    """

    backend: ClientBackend | str = "local"
    processes: int | None = None
    lanes: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what this machine cannot do (UnknownNameError, ConfigError)."""
        known_backend(self.backend)
        if self.processes is not None:
            whole("the machine's processes", self.processes, 0)
        if self.lanes is not None:
            whole("the machine's lanes", self.lanes, 1)
        _check_device(self.device)


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"there is no device {name!r}", mend="give 'cpu' or 'cuda'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PyTorch finds no GPU here", mend="leave device out, or install PyTorch for CUDA")
