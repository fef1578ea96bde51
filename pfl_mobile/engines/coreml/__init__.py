"""Core ML: a package with one function for each program, run by Core ML itself on a Mac, or interpreted anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ...bundle.manifest import ProgramSpec
from ...errors import EngineError, EngineUnavailableError
from ..base import Array, EngineSession, file_for
from ..registry import register
from .reference import CoremlReferenceSession, numbered

__all__ = ["CoremlReferenceSession", "CoremlSession"]


class CoremlSession(EngineSession):
    """Functions are compiled and loaded when first used."""

    name = "coreml"

    def __init__(self, files: Mapping[str, str], programs: Sequence[ProgramSpec]) -> None:
        super().__init__(programs)
        self._files = dict(files)
        self._models: dict[str, Any] = {}

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        import coremltools

        spec = self.programs[program]
        together = "package" in self._files
        if program not in self._models:
            try:
                self._models[program] = coremltools.models.MLModel(
                    str(Path(file_for(self._files, "package" if together else f"package.{program}")).parent),
                    function_name=program if together else None,
                    compute_units=coremltools.ComputeUnit.CPU_ONLY,
                )
            except Exception as error:  # whatever the compiler raises
                raise EngineError(
                    f"Core ML cannot load {program!r}: {error}", mend="export the bundle again"
                ) from error
        feeds = numbered(zip((i.name for i in spec.inputs), inputs, strict=True))
        got = self._models[program].predict(feeds)
        return [
            np.asarray(got[f"out_{number}"]).astype(want.dtype, copy=False)
            for number, want in enumerate(spec.outputs)
        ]

    @override
    def close(self) -> None:
        super().close()
        self._models = {}


# where there is no Core ML, nobody is led to it
@register("coreml", runtime=("coremltools",), only_named=sys.platform != "darwin")
def load(
    files: Mapping[str, str],
    programs: Sequence[ProgramSpec],
    threads: int | None,  # noqa: ARG001
) -> CoremlSession:
    """Load the package of a bundle; Core ML chooses its threads.

    Raises:
        EngineUnavailableError: this is no Mac.
    """
    import platform

    if platform.system() != "Darwin":
        raise EngineUnavailableError(
            "Core ML runs on a Mac or an iPhone only",
            mend="use --engine coreml-reference, which interprets the package",
        )
    return CoremlSession(files, programs)
