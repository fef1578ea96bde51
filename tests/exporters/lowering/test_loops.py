"""Recurrent operators as loops compute what the operators do, and steps hold no work that is always the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pfl_exporters.lowering.executorch import _prepare
from pfl_exporters.lowering.expand import unroll
from pfl_exporters.lowering.loops import as_scans, export_with_loops, has_loops
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.trace import TracedProgram, trace_function
from tests.programs.forms.test_recurrences import KINDS, program


def values(graph: fx.GraphModule, traced: TracedProgram) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(traced.outputs, graph(*traced.inputs.values()), strict=True))


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> TracedProgram:
    """Both directions, all weights trained."""
    torch.manual_seed(0)
    return program(KINDS[request.param](3, 4, bidirectional=True), 5)


@pytest.mark.parametrize("form", ["plain", "delegated", "unrolled"])
def test_the_same_values(trained: TracedProgram, form: str) -> None:
    graph = copied(trained.graph)
    if form == "unrolled":
        unroll(graph)
    else:
        as_scans(graph, **({"prepare": _prepare, "delegated": True} if form == "delegated" else {}))
    assert not has_loops(graph)
    want = trained.run(trained.inputs)
    for name, got in values(graph, trained).items():
        torch.testing.assert_close(got, want[name], rtol=1e-5, atol=1e-5)


def test_an_exported_program_has_the_loops(trained: TracedProgram) -> None:
    exported: Any = export_with_loops(trained)
    scans = [n for n in exported.graph.nodes if n.target is torch.ops.higher_order.scan]
    assert len(scans) == 4
    want = trained.run(trained.inputs)
    for got, name in zip(exported.module()(*trained.inputs.values()), trained.outputs, strict=True):
        torch.testing.assert_close(got, want[name], rtol=1e-5, atol=1e-5)


def frozen(steps: int = 5) -> TracedProgram:
    """What a frozen LSTM gives, without a gradient."""
    layer = nn.LSTM(3, 4).requires_grad_(requires_grad=False)
    return trace_function(
        "evaluate",
        lambda batch, _: {"out": layer(batch["x"])[0]},
        {"x": torch.randn(steps, 2, 3)},
        {},
        ("x",),
    )


def test_results_that_nobody_takes_are_not_kept() -> None:
    graph = copied(frozen().graph)
    as_scans(graph)
    output = next(n for n in graph.step_0.graph.nodes if n.op == "output")
    assert len(output.args[0]) == 3  # two states and the outputs; neither cells nor products


def test_a_delegated_step_owns_frozen_weights_and_does_not_turn_trained_ones(trained: TracedProgram) -> None:
    graph = copied(frozen().graph)
    as_scans(graph, prepare=_prepare, delegated=True)
    assert [n.target for n in graph.step_0.graph.nodes if n.op == "get_attr"] == [
        "_own_arg3_1",
        "_own_arg4_1",
    ]
    graph = copied(trained.graph)
    as_scans(graph, prepare=_prepare, delegated=True)
    for body in graph.children():
        assert isinstance(body, fx.GraphModule)
        called = [str(n.target) for n in body.graph.nodes if n.op == "call_function"]
        assert not any("permute" in target for target in called)
