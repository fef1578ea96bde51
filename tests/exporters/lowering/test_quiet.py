"""What toolchains say is kept from the user, whichever way they say it, unless he asked for it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from types import ModuleType

import pytest
import torch

from pfl_exporters.lowering import quiet as tools
from pfl_exporters.lowering.quiet import aloud, heard, lean, quiet, verbose


def _speak() -> None:
    print("a print")
    print("an error", file=sys.stderr)
    os.write(1, b"from C++\n")
    os.write(2, b"an error from C++\n")
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("toolchain").critical("a log")


def test_nothing_is_shown_and_all_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        _speak()
        said = heard()
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    for text in ("a print", "an error", "from C++", "an error from C++"):
        assert text in said
    assert heard() == ""


def test_our_own_steps_are_shown_from_inside(capfd: pytest.CaptureFixture[str]) -> None:
    report = aloud(print)
    with quiet(), quiet():
        _speak()
        report("a step")
        _speak()
    report("another")
    assert capfd.readouterr() == ("a step\nanother\n", "")


def test_verbose_shows_everything(capfd: pytest.CaptureFixture[str]) -> None:
    with verbose(), pytest.warns(UserWarning, match="a warning"), quiet():
        _speak()
    out, err = capfd.readouterr()
    assert "a print" in out
    assert "from C++" in out
    assert "an error from C++" in err


def test_an_error_ends_the_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"), quiet():
        raise ValueError("boom")
    print("after")
    os.write(2, b"too\n")
    assert capfd.readouterr() == ("after\n", "too\n")
    assert not logging.root.manager.disable


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(number: int) -> int:
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patched:
        real = os.dup
        patched.setattr(os, "dup", lambda number: closed(number) if number in (1, 2) else real(number))
        with quiet():
            print("nobody")
            assert "nobody" in heard()


def test_libraries_are_hidden_while_tools_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_CONVERTED_TOO", ("wave", "json"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    loaded = sys.modules["json"]
    with lean():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("wave")
        assert importlib.import_module("json") is loaded  # somebody uses it
    assert importlib.import_module("wave").__name__ == "wave"
    assert sys.modules["json"] is loaded


def test_what_was_imported_all_the_same_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_CONVERTED_TOO", ("wave",))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with lean():
        del sys.modules["wave"]
        found = importlib.import_module("wave")
    assert sys.modules["wave"] is found


def test_the_compiler_is_imported_for_the_programs_that_need_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = ModuleType(tools._OF_THE_COMPILER)
    vars(stock)["unsafe_remove_auto_functionalized_pass"] = lambda program: ("stock", program)
    monkeypatch.delitem(sys.modules, tools._OF_THE_COMPILER, raising=False)
    with lean():
        stand = importlib.import_module(tools._OF_THE_COMPILER)
    assert tools._OF_THE_COMPILER not in sys.modules
    monkeypatch.setitem(sys.modules, tools._OF_THE_COMPILER, stock)
    with lean():
        assert importlib.import_module(tools._OF_THE_COMPILER) is stock
    plain = torch.export.export(Plain(), (torch.ones(2), torch.zeros(2)))
    unused = plain.graph.call_function(torch.ops.aten.neg.default, (next(iter(plain.graph.nodes)),))
    assert stand.unsafe_remove_auto_functionalized_pass(plain) is plain
    assert unused not in plain.graph.nodes
    writes = plain.run_decompositions({})
    x, y = list(writes.graph.nodes)[:2]
    with writes.graph.inserting_after(y):
        writes.graph.call_function(torch.ops.aten.copy_.default, (x, y))
    assert stand.unsafe_remove_auto_functionalized_pass(writes) == ("stock", writes)


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y
