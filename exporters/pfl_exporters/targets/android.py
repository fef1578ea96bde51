"""Android: ExecuTorch with XNNPACK."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.lowering.files import Lowered, Report
from pfl_exporters.targets.registry import register

if TYPE_CHECKING:
    from pfl_mobile.programs.trace import TracedProgram


@register(
    "android",
    engine="executorch",
    tools=("executorch.exir", "torch", "pfl_exporters.lowering.executorch"),
    also=("onnxruntime",),
    obstacles_in="pfl_exporters.lowering.executorch",
    weights=("float32", "int8", "int4"),
)
def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """One ``.pte`` with all programs."""
    from pfl_exporters.lowering import executorch

    return executorch.lower(programs, folder, report)
