"""What lowering makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pfl_mobile.engines.compare import TOLERANCE

if TYPE_CHECKING:  # the names of targets are wanted without PyTorch too
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
    """

    files: dict[str, str]
    paths: dict[str, Path]
    measured: dict[str, int] = field(default_factory=dict)
    at_least: str | None = None
    precision: dict[str, Any] | None = None

    @property
    def tolerance(self) -> float:
        """Largest error of an output with which a bundle is written."""
        return TOLERANCE if self.precision is None else float(self.precision["tolerance"])


#: Writes the files of traced programs into a folder.
Lower: TypeAlias = "Callable[[Mapping[str, TracedProgram], Path, Report], Lowered]"
