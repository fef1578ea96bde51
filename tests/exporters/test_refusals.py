"""A refused model's message names operator, layer, line, target, and what takes the model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from pfl_exporters import refusals
from pfl_exporters.export import export_bundle
from pfl_exporters.lowering.obstacles import Obstacle
from pfl_exporters.refusals import Places, Refuser, grouped
from pfl_exporters.targets import TARGETS
from pfl_exporters.verify import compared_with_pytorch
from pfl_mobile.errors import EngineError, ExportError, GradientMismatchError, UnsupportedOperatorError
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from tests.exporters import odd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pfl_exporters.verify import Case
    from pfl_mobile.programs.deployment import Deployment


@cache
def traced(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Deployment, dict[str, TracedProgram], list[Case]]:
    d = odd.model(function)
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    return d, programs, compared_with_pytorch(d, programs)


@pytest.mark.slow
def test_a_kernel_that_is_missing_is_named_before_lowering(tmp_path: Path) -> None:
    steps: list[str] = []
    with pytest.raises(UnsupportedOperatorError) as caught:
        export_bundle(odd.model(odd.inverse_error), ["android"], tmp_path / "b", report=steps.append)
    message, mend = caught.value.message, caught.value.mend
    assert "target 'android' does not take the model: erfinv in layer '1' (" in message
    assert "odd.py:" in message
    assert "return torch.erfinv(torch.tanh(x) * 0.9)" in message
    assert "no kernel aten::erfinv.out" in message
    assert "ios, onnx do not take the model either" in mend
    assert not any("lower" in step for step in steps)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_targets_that_take_the_model_are_tried(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        export_bundle(odd.model(odd.taken), ["ios"], tmp_path / "b")
    assert "index_put in layer '1' (" in caught.value.message
    assert "y[:, [1, 3, 5]] = x[:, :3].tanh()" in caught.value.message
    assert (
        "--target android or --target onnx, which takes the model (it was lowered just now"
        in caught.value.mend
    )


@pytest.mark.slow
def test_a_large_model_is_looked_up_only(monkeypatch: pytest.MonkeyPatch) -> None:
    d, programs, reference = traced(odd.taken)
    monkeypatch.setattr(refusals, "MOST_TRIED", 10)
    way = Refuser(d, programs, reference, lambda _: None)._way_out({"ios"}, "rewrite it")
    assert way == (
        "try --target android or --target onnx, which has all operators (looked up, not tried), or rewrite it"
    )


@pytest.mark.slow
def test_wrong_numbers_name_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hyperbolic tangent is written as a sine."""
    d = odd.model(torch.tanh)
    from pfl_exporters.lowering import onnx

    stock = onnx._to_onnx

    def spoiled(program: TracedProgram, *more: object):
        model = stock(program, *more)
        for node in model.graph.node:
            if node.op_type == "Tanh":
                node.op_type = "Sin"
        return model

    monkeypatch.setattr(onnx, "_to_onnx", spoiled)
    with pytest.raises(GradientMismatchError) as caught:
        export_bundle(d, ["onnx"], tmp_path / "b")
    message = caught.value.message
    assert "target 'onnx': engine 'onnxruntime': output " in message
    assert "the first wrong value is that of tanh in layer '1' (" in message
    assert "of shape [4, 8]" in message
    assert "--target android or --target ios, which takes the model" in caught.value.mend
    assert not (tmp_path / "b").exists()


def test_a_search_that_fails_does_not_hide_what_it_searches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    d, programs, reference = traced(torch.tanh)
    error = GradientMismatchError("output 'loss_sum' differs", mend="m")
    error.program, error.output, error.batch = "gradients", "loss_sum", reference[0].what

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(refusals, "first_wrong", fails)
    monkeypatch.setattr(Refuser, "_way_out", lambda *_: "rewrite it")
    told = Refuser(d, programs, reference, lambda _: None).of_numbers(TARGETS.find("onnx"), error, 1e-4)
    assert "output 'loss_sum' differs; which operator it is was not found: ZeroDivisionError" in told.message
    assert told.code == "GradientMismatchError"


def test_an_engine_that_fails_says_what_can_be_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that a bundle, which there is not yet, be verified."""
    d, programs, reference = traced(torch.tanh)
    monkeypatch.setattr(Refuser, "_way_out", lambda *_: "use another")
    error = EngineError("the method cannot be loaded", mend="run `pfl verify` on the bundle")
    told = Refuser(d, programs, reference, lambda _: None).of_lowering(TARGETS.find("onnx"), error)
    assert isinstance(told, ExportError)
    assert told.message == "target 'onnx' does not take the model: the method cannot be loaded"
    assert told.mend == "use another"


def test_uses_are_grouped_by_operator() -> None:
    class Known(Places):
        def of(self, program: str, node: str | None) -> str:
            return f" in layer {node!r}" if node else ""

    places = Known(odd.model(torch.tanh))
    lines = grouped(
        [
            Obstacle("gradients", "a", "erfinv", "no kernel"),
            Obstacle("gradients", "b", "erfinv", "no kernel"),
            Obstacle("predict", None, "lgamma", "no kernel"),
            Obstacle("predict", None, "", "input 'x' is a single number"),
        ],
        places,
    )
    assert lines == [
        "erfinv in layer 'a', and in 1 more places: no kernel",
        "lgamma in program 'predict': no kernel",
        "input 'x' is a single number",
    ]


def test_places_that_cannot_be_found_are_left_out() -> None:
    d = odd.model(torch.tanh)

    def broken(*_: object) -> None:
        raise ValueError

    d.model.backbone[1].function = broken
    places = Places(replace(d))
    assert places.of("gradients", "tanh") == ""
