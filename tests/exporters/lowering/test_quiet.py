from __future__ import annotations

import importlib
import sys

import pytest

from pfl_exporters.lowering import quiet
from pfl_exporters.lowering.quiet import lean


def test_libraries_are_hidden_while_tools_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_CONVERTED_TOO", ("wave", "json"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    loaded = sys.modules["json"]
    with lean():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("wave")
        assert importlib.import_module("json") is loaded  # somebody uses it
    assert importlib.import_module("wave").__name__ == "wave"
    assert sys.modules["json"] is loaded


def test_what_was_imported_all_the_same_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_CONVERTED_TOO", ("wave",))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with lean():
        del sys.modules["wave"]
        found = importlib.import_module("wave")
    assert sys.modules["wave"] is found
