"""``pfl-export --check``: which targets will take a model, without lowering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pfl_exporters import check as checking
from pfl_exporters.check import check
from pfl_exporters.targets import TARGETS, resolve
from pfl_exporters.targets.registry import Target
from pfl_mobile.errors import ConfigError, MissingDependencyError
from tests import tiny
from tests.cli.conftest import Ran
from tests.exporters import odd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Ran]

MODEL = """
import torch
from tests.exporters import odd

def taken():
    return odd.model(odd.taken)

def refused():
    return odd.model(odd.inverse_error)

def branches():
    return odd.model(lambda x: x if x.sum() > 0 else -x)

def fine():
    return odd.model(torch.tanh)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(autouse=True)
def nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that lowers anything fails."""

    def lower(*_: object) -> None:
        raise AssertionError("lowered")

    for target in TARGETS.all().values():
        monkeypatch.setitem(vars(target), "lower", lower)


@pytest.mark.slow
def test_all_phone_targets_are_asked(pfl_export: Run, model: Path) -> None:
    ran = pfl_export("--check", f"{model}:taken", "--json")
    assert ran.code == 1
    found = ran.json
    assert {name: each["takes"] for name, each in found["targets"].items()} == {
        "android": True,
        "ios": False,
        "onnx": True,
    }
    obstacle, other = found["targets"]["ios"]["obstacles"]  # of another shape in predict
    assert (obstacle["operator"], obstacle["program"], obstacle["layer"]) == ("index_put", "gradients", "1")
    assert (other["operator"], other["program"], other["layer"]) == ("index_put", "predict", "1")
    assert obstacle["file"].endswith("odd.py")
    assert obstacle["line"] > 1
    assert (found["ok"], found["verified"], found["refused"]) == (False, False, None)
    assert found["compared_with_pytorch"] is True
    assert found["trained"] == {"tensors": 4, "numbers": 2 * (6 + 8 + 8 + 4)}
    assert found["parameters"] == 6 * 8 + 8 + 8 * 4 + 4 + found["trained"]["numbers"]
    assert found["frozen_bytes"] >= 4 * (6 * 8 + 8 + 8 * 4 + 4)
    assert list(found["operators"]) == ["gradients", "evaluate", "predict"]


def test_it_is_said_in_words_and_that_nothing_is_verified(pfl_export: Run, model: Path) -> None:
    ran = pfl_export("--check", f"{model}:refused", "--target", "android")
    assert ran.code == 1
    assert "android: will not take it" in ran.out
    assert "erfinv in layer '1' (" in ran.out
    assert "no kernel aten::erfinv.out" in ran.out
    assert "ios" not in ran.out
    assert "not verified" in ran.out


def test_a_wanted_target_that_takes_the_model(pfl_export: Run, model: Path) -> None:
    ran = pfl_export("--check", f"{model}:taken", "--target", "onnx")
    assert (ran.code, "onnx: nothing in the way" in ran.out) == (0, True)


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_is_taken_by_none(pfl_export: Run, model: Path) -> None:
    ran = pfl_export("--check", f"{model}:branches", "--json")
    assert ran.code == 1
    assert ran.json["refused"]["type"] == "ExportError"
    assert ran.json["operators"] == {}
    assert not any(each["takes"] for each in ran.json["targets"].values())
    assert "no target takes odd" in pfl_export("--check", f"{model}:branches").out


def test_wrong_arguments_are_refused(pfl_export: Run, model: Path, tmp_path: Path) -> None:
    ran = pfl_export("--check", f"{model}:fine", "--out", tmp_path / "b", "--json")
    assert (ran.code, ran.error["type"]) == (2, "ConfigError")
    assert "writes nothing" in ran.error["message"]
    help_text = pfl_export("--help").out
    assert "--check" in help_text
    assert "pfl-export --check my_model.py:build" in " ".join(help_text.split())


@pytest.mark.slow
def test_a_target_whose_tools_are_not_installed(
    pfl_export: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being named it is left out, and said so; named it is an error."""
    stock = Target.load

    def load(self: Target) -> None:
        if self.name == "ios":
            raise MissingDependencyError("target 'ios' needs 'coremltools'", mend="pip install it")
        stock(self)

    monkeypatch.setattr(Target, "load", load)
    ran = pfl_export("--check", f"{model}:fine", "--json")
    assert (ran.code, ran.json["targets"]["ios"]) == (
        0,
        {"takes": None, "obstacles": [], "note": "not looked at: pip install it"},
    )
    assert pfl_export("--check", f"{model}:fine", "--target", "ios", "--json").code == 2


def test_figures_and_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_COMPARED", 10)
    steps: list[str] = []
    found = check(tiny.deployment(), resolve(["onnx"]), report=steps.append)
    assert found.ok
    assert not found.compared
    assert steps == ["trace", "look up the operators of onnx"]
    assert {"trace", "onnx"} <= set(found.seconds)


def test_a_toolchain_that_fails_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Target, "obstacles", fails)
    found = check(odd.model(torch.tanh), resolve(["onnx"]))
    assert found.targets["onnx"].takes is None
    assert "ZeroDivisionError" in found.targets["onnx"].note
    assert found.ok


def test_a_batch_that_does_not_fit_is_an_error() -> None:
    d = odd.model(torch.tanh)
    d.batch.pop("labels")
    with pytest.raises(ConfigError):
        check(d, [])
