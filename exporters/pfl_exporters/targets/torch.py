"""Reference target: each program as a ``torch.export`` file, to compare engines with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.lowering.files import Lowered, Report
from pfl_exporters.targets.registry import register

if TYPE_CHECKING:
    from pfl_mobile.programs.trace import TracedProgram


@register("torch", engine="torch", tools=("torch",), on_phones=False, weights=("float32", "int8", "int4"))
def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``torch/<program>.pt2`` for every program."""
    import torch

    from pfl_exporters.lowering.loops import export_with_loops
    from pfl_exporters.lowering.stored import in_plain_operators
    from pfl_mobile.bundle.versions import release

    files, paths = {}, {}
    for name, program in programs.items():
        report(f"torch: {name}")
        inner = f"torch/{name}.pt2"
        path = folder / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(export_with_loops(in_plain_operators(program)), path)
        files[name], paths[inner] = inner, path
    return Lowered(files, paths, at_least=release(torch.__version__))
