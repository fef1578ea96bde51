"""``pfl demo``."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_demo_hands_its_arguments_on(pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pfl_recipes.keyboard.demo")
    got: dict[str, Any] = {}

    def run(**given: Any) -> dict[str, Any]:
        got.update(given)
        given["report"]("training, loss 3", 0.5)
        given["report"]("done")
        return {"users": 2, "top1_before": 17.25, "left_out": {"repeated": 3}}

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pfl_recipes.keyboard.demo", module)
    given = ("--data", "sotu", "--users", 2, "--out", tmp_path, "--min-messages", 30, "--teacher", tmp_path)
    ran = pfl("demo", "keyboard", *given, "--json")
    assert ran.json == {"users": 2, "top1_before": 17.25, "left_out": {"repeated": 3}}
    assert (got["data"], got["users"], got["out"], got["min_messages"]) == ("sotu", 2, tmp_path, 30)
    assert got["teacher"] == tmp_path
    assert "training" in ran.err
    shown = pfl("demo", "keyboard").out
    assert "17.25" in shown
    assert "left out: 3 repeated by the same user" in shown


def test_a_missing_package_names_the_extra(pfl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    original = importlib.import_module

    def fail(name: str, *more: Any) -> Any:
        if name.endswith("demo"):
            raise ModuleNotFoundError("No module named 'executorch.exir'", name="executorch.exir")
        return original(name, *more)

    monkeypatch.setattr(importlib, "import_module", fail)
    ran = pfl("demo", "keyboard", "--json")
    assert (ran.code, ran.error["type"]) == (2, "MissingDependencyError")
    assert "pfl-mobile[android]" in ran.error["mend"]
