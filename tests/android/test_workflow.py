"""The workflow for hosted runners is not run here: what it says is checked against this project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/android-e2e.yml").read_text())
JOB: dict[str, Any] = WORKFLOW["jobs"]["emulator"]
STEPS: list[dict[str, Any]] = JOB["steps"]
COMMANDS = "\n".join(step.get("run", "") for step in STEPS)


def test_every_step_has_an_action_of_a_version_or_a_command() -> None:
    for step in STEPS:
        assert ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]), step


def test_its_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = re.findall(r"^make ([\w-]+)", COMMANDS, re.M)
    assert called == ["setup", "emulator-e2e"]
    assert set(called) <= targets


def test_its_options_are_those_of_the_command() -> None:
    source = (ROOT / "android/emulator.py").read_text()
    (given,) = re.findall(r'E2E="(.+)"', COMMANDS)
    for option in re.findall(r"--[\w-]+", given):
        assert f'"{option}"' in source
    image, _, processor = JOB["env"]["IMAGE"].rpartition(";")
    assert f'IMAGE = f"{image};{{PROCESSOR}}"' in source
    assert f'"{processor}"' in source


def test_it_keeps_what_the_command_writes() -> None:
    kept = STEPS[-1]["with"]["path"]
    assert STEPS[-1]["if"] == "always()"
    source = (ROOT / "android/emulator.py").read_text()
    assert 'PROJECT / "out/e2e"' in source
    for ending in ("json", "xml", "log", "png"):
        assert f"out/e2e/*.{ending}" in kept


def test_its_tools_are_those_of_the_project() -> None:
    versions = {step["uses"].split("@")[0]: step.get("with", {}) for step in STEPS if "uses" in step}
    assert versions["actions/setup-java"]["java-version"] == "17"
    assert f">={versions['actions/setup-python']['python-version']}" in (ROOT / "pyproject.toml").read_text()
    platform = re.search(r"platforms;android-(\d+)", COMMANDS)
    assert platform
    for module in ("sdk", "keyboard", "e2e"):
        assert f"compileSdk = {platform[1]}" in (ROOT / f"android/{module}/build.gradle.kts").read_text()
