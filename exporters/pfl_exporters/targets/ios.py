"""iOS: Core ML, for iOS 18 in one package, for iOS 17 in one for each program, and in mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.lowering.files import Lowered, Report
from pfl_exporters.targets.registry import L, register

if TYPE_CHECKING:
    from pfl_mobile.programs.trace import TracedProgram


def _of_core_ml(name: str, weights: Sequence[str], *, mixed: bool = False) -> Callable[[L], L]:
    """A target of the engine Core ML; the interpreter stands for it on the machine that exports."""
    return register(
        name,
        engine="coreml",
        compared_by="coreml-reference",
        also=("executorch", "onnxruntime"),
        tools=("coremltools", "torch", "pfl_exporters.lowering.coreml"),
        obstacles_in="pfl_exporters.lowering.coreml",
        mixed=mixed,
        weights=weights,
    )


@_of_core_ml("ios", ("float32", "int8", "int4"))
def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """One ML Program with all programs as functions."""
    from pfl_exporters.lowering import coreml

    return coreml.lower(programs, folder, report)


@_of_core_ml("ios17", ("float32", "int8"))
def lower_apart(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """An ML Program for each program, as systems before iOS 18 take one function only; weights are stored in each."""
    from pfl_exporters.lowering import coreml

    return coreml.lower(programs, folder, report, together=False)


@_of_core_ml("ios-mixed", ("float32",), mixed=True)
def lower_mixed(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """As ``ios``, with products in 16 bits where that is safe: half the weights, and the way to the neural engine."""
    from pfl_exporters.lowering import coreml

    return coreml.lower_mixed(programs, folder, report)
