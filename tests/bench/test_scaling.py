"""The page of what language models cost: what is exported again, which rows are measured, what the page says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import scaling
from llama import Size
from scaling_page import Cell, Kept, grid

SMALL = Size(layers=4, width=64, inner=96, heads=4, key_heads=2, words=512, length=16, batch=2)
CELLS = [
    Cell("small", SMALL, weights, again) for weights in ("float32", "int4") for again in ("nothing", "all")
]


class Machine:
    """Exports and measurements without either: notes what is asked for."""

    def __init__(self) -> None:
        self.exported: list[list[str]] = []
        self.measured: list[str] = []
        self.step_ms = 100.0
        self.broken = False

    def export(
        self, folder: Path, size: Size, targets: str, out: Path, options: list[str]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        assert targets == "android,onnx"
        assert size == SMALL
        assert folder.name == "small"
        out.mkdir()
        if self.broken:
            raise SystemExit("the export failed")
        self.exported.append(options)
        verified = {engine: {"grad_max_rel_err": 1.2e-6} for engine in scaling.ENGINES}
        return {"cpu_s": 79.0, "peak_mb": 3100}, {"total_bytes": 2_000_000, "verified": verified}

    def alone(self, _: str, engine: str, folder: Path, *numbers: int) -> dict[str, Any]:
        self.measured.append(engine)
        if engine == "eager":
            length, batch, checkpointed, _count = numbers
            assert (length, batch) == (16, 2)
            return {"peak_mb": 522.0, "step_ms": self.step_ms * (1.5 if checkpointed else 1.0)}
        assert Path(folder).is_dir(), "the bundle of the cache"
        return {"peak_mb": 100.0, "step_ms": 50.0, "planned_mb": 104.0, "plan_off": 0.04}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scaling, "_model", lambda size, folder: folder.mkdir())
    monkeypatch.setattr(scaling, "_exported", found.export)
    monkeypatch.setattr(scaling, "alone", found.alone)
    return found


def rows(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]


def test_each_row_is_exported_once_and_measured_beside_eager(machine: Machine, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    scaling.write(CELLS, [], 3, 2, page)
    assert sorted(machine.exported) == sorted(
        [["--weights", cell.weights, "--recompute", cell.recompute] for cell in CELLS]
    )
    assert machine.measured == ["eager", "eager"] + ["executorch", "onnxruntime"] * 4
    table = rows(page)
    assert table[2][:6] == ["PyTorch eager", "float32", "nothing", "100 ms", "1.00", "522"]
    assert table[3][:5] == ["PyTorch eager", "float32", "all of a block", "150 ms", "1.50"]
    assert table[4] == [
        "ExecuTorch", "float32", "nothing", "50 ms", "0.50", "100", "104 (+4%)", "2", "1.2e-06", "79 s, 3.1 GB"
    ]  # fmt: skip
    assert "Not measured" not in page.read_text()
    machine.exported.clear()
    machine.measured.clear()
    machine.step_ms = 200.0
    scaling.write(CELLS, ["int4", "all"], 3, 2, page)
    assert not machine.exported, "the bundle is in the cache"
    assert machine.measured == ["eager", "eager", "executorch", "onnxruntime"]
    ratios = [row[4] for row in rows(page)[4:]]
    assert ratios == ["0.50"] * 6 + ["0.25"] * 2, "each to eager of its own run"


def test_rows_of_other_code_are_exported_anew_and_not_shown(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    scaling.write(CELLS, [], 3, 1, page)
    old = Kept.of_this_code()
    monkeypatch.setattr(Kept, "of_this_code", classmethod(lambda cls: cls("other")))
    scaling.write(CELLS, ["int4", "all"], 3, 1, page)
    assert len(machine.exported) == 5
    assert "Not measured: 3 of 4 rows." in page.read_text()
    assert len(rows(page)) == 2 + 2 + 2
    assert not old.folder(CELLS[3]).exists(), "its place is the new one's"
    assert old.folder(CELLS[0]).exists()


def test_what_an_export_depends_on_tells_bundles_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, cell = Kept.of_this_code(), CELLS[0]
    assert kept == Kept.of_this_code()
    others = [replace(cell, weights="int8"), replace(cell, size=replace(SMALL, biased=1))]
    folders = {kept.folder(cell), Kept("other").folder(cell), *map(kept.folder, others)}
    assert len(folders) == 4
    monkeypatch.setattr("scaling_page._TOOLS", ("torch",))
    assert Kept.of_this_code() != kept


def test_rows_of_another_processor_are_not_mixed_in(machine: Machine, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    scaling.write(CELLS, [], 3, 1, page)
    file = Kept.of_this_code().folder(CELLS[0]) / "measured.json"
    found = json.loads(file.read_text())
    found["machine"]["processor"] = "another"
    file.write_text(json.dumps(found))
    scaling.write(CELLS, ["int4"], 3, 1, page)
    assert "Not measured: 1 of 4 rows." in page.read_text()
    assert len(machine.exported) == 4


def test_an_export_that_fails_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.broken = True
    with pytest.raises(SystemExit, match="the export failed"):
        scaling.write(CELLS[:1], [], 3, 1, tmp_path / "page.md")
    assert not Kept.of_this_code().has(CELLS[0])
    assert not (tmp_path / "page.md").exists()
    machine.broken = False
    scaling.write(CELLS[:1], [], 3, 1, tmp_path / "page.md")


def test_a_name_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"no row has all of int2 .*rows are smollm2-135m/batch-1/length-64/float32"
    ):
        scaling.write(grid(), ["int2"], 3, 1, tmp_path / "page.md")
    assert len({cell.name for cell in grid()}) == len(grid())


@pytest.mark.slow
def test_a_small_model_is_exported_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "page.md"
    scaling.write(CELLS[3:], [], 2, 1, page)
    eager, checkpointed, *engines = rows(page)[2:]
    assert (eager[4], checkpointed[0]) == ("1.00", "PyTorch eager")
    assert [row[0] for row in engines] == ["ExecuTorch", "ONNX Runtime"]
    assert all(row[1:3] == ["int4", "all of a block"] and float(row[8]) < 1e-4 for row in engines)
