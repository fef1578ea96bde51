"""ExecuTorch: one ``.pte`` with a method for each program, run by the stock runtime of the PyPI wheel."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from typing_extensions import override

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError
from .base import Array, EngineSession, file_for
from .registry import register


class _Pool:
    """The runtime's threads: one pool for all sessions of a process, whose methods keep hold of it.

    The runtime makes one for all processors of the machine, also where the process may use one of them only; threads
    that wait for work in turns on one processor take a fifth of a step's time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: WeakSet[ExecutorchSession] = WeakSet()
        self._usual: int | None = None

    def enter(self, session: ExecutorchSession, threads: int | None) -> None:
        """Size the pool for a session that begins.

        Args:
            session: that is about to load methods.
            threads: None: as many as there are, or else one for each processor that the process may use.

        Raises:
            EngineError: sessions are open that use another number.
        """
        from executorch.extension.pybindings import portable_lib

        with self._lock:
            there = portable_lib._threadpool_get_thread_count()
            if self._usual is None:
                allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
                self._usual = min(there, allowed)
            if threads is None:
                threads = there if self._open else self._usual
            if threads != there:
                if self._open:
                    raise EngineError(
                        f"open sessions of ExecuTorch in this process have {there} threads, this one wants {threads}",
                        mend="close them first, or leave out `threads`: all sessions of a process share the threads",
                    )
                portable_lib._unsafe_reset_threadpool(threads)
            self._open.add(session)

    def leave(self, session: ExecutorchSession) -> None:
        """A session has freed its methods."""
        with self._lock:
            self._open.discard(session)


_POOL = _Pool()


class ExecutorchSession(EngineSession):
    """Methods are loaded when first used, so ``predict`` alone does not pay for ``gradients``."""

    name = "executorch"

    def __init__(self, path: str, programs: Sequence[ProgramSpec], threads: int | None = None) -> None:
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
        _POOL.enter(self, threads)

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        import torch

        if program not in self._methods:
            method = self._program.load_method(program)
            if method is None:
                raise RuntimeError("the method cannot be loaded")
            self._methods[program] = method
        # The method reads them where they are, and writes to none. Its public call copies outputs to memory of its own.
        call = self._methods[program]._method
        outputs = call([torch.from_numpy(_writable(a)) for a in inputs], clone_outputs=False)
        return [self._copied(o.numpy()) for o in outputs]

    def _copied(self, output: Array) -> Array:
        """The output in memory that the runtime does not write to in its next call."""
        made = self.room(output.shape, output.dtype)
        np.copyto(made, output)
        return made

    @override
    def close(self) -> None:
        super().close()
        self._methods = {}
        self._program = None
        _POOL.leave(self)


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
def load(files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None) -> ExecutorchSession:
    """Load the ``model`` file.

    Raises:
        EngineError: it cannot be loaded, or sessions of this process are open that have another number of threads.
    """
    return ExecutorchSession(file_for(files, "model"), programs, threads)
