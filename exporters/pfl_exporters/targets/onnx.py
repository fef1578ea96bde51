"""ONNX: stock ONNX Runtime, on any system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.lowering.files import Lowered, Report
from pfl_exporters.targets.registry import register

if TYPE_CHECKING:
    from pfl_mobile.programs.trace import TracedProgram


@register(
    "onnx",
    engine="onnxruntime",
    tools=("onnx", "onnxscript", "torch", "pfl_exporters.lowering.onnx"),
    obstacles_in="pfl_exporters.lowering.onnx",
    weights=("float32", "int8", "int4"),
)
def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """One graph for each program, all reading one weight file."""
    from pfl_exporters.lowering import onnx

    return onnx.lower(programs, folder, report)
