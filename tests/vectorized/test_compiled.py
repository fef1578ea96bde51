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
from tests.simulation.alone import classifier
from tests.vectorized.inputs import different

CPU = torch.device("cpu")


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
