"""ExecuTorch: one ``.pte`` with a method for each program, run by the stock runtime of the PyPI wheel."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError
from .base import Array, EngineSession, file_for
from .registry import register


class ExecutorchSession(EngineSession):
    """Methods are loaded when first used, so ``predict`` alone does not pay for ``gradients``."""

    name = "executorch"

    def __init__(self, path: str, programs: Sequence[ProgramSpec]) -> None:
        from executorch.runtime import Runtime, Verification

        super().__init__(programs)
        try:
            # The full check: the runtime follows every offset in the file, wherever it leads.
            self._program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
            present = self._program.method_names
        except Exception as error:  # a damaged name is a UnicodeDecodeError, a damaged count a MemoryError
            raise EngineError(
                f"ExecuTorch cannot load {os.path.basename(path)}: {error or type(error).__name__}",
                mend="export the bundle again",
            ) from error
        missing = sorted(set(self.programs) - set(present))
        if missing:
            raise EngineError(
                f"{os.path.basename(path)} has no method {missing[0]!r}; it has {sorted(present)}",
                mend="export the bundle again",
            )
        self._methods: dict[str, Any] = {}

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        import torch

        if program not in self._methods:
            method = self._program.load_method(program)
            if method is None:
                raise RuntimeError("the method cannot be loaded")
            self._methods[program] = method
        # the method reads them where they are, and writes to none
        outputs = self._methods[program].execute([torch.from_numpy(_writable(a)) for a in inputs])
        # they are copies: the runtime reuses its own output memory in the next call
        return [o.numpy() for o in outputs]

    @override
    def close(self) -> None:
        super().close()
        self._methods = {}
        self._program = None


def _writable(array: Array) -> Array:
    """The array as PyTorch takes it: it warns of memory that it may not write to, which nobody does here."""
    if array.flags.writeable:
        return array
    if not array.size:
        return array.copy()
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    shared: Array = np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
    return shared


@register("executorch", runtime=("executorch.runtime", "torch"))
def load(files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None) -> ExecutorchSession:  # noqa: ARG001
    """Load the ``model`` file. The stock runtime sizes its own thread pool; restrict it by CPU affinity."""
    return ExecutorchSession(file_for(files, "model"), programs)
