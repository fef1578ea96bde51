"""What lowering makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pfl_mobile.bundle.consistency import tensor_bytes
from pfl_mobile.engines.compare import TOLERANCE
from pfl_mobile.engines.schedule import last_readers

if TYPE_CHECKING:  # the names of targets are wanted without PyTorch too
    from pfl_mobile.bundle.manifest import ProgramSpec
    from pfl_mobile.engines.schedule import Course
    from pfl_mobile.programs.trace import TracedProgram

#: Called with a line of text when a step begins.
Report = Callable[[str], None]


@dataclass(frozen=True)
class Lowered:
    """The files of one engine.

    Attributes:
        files: purpose -> path inside the bundle, as the manifest lists them.
        paths: path inside the bundle -> the file that was written for it.
        measured: figures in bytes, for the manifest.
        at_least: oldest version of the runtime that loads the files; None where that is not known.
        precision: what the manifest says of programs that compute in fewer bits; None for float32.
        memory: of programs that are parts, the bytes that a course takes at once on the engine; None where nobody
            knows.
    """

    files: dict[str, str]
    paths: dict[str, Path]
    measured: dict[str, int] = field(default_factory=dict)
    at_least: str | None = None
    precision: dict[str, Any] | None = None
    memory: Callable[[Sequence[ProgramSpec], Course], int] | None = None

    @property
    def tolerance(self) -> float:
        """Largest error of an output with which a bundle is written."""
        return TOLERANCE if self.precision is None else float(self.precision["tolerance"])


#: Writes the files of traced programs into a folder.
Lower: TypeAlias = "Callable[[Mapping[str, TracedProgram], Path, Report], Lowered]"


def waiting(course: Course, parts: Sequence[ProgramSpec], inside: Sequence[int]) -> int:
    """The most bytes that values between the calls of a course take, with what the call that runs takes besides.

    Args:
        course: the calls.
        parts: their signatures.
        inside: bytes that each call needs besides what it is given and gives.
    """
    specs = {part.name: part for part in parts}
    alive: dict[str, int] = {}
    most = 0
    for call, ends, needs in zip(course.calls, last_readers(course), inside, strict=True):
        for value, output in zip(call.outputs, specs[call.part].outputs, strict=True):
            alive[f"value:{value}"] = tensor_bytes(output)
        most = max(most, sum(alive.values()) + needs)
        for name in ends:
            alive.pop(name, None)
    return most
