"""Emitted functions give what their graph gives."""

from __future__ import annotations

import pytest
import torch

from pfl_mobile.vectorized.compiled import Graph, stacked, trace_step
from pfl_mobile.vectorized.emit import emit
from tests.vectorized.cases import case
from tests.vectorized.inputs import different

CPU = torch.device("cpu")


@pytest.mark.parametrize("lanes", [1, 3])
def test_emitted_function_gives_the_graph_s_values(graph: Graph, lanes: int) -> None:
    inputs = different(graph, lanes)
    many = graph if lanes == 1 else stacked(graph, lanes)
    arguments = [v[0] if lanes == 1 else v for v in (inputs[n] for n in many.inputs)]
    function = emit(many, device=CPU)
    for _ in range(2):  # nothing is kept from one call to the next, and no input is written to
        before = [a.clone() for a in arguments]
        out = function(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
        for lane in range(lanes):
            expected = graph.module(*(inputs[n][lane] for n in graph.inputs))
            for value, wanted in zip(out, expected, strict=True):
                torch.testing.assert_close(value if lanes == 1 else value[lane], wanted)


@pytest.mark.parametrize("lanes", [1, 3])
def test_sgd_is_part_of_the_function(graph: Graph, lanes: int) -> None:
    inputs = different(graph, lanes)
    many = graph if lanes == 1 else stacked(graph, lanes)
    arguments = {n: inputs[n][0].clone() if lanes == 1 else inputs[n].clone() for n in many.inputs}
    before = {n: a.clone() for n, a in arguments.items()}
    gradients = dict(zip(many.outputs, emit(many, device=CPU)(*arguments.values()), strict=True))
    names = ["head.weight", "hidden.0.lora_A"]
    loss = emit(many, device=CPU, names=names, sgd=True)(*arguments.values())
    torch.testing.assert_close(loss, gradients["loss"])
    for name, value in arguments.items():
        if name in names:
            torch.testing.assert_close(value, before[name] - gradients[name])
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["decoder", "recurrent", "pooled"])
def test_everything_is_on_the_device_that_is_asked_for(name: str) -> None:
    model, task, make = case(name)
    graph = stacked(trace_step(model, task, {k: torch.from_numpy(v) for k, v in make(4, 1).items()}), 3)
    function = emit(graph, device=torch.device("meta"))
    out = function(*(value.to("meta") for value in graph.inputs.values()))
    assert {value.device.type for value in out} == {"meta"}
