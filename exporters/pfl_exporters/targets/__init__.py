"""Targets: one file each, all with one function ``lower``.

A target takes the traced programs and returns the files of its engine. Nothing is written to the bundle before the
files have been loaded by that engine and compared with PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pfl_mobile.errors import ConfigError, MissingDependencyError, near

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
    """

    files: dict[str, str]
    paths: dict[str, Path]
    measured: dict[str, int] = field(default_factory=dict)


Lower: TypeAlias = "Callable[[Mapping[str, TracedProgram], Path, Report], Lowered]"


@dataclass(frozen=True)
class Target:
    """A target and the engine that runs its files."""

    name: str
    engine: str
    module: str
    extra: str

    def load(self) -> Lower:
        """Its ``lower`` function.

        Raises:
            MissingDependencyError: the packages of the target are not installed.
        """
        try:
            lower: Lower = importlib.import_module(self.module).lower
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"target {self.name!r} needs the package {error.name!r}",
                mend=f"pip install 'pfl-mobile[{self.extra}]'",
            ) from error
        return lower


TARGETS = {
    "android": Target("android", "executorch", "pfl_exporters.targets.android", "android"),
    "onnx": Target("onnx", "onnxruntime", "pfl_exporters.targets.onnx", "onnx"),
    "torch": Target("torch", "torch", "pfl_exporters.targets.torch", "torch"),
}


def resolve(names: Sequence[str]) -> list[Target]:
    """Targets by name; ``all`` is every one of them.

    Raises:
        ConfigError: an unknown target, or ``ios``, which is not available yet.
    """
    wanted: list[Target] = []
    for name in names:
        if name == "ios":
            raise ConfigError(
                "target 'ios' is not available in this version",
                mend="export with --target android or --target onnx; ONNX Runtime also runs on iOS",
            )
        if name != "all" and name not in TARGETS:
            raise ConfigError(f"there is no target {name!r}", mend=near(name, [*TARGETS, "all"]))
        wanted += [t for t in (TARGETS.values() if name == "all" else (TARGETS[name],)) if t not in wanted]
    return wanted
