"""The marks of ``conformance/scenarios/passed``: none is of a scenario that was changed since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "conformance/scenarios"
SCENARIOS = {path.name: path for path in sorted(FOLDER.glob("*.json"))}
MARKS = sorted((FOLDER / "passed").glob("*.sha256"))


@pytest.mark.parametrize("path", MARKS, ids=lambda path: path.stem)
def test_marks_are_of_the_scenarios_as_they_are(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        digest, name = line.split("  ")
        found = hashlib.sha256(SCENARIOS[name].read_bytes()).hexdigest()
        assert digest == found, (
            f"{name} was changed: run `make android-scenarios`, `make ios-scenarios`, "
            f"or what {path.name} is written by"
        )


def test_all_passed_on_a_jvm_with_both_engines_and_in_swift() -> None:
    for place in ("jvm-onnxruntime", "jvm-executorch", "swift-linux"):
        lines = (FOLDER / f"passed/{place}.sha256").read_text().splitlines()
        assert [line.split("  ")[1] for line in lines] == list(SCENARIOS)


def test_steps_and_fields_are_in_the_readme() -> None:
    table = (FOLDER / "README.md").read_text()
    for path in SCENARIOS.values():
        scenario = json.loads(path.read_text())
        assert scenario["what"].endswith(".")
        for step in scenario["steps"]:
            row = next(
                line
                for line in table.splitlines()
                if line.startswith("| ") and f"`{step['do']}`" in line.split("|")[1]
            )
            for field in step.keys() - {"do"}:
                assert f"`{field}`" in row, f"{path.name}: {step}"
