"""The rows of ``bench/scaling.md``: what is measured, where exports are kept, and how the page is written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llama import SHAPES, Size

from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.cache_dir import cache_dir

#: What the backward pass computes again, in words.
_AGAIN = {"nothing": "nothing", "all": "all of a block"}
_LABELS = {"executorch": "ExecuTorch", "onnxruntime": "ONNX Runtime"}
_TOOLS = ("torch", "transformers", "executorch", "onnxruntime", "onnx", "onnxscript")


@dataclass(frozen=True)
class Cell:
    """One export.

    Attributes:
        shape: name of the model.
        size: of model and step.
        weights: how frozen weights are stored.
        recompute: what the backward pass computes again.
    """

    shape: str
    size: Size
    weights: str
    recompute: str

    @property
    def name(self) -> str:
        """As it is chosen by."""
        return (
            f"{self.shape}/batch-{self.size.batch}/length-{self.size.length}/{self.weights}/{self.recompute}"
        )


def grid() -> list[Cell]:
    """All rows of the page: 8 bits at one example only, and of the larger model one row, to end within the hour."""
    found = []
    for batch in (1, 4):
        for length in (64, 256):
            size = replace(SHAPES["smollm2-135m"], batch=batch, length=length)
            for weights in ("float32", "int8", "int4") if batch == 1 else ("float32", "int4"):
                found += [Cell("smollm2-135m", size, weights, again) for again in _AGAIN]
    return [*found, Cell("qwen2.5-0.5b", SHAPES["qwen2.5-0.5b"], "int4", "all")]


@dataclass(frozen=True)
class Kept:
    """Exports and what was measured of them, in the cache.

    Attributes:
        code: digest of all that an export depends on besides its cell.
    """

    code: str

    @classmethod
    def of_this_code(cls) -> Kept:
        """By the sources of library, exporters and models, and the versions of the toolchains."""
        import pfl_exporters
        import pfl_mobile

        sha = hashlib.sha256()
        for package in (pfl_mobile, pfl_exporters):
            root = Path(str(package.__file__)).parent
            for file in sorted(root.rglob("*.py")):
                sha.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
        sha.update(Path(__file__).with_name("llama.py").read_bytes())
        sha.update(json.dumps({name: importlib.metadata.version(name) for name in _TOOLS}).encode())
        return cls(sha.hexdigest()[:16])

    def folder(self, cell: Cell) -> Path:
        """Where a cell is."""
        said = json.dumps([self.code, asdict(cell)], sort_keys=True)
        return self._place(cell) / hashlib.sha256(said.encode()).hexdigest()[:16]

    def _place(self, cell: Cell) -> Path:
        return cache_dir() / "bench" / "scaling" / cell.name.replace("/", "-")

    def has(self, cell: Cell) -> bool:
        """Whether it was exported."""
        return (self.folder(cell) / "export.json").exists()

    @contextmanager
    def making(self, cell: Cell) -> Iterator[Path]:
        """An empty folder to export into, in the place of what other code made; nothing stays of what fails."""
        shutil.rmtree(self._place(cell), ignore_errors=True)
        folder = self.folder(cell)
        folder.mkdir(parents=True)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder)
            raise

    def write(self, cell: Cell, measured: Mapping[str, Any]) -> None:
        """Keep what was measured."""
        atomic_write(self.folder(cell) / "measured.json", json.dumps(measured).encode())

    def read(self, cell: Cell, processor: str) -> dict[str, Any] | None:
        """What the export said and what was measured on such a processor; None where nothing was."""
        file = self.folder(cell) / "measured.json"
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        if found["machine"]["processor"] != processor:
            return None
        return found | {"export": json.loads((self.folder(cell) / "export.json").read_text())}


_METHOD = """\
A step is forward, loss and the gradient of every LoRA factor (r=8 on q and v), of models with random weights; one
thread, one core, each measurement in a process of its own. `step` is the shortest of those after the first, `of eager`
its ratio to that of PyTorch eager in float32, measured in the same run; `memory` is the most anonymous memory that
loading and steps add to a process in which the runtime is loaded, in MB of 10^6 bytes: weights are mapped from their
files by all. `planned` is what the manifest says of a step, before anything runs. PyTorch's gradient checkpointing is
that of transformers, around each block. `again` is what our backward pass computes again in place of keeping it
(`--recompute`); `--memory` chooses what is in between. `export` is processor time and memory of the export for both
engines, with its comparisons."""


def page(
    rows: Mapping[Cell, Mapping[str, Any]], missing: int, machine: Mapping[str, Any], command: str
) -> str:
    """The whole page.

    Args:
        rows: what was measured.
        missing: rows that were not.
        machine: that wrote it.
        command: that writes it.
    """
    groups: dict[tuple[str, Size], list[Cell]] = {}
    for cell in rows:
        groups.setdefault((cell.shape, cell.size), []).append(cell)
    tables = [
        _table(shape, size, {cell: rows[cell] for cell in cells}) for (shape, size), cells in groups.items()
    ]
    absent = f" Not measured: {missing} of {missing + len(rows)} rows." if missing else ""
    loads = sorted(found["machine"]["load"][0] for found in rows.values())
    return "\n\n".join(
        [
            "# As language models grow",
            f"{machine['processor']}, {machine['system']}; load at the start {loads[0]} to {loads[-1]}.{absent}",
            _METHOD,
            *tables,
            f"Written by `{command}`.\n",
        ]
    )


def _table(shape: str, size: Size, rows: Mapping[Cell, Mapping[str, Any]]) -> str:
    examples = "1 example" if size.batch == 1 else f"{size.batch} examples"
    lines = [
        f"## {shape}, {examples} of {size.length} tokens\n",
        "| system | weights | again | step | of eager | memory | planned | files | gradient error | export |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = next(iter(rows.values()))
    base = first["eager"]["step_ms"]
    for name, label in (("eager", "nothing"), ("checkpointed", "all of a block")):
        of = first[name]["step_ms"] / base
        lines.append(f"| PyTorch eager | float32 | {label} | {_step(first[name], of)} | | | | |")
    for cell, found in rows.items():
        export = found["export"]
        cost = f"{export['cost']['cpu_s']:.0f} s, {export['cost']['peak_mb'] / 1000:.1f} GB"
        for engine, label in _LABELS.items():
            its = found[engine]
            planned = "" if its["planned_mb"] is None else f"{its['planned_mb']:.0f} ({its['plan_off']:+.0%})"
            of = its["step_ms"] / found["eager"]["step_ms"]
            lines.append(
                f"| {label} | {cell.weights} | {_AGAIN[cell.recompute]} | {_step(its, of)} | {planned} "
                f"| {export['file_mb']:.0f} | {export['errors'][engine]:.1e} | {cost} |"
            )
    return "\n".join(lines)


def _step(found: Mapping[str, Any], of: float) -> str:
    return f"{found['step_ms']:.0f} ms | {of:.2f} | {found['peak_mb']:.0f}"
