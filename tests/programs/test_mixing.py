"""Where rows are mixed is named: operator, layer and line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import ClassificationTask, CustomTask, Head, Task, personalize
from pfl_mobile.programs.mixing import where_rows_mix


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.act, self.h = nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.function(self.act(self.a(x))))


def found(function: Callable[[Tensor], Tensor], task: Task | None = None) -> str:
    torch.manual_seed(0)
    rows = {
        "x": torch.randn(4, 8),
        "labels": torch.tensor([0, 1, 2, 0]),
        "weight": torch.tensor([1.0, 0.0, 0.5, 0.0]),
    }
    other = {**rows, "x": rows["x"] * (rows["weight"] != 0).float().unsqueeze(1)}
    model = personalize(Net(function).eval(), [Head(["a", "h"])])
    return where_rows_mix(model, task or ClassificationTask(3), rows, other)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda y: y - y.mean(0), "aten.mean.dim computes over the rows of the batch, in the model ("),
        (lambda y: (y @ y.t()).softmax(-1) @ y, "computes over the rows of the batch, in the model ("),
        (lambda y: y / y.std(), "computes over the rows of the batch, in the model ("),
        (lambda y: y + y.cumsum(0), "computes over the rows of the batch, in the model ("),
        (
            lambda y: y / y.norm(dim=1, keepdim=True),
            "gives no finite number for such an example, in the model (",
        ),
    ],
)
def test_the_line_of_a_model_is_named(function: Callable[[Tensor], Tensor], words: str) -> None:
    assert words in found(function)
    assert "test_mixing.py:" in found(function)


def test_the_line_of_a_loss_is_named() -> None:
    def loss(output: Tensor, _batch: object) -> Tensor:
        each = output.square().mean(-1)
        return each - each.mean()

    assert "test_mixing.py" in found(lambda y: y, CustomTask(loss))
    assert "return each - each.mean()" in found(lambda y: y, CustomTask(loss))


def test_rows_that_are_apart_have_no_such_place() -> None:
    assert found(lambda y: y.softmax(-1) + y.mean(-1, keepdim=True)) == ""
