"""Reference engine: the exported programs run by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..bundle.manifest import ProgramSpec
from .base import Array, EngineSession


class TorchSession(EngineSession):
    """Runs ``torch.export`` programs, or any callables over tensors."""

    name = "torch"

    def __init__(self, programs: Sequence[ProgramSpec], functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(programs)
        self._functions = dict(functions)

    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        with torch.no_grad():
            outputs = self._functions[program](*(torch.from_numpy(np.array(a)) for a in inputs))
        return [o.detach().contiguous().numpy() for o in outputs]

    def close(self) -> None:
        """Drop the programs."""
        super().close()
        self._functions = {}


def load(files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None) -> TorchSession:
    """Load ``.pt2`` files, one per program."""
    if threads:
        torch.set_num_threads(threads)
    return TorchSession(programs, {p.name: torch.export.load(files[p.name]).module() for p in programs})
