"""Traced, stacked and emitted steps compute what autograd computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pfl_mobile import ClassificationTask, CustomTask, Head, LoRA, personalize
from pfl_mobile.errors import ConfigError, ExportError
from pfl_mobile.vectorized.compiled import Graph, stacked, trace_evaluate, trace_step
from pfl_mobile.vectorized.emit import emit
from pfl_mobile.vectorized.rewrite import add_bmm, channels_last, rewrite
from tests.simulation.alone import classifier
from tests.vectorized.test_cohort_models import case

CPU = torch.device("cpu")


def different(graph: Graph, lanes: int) -> dict[str, torch.Tensor]:
    """Inputs that differ from lane to lane."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value.unsqueeze(0).expand(lanes, *value.shape).clone()
        if value.dtype == torch.int64
        else value + 0.3 * torch.randn(lanes, *value.shape, generator=generator)
        for name, value in graph.inputs.items()
    }


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace_step(*classifier())


def test_gradients_are_autograd_s(graph: Graph) -> None:
    model, _, batch = classifier()
    values = {n: v.clone().requires_grad_() for n, v in model.values().items()}
    losses = nn.functional.cross_entropy(model.call(values, batch["x"]), batch["labels"], reduction="none")
    (3.0 * (losses * batch["weight"]).sum()).backward()
    inputs = {**graph.inputs, "scale": torch.tensor(3.0)}
    out = dict(zip(graph.outputs, graph.module(*inputs.values()), strict=True))
    torch.testing.assert_close(out.pop("loss"), (losses * batch["weight"]).sum().detach())
    for name, grad in out.items():
        torch.testing.assert_close(grad, values[name].grad)


@pytest.mark.parametrize("classes", [3, 300])
def test_cross_entropy_keeps_its_value_where_probabilities_underflow(classes: int) -> None:
    head = nn.Linear(1, classes, bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:3, 0] = torch.tensor([500.0, 0.0, -400.0])
    batch = {"x": torch.ones(2, 1), "labels": torch.tensor([2, -100]), "weight": torch.ones(2)}
    # a label that is ignored is no class: the task's own check is for the programs of phones
    model = personalize(nn.Sequential(head).eval(), [Head("0")])
    step = trace_step(model, ClassificationTask(classes), {**batch})
    loss, grad = step.module(*step.inputs.values())
    assert float(loss) == 900.0
    wanted = torch.zeros(classes, 1)
    wanted[0], wanted[2] = 1.0, -1.0
    torch.testing.assert_close(grad, wanted)


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


def test_shared_inputs_have_no_lanes() -> None:
    model, task, batch = classifier()
    graph = trace_evaluate(model, task, batch)
    tensors = list(model.values())
    many = stacked(graph, 3, shared=tensors)
    inputs = different(graph, 3)
    arguments = [inputs[n][0] if n in tensors else inputs[n] for n in many.inputs]
    out = emit(many, device=CPU)(*arguments)
    for lane in range(3):
        own = [inputs[n][0 if n in tensors else lane] for n in graph.inputs]
        for value, wanted in zip(out, graph.module(*own), strict=True):
            torch.testing.assert_close(value[lane], wanted)


def test_rewriting_keeps_the_values(graph: Graph) -> None:
    many = stacked(graph, 3)
    inputs = list(different(graph, 3).values())
    before = many.module(*inputs)
    rewrite(many.module)
    many.module.recompile()
    targets = {n.target for n in many.module.graph.nodes}
    assert add_bmm in targets  # otherwise nothing was rewritten
    for value, wanted in zip(many.module(*inputs), before, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_seen_by_convolutions(channels: int) -> None:
    weight = torch.randn(4, channels, 3, 3)
    turned = channels_last(weight)
    assert torch.equal(turned, weight)
    image = torch.randn(2, channels, 8, 8)
    out = torch.convolution(image, turned, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_models_that_cannot_be_traced_are_told() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.head(x) if float(x.sum()) > 0 else x

    batch = {"x": torch.ones(3, 2), "labels": torch.zeros(3, dtype=torch.int64), "weight": torch.ones(3)}
    model = personalize(Branches().eval(), [LoRA("head", rank=1)])
    with pytest.raises(ExportError, match="cannot be traced"):
        trace_step(model, ClassificationTask(2), batch)
    plain = personalize(nn.Sequential(nn.Linear(2, 2)).eval(), [Head("0")])
    with pytest.raises(ConfigError, match="one loss per weighted element"):
        trace_step(plain, CustomTask(lambda output, _: output.mean()), batch)
