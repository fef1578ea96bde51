"""What bench/parts_memory.py makes of what a language's process says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import parts_memory

SAID: dict[str, Any] = {
    "added_anonymous": 104_000_000,
    "added_mapped": 93_000_000,
    "peak_resident": 400_000_000,
    "step_ms": 812.34,
    "step_processor_ms": 800.0,
    "planned": 78_000_000,
}


def says(found: dict[str, Any]) -> list[str]:
    """A command that prints a line of its own first."""
    return [sys.executable, "-c", f"print('loading'); print({json.dumps(json.dumps(found))})"]


def test_what_a_process_says_is_told_in_megabytes_beside_the_plan() -> None:
    row = parts_memory._said(says(SAID), {})
    assert (row["peak_mb"], row["mapped_mb"], row["planned_mb"]) == (104.0, 93.0, 78.0)
    assert row["plan_off"] == -0.25  # a quarter less was planned than it took
    assert "heap_mb" not in row
    assert parts_memory._said(says(SAID | {"peak_heap": 192_000_000}), {})["heap_mb"] == 192.0


def test_a_bundle_without_a_plan_is_refused() -> None:
    with pytest.raises(SystemExit, match="--memory"):
        parts_memory._said(says(SAID | {"planned": None}), {})


def test_each_language_that_is_there_has_a_row_and_the_others_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failed:
        returncode = 1

    monkeypatch.setattr(parts_memory.shutil, "which", lambda _: None)
    monkeypatch.setattr(parts_memory.subprocess, "run", lambda *_, **__: Failed())
    monkeypatch.setattr(parts_memory, "stay_on", lambda _: None)
    monkeypatch.setattr(parts_memory, "python", lambda bundle, steps: {"peak_mb": 1.5, "steps": steps})
    monkeypatch.setattr(sys, "argv", ["parts_memory.py", "one", "two", "--steps", "2", "--json"])
    parts_memory.main()
    out, err = capsys.readouterr()
    row = {"python": {"peak_mb": 1.5, "steps": 2}}
    assert json.loads(out)["bundles"] == {"one": row, "two": row}
    assert "Kotlin" in err
    assert "Swift" in err
