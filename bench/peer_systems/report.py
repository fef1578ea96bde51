"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peer_systems.models import WORKLOADS
from peer_systems.systems import SYSTEMS

#: From here on a gradient is called wrong: float32 explains four powers of ten less.
WRONG = 1e-2

_METHOD = """\
One step is forward, loss and the gradient of every trained parameter, up to where a caller can use them; float32, one
thread, one core, each system in a process of its own. All are given the same values and the same batch as files.
Systems take turns of about a quarter of a second, so that noise of the machine meets all of them; `step` is the median,
`of eager` its ratio to PyTorch eager's. A system with slow steps takes fewer turns.

- `memory`: the most anonymous memory that loading and the first steps add to a process in which the runtime is
  imported already, in MB of 10^6 bytes; `mapped`: pages of files (program, weights and the runtime's own libraries),
  which the system may drop and read again. Runtimes that read weights into memory have them in the first column, those
  that map the file in the second.
- `file`: what a device must hold, program and values; without the runtime. PyTorch's and MLX's programs are code.
- `gradient error`: the largest difference of a gradient from PyTorch's in float64, relative to the largest entry of
  that parameter's gradient, over all trained parameters."""


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _line(name: str, row: Mapping[str, Any]) -> str:
    label = SYSTEMS[name].label
    if "failure" in row:
        reason = row["failure"].replace("|", "\\|")
        return f"| {label} | cannot: {reason} | | | | | |"
    error = f"{row['gradient_error']:.1e}"
    if not row["gradient_error"] < WRONG:
        error = f"**wrong: {error}** ({row['worst']})"
    ratio = "" if row["ratio"] is None else _number(row["ratio"])
    sizes = [_number(row[key]) for key in ("anonymous_mb", "mapped_mb", "file_mb")]
    return f"| {label} | {_number(row['ms'])} ms | {ratio} | {' | '.join(sizes)} | {error} |"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One workload: a line for each system."""
    head = "| system | step | of eager | memory | mapped | file | gradient error |"
    return "\n".join(
        [
            head,
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_line(n, row) for n, row in rows.items()),
        ]
    )


def tables(result: Mapping[str, Any]) -> str:
    """All workloads."""
    return "\n\n".join(
        f"## {WORKLOADS[name].label}\n\n{table(rows)}" for name, rows in result["workloads"].items()
    )


def page(result: Mapping[str, Any], command: str) -> str:
    """The whole page."""
    machine = result["machine"]
    used = sorted({f"{name} {v}" for versions in result["versions"].values() for name, v in versions.items()})
    return f"""\
# Beside the peers

{machine["processor"]}, {machine["system"]}; load at the start {machine["load"][0]}; {result["seconds"]:.0f} s in all.
Versions: {", ".join(used)}.

{_METHOD}

{_NOTES}

{tables(result)}

Written by `{command}`, which makes each peer's environment at its first run.
"""


_NOTES = """\
How each is written:

- PyTorch eager: plain modules, `autograd.grad`, values mapped from the file.
- pfl-mobile: `export_bundle`, the language model from a folder of transformers; nothing chosen by hand.
- ExecuTorch's own training: `_export_forward_backward`, lowered as it comes.
- ONNX Runtime training: the last release (2024), `generate_artifacts` from an ONNX file, its `Module`.
- MLX: fused functions of `mx.fast`, a compiled `value_and_grad`; its wheel for Linux has a plain BLAS, and MLX is made
  for the GPUs of Apple's devices: of its speed there this says nothing.
- LiteRT: a signature with variables for what is trained, written with TensorFlow's converter, in LiteRT's own
  operators; ReLU, GELU and pooling had to be written around, as their gradients are none of these. TensorFlow's
  operators in the file (`SELECT_TF_OPS`, as LiteRT's guide has it) were tried with the CNN: the
  interpreters of TensorFlow 2.19 and 2.21 do not run them in Python."""
