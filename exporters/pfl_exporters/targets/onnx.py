"""ONNX: stock ONNX Runtime, on any system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.lowering.files import Lowered, Report
from pfl_exporters.targets.registry import register

if TYPE_CHECKING:
    from pfl_exporters.lowering.obstacles import Obstacle
    from pfl_mobile.programs.trace import TracedProgram


def _missing(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    from pfl_exporters.lowering import onnx

    return onnx.missing(programs)


def _trial(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    from pfl_exporters.lowering import onnx

    return onnx.trial(programs)


@register(
    "onnx",
    engine="onnxruntime",
    tools=("onnx", "onnxscript", "torch", "pfl_exporters.lowering.onnx"),
    looks_up=_missing,
    tries=_trial,
)
def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """One graph for each program, all reading one weight file."""
    from pfl_exporters.lowering import onnx

    return onnx.lower(programs, folder, report)
