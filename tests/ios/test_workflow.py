"""The workflow for a hosted Mac and the command it calls are not run here: what they say is checked."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ios.yml").read_text())
JOB: dict[str, Any] = WORKFLOW["jobs"]["mac"]
STEPS: list[dict[str, Any]] = JOB["steps"]
COMMANDS = "\n".join(step.get("run", "") for step in STEPS)
SPEC: dict[str, Any] = yaml.safe_load((ROOT / "ios/Keyboard/project.yml").read_text())


SIMULATOR: dict[str, Any] = runpy.run_path(str(ROOT / "ios/simulator.py"))


def test_every_step_has_an_action_of_a_version_or_a_command() -> None:
    for step in STEPS:
        assert ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]), step


def test_its_commands_are_targets_and_files_of_this_project() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = re.findall(r"^make ([\w-]+)", COMMANDS, re.M)
    assert called == ["setup", "ios", "simulator-e2e"]
    assert set(called) <= targets
    for script in re.findall(r"\S+python (\S+)", COMMANDS):
        assert (ROOT / script).is_file()


def test_the_keyboard_is_made_of_products_and_folders_that_there_are() -> None:
    package = (ROOT / "ios/Package.swift").read_text()
    for target in SPEC["targets"].values():
        for source in target["sources"]:
            path = source if isinstance(source, str) else source["path"]
            optional = not isinstance(source, str) and source.get("optional")
            assert optional or (ROOT / "ios/Keyboard" / path).exists(), path
        for dependency in target["dependencies"]:
            assert dependency.get("target", "Extension") in SPEC["targets"]
            for product in dependency.get("products", []):
                assert f'.library(name: "{product}"' in package


def test_names_that_app_and_project_share_are_equal() -> None:
    shared = (ROOT / "ios/Keyboard/App/Shared.swift").read_text()
    (group,) = re.findall(r'group = "(.+)"', shared)
    jobs = re.findall(r'(?:job|roundsJob) = "(.+)"', shared)
    app, extension = (SPEC["targets"][name] for name in ("PersonalKeyboard", "Extension"))
    for target in (app, extension):
        assert target["entitlements"]["properties"] == {"com.apple.security.application-groups": [group]}
    assert app["info"]["properties"]["BGTaskSchedulerPermittedIdentifiers"] == jobs
    principal = extension["info"]["properties"]["NSExtension"]["NSExtensionPrincipalClass"].rpartition(".")[2]
    controller = (ROOT / f"ios/Keyboard/Extension/{principal}.swift").read_text()
    assert f"class {principal}: UIInputViewController" in controller


def test_the_simulator_is_found_by_its_name() -> None:
    assert (
        SPEC["targets"]["PersonalKeyboard"]["settings"]["base"]["PRODUCT_BUNDLE_IDENTIFIER"]
        == SIMULATOR["APP"]
    )
    listing = json.dumps(
        {
            "devices": {
                "com.apple.CoreSimulator.SimRuntime.iOS-18-0": [{"name": "iPhone 16", "udid": "A"}],
                "com.apple.CoreSimulator.SimRuntime.tvOS-18-0": [{"name": "iPhone 16", "udid": "T"}],
                "com.apple.CoreSimulator.SimRuntime.iOS-18-2": [{"name": "iPhone 16", "udid": "B"}],
            }
        }
    )
    assert SIMULATOR["device"](JOB["env"]["SIMULATOR"], listing) == "B"
    assert SIMULATOR["device"]("platform=iOS Simulator,id=A", listing) == "A"
    with pytest.raises(SystemExit, match="no simulator"):
        SIMULATOR["device"]("platform=iOS Simulator,name=iPhone 3G", listing)
