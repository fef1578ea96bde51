"""ONNX Runtime: one ``.onnx`` per program beside a shared weight file, run by the stock inference runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from typing_extensions import override

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError
from .base import Array, EngineSession, file_for
from .registry import register
from .schedule import SCHEDULE

if TYPE_CHECKING:
    import onnxruntime

#: Addresses that the arena of parts begins with; memory they take when they are first written to.
ARENA_BYTES = 64 << 20
#: Bytes that may be left over in a piece of it before that is divided.
ARENA_REST_BYTES = 1 << 18


class OnnxRuntimeSession(EngineSession):
    """Programs are loaded when first used."""

    name = "onnxruntime"

    def __init__(
        self, files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None
    ) -> None:
        import onnxruntime

        super().__init__(programs)
        self._files = dict(files)
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3
        # A thread that waits for work would keep a core busy: battery on a phone, and with other work beside it time.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if SCHEDULE in files:
            # Blocks are run one after another to take little. Each would keep the most that it ever took, so all take
            # from one arena; and each would keep what one value leaves for another of that size until then.
            _shared_arena()
            self._options.add_session_config_entry("session.use_env_allocators", "1")
            self._options.enable_mem_pattern = False
            self._options.enable_mem_reuse = False
        if threads:
            self._options.intra_op_num_threads = threads
            self._options.inter_op_num_threads = 1
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        import onnxruntime

        session = self._sessions.get(program)
        if session is None:
            path = file_for(self._files, program)
            try:
                session = onnxruntime.InferenceSession(
                    path, self._options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # the runtime's exceptions share no base below Exception
                raise EngineError(
                    f"ONNX Runtime cannot load {os.path.basename(path)}: {error}",
                    mend="export the bundle again",
                ) from error
            self._sessions[program] = session
        spec = self.programs[program]
        feeds = {want.name: array for want, array in zip(spec.inputs, inputs, strict=True)}
        try:
            outputs: Sequence[Array] = session.run([o.name for o in spec.outputs], feeds)
        except Exception as error:
            raise RuntimeError(str(error)) from error
        return outputs

    @override
    def close(self) -> None:
        super().close()
        self._sessions = {}


@cache
def _shared_arena() -> None:
    """Memory that parts take from in turns, once for the process: what was touched of it stays."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    doubling = 0
    onnxruntime.create_and_register_allocator(
        place,
        onnxruntime.OrtArenaCfg(
            {
                "max_mem": 0,
                "arena_extend_strategy": doubling,
                "initial_chunk_size_bytes": ARENA_BYTES,
                "max_dead_bytes_per_chunk": ARENA_REST_BYTES,
            }
        ),
    )


@register("onnxruntime", runtime=("onnxruntime",))
def load(
    files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None
) -> OnnxRuntimeSession:
    """Load the programs of a bundle; the shared weight file is found beside them."""
    return OnnxRuntimeSession(files, programs, threads)
