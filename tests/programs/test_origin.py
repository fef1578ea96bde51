"""Nodes of programs and exceptions know the user's layer and line that they come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile import ClassificationTask, Head, LoRA, personalize
from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.programs import trace
from pfl_mobile.programs.origin import recording


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = y.erfc()
        return torch.asinh(y) + F.gelu(y)


class Net(nn.Module):
    def __init__(self, written: bool = False, complexes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)
        self.written, self.complexes = written, complexes

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.written:
            y, x = x, x.clone()
            x[:, 1:3] = torch.atanh(0.1 * y[:, 1:3].sin())
        if self.complexes:
            x = torch.fft.fft(x).abs()
        return self.head(x)


def personal(net: nn.Module) -> PersonalizedModel:
    return personalize(net.eval(), [LoRA("blocks.0.inner", rank=2), Head("head")])


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4)}


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def recorded(net: nn.Module) -> dict[str, trace.TracedProgram]:
    model = personal(net)
    rows = batch()
    with recording(model):
        return trace.trace_programs(model, ClassificationTask(3), rows, {"x": rows["x"][:1]})


def test_nodes_of_forward_and_backward_name_layer_and_line() -> None:
    program = recorded(Net())["gradients"]
    seen = {}
    for node in program.graph.graph.nodes:
        if node.op == "call_function":
            origin = node.meta["pfl_origin"]
            seen.setdefault((origin.layer, origin.code), []).append(str(node.target))
    for block in ("blocks.0", "blocks.1"):
        assert any("erf" in target for target in seen[block, "y = y.erfc()"]), seen
    # the derivative of asinh is an rsqrt: only the backward pass has one
    asinh = seen["blocks.1", "return torch.asinh(y) + F.gelu(y)"]
    assert any("rsqrt" in target for target in asinh), asinh
    line = next(
        n.meta["pfl_origin"]
        for n in program.graph.graph.nodes
        if n.op == "call_function" and "erf" in str(n.target)
    )
    assert line.line == line_of(Block.forward, "erfc")
    assert line.place.endswith(f"test_origin.py:{line.line}")


@pytest.mark.parametrize("options", [{"written": True}, {"complexes": True}])
def test_rewritten_graphs_keep_the_origins(options: dict[str, bool]) -> None:
    for name, program in recorded(Net(**options)).items():
        nodes = [n for n in program.graph.graph.nodes if n.op == "call_function"]
        known = [n for n in nodes if n.meta["pfl_origin"].known]
        assert len(known) > 0.9 * len(nodes), name
        codes = {n.meta["pfl_origin"].code for n in nodes}
        assert ("x[:, 1:3] = torch.atanh(0.1 * y[:, 1:3].sin())" in codes) == ("written" in options)
        assert ("x = torch.fft.fft(x).abs()" in codes) == ("complexes" in options)


def test_a_second_trace_has_the_same_names_and_the_first_notes_nothing() -> None:
    model, rows = personal(Net(written=True)), batch()
    given = (model, ClassificationTask(3), rows, {"x": rows["x"][:1]})
    plain, found = trace.trace_programs(*given), trace.trace_origins(*given)
    for name, program in plain.items():
        nodes = [n for n in program.graph.graph.nodes if n.op == "call_function"]
        assert not any("pfl_origin" in n.meta for n in nodes)
        assert [n.name for n in nodes] == list(found[name])
