"""A model gives one tensor with a row for each row of the batch, or a refusal says what to write."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import ClassificationTask, CustomTask, Head, RegressionTask, Task, personalize
from pfl_mobile.errors import ConfigError, ExportError
from pfl_mobile.programs.outputs import one_tensor
from pfl_mobile.programs.trace import trace_programs

Pair = namedtuple("Pair", "scores hidden")


@dataclass
class Given:
    logits: Tensor
    hidden: Tensor | None = None


class Net(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any], width: int = 3) -> None:
        super().__init__()
        self.a, self.give = nn.Linear(8, width), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.a(x))


def trace(net: nn.Module, task: Task | None = None, **batch: Tensor) -> None:
    rows = {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4), **batch}
    trace_programs(personalize(net, [Head("a")]), task or ClassificationTask(3), rows, {"x": rows["x"][:1]})


@pytest.mark.parametrize(
    ("give", "words", "mend"),
    [
        (
            lambda y: (y, y * 2),
            r"a tuple \(\[0\] float32 \[4, 3\], \[1\] float32",
            r"self\.net\(\*inputs\)\[0\]",
        ),
        (lambda y: [y], r"a list", r"\[0\]"),
        (lambda y: {"hidden": y, "logits": y}, r"a dict \(\['hidden'\]", r"\['logits'\]"),
        (lambda y: Given(y), r"a Given \(\.logits float32 \[4, 3\], \.hidden None\)", r"\.logits"),
        (lambda y: Pair(y, y), r"a Pair", r"\.scores"),
        (lambda _: None, r"returns None", r"return the logits"),
        (lambda _: 3.0, r"returns float", r"return the logits"),
    ],
)
def test_what_is_not_one_tensor_is_described(give: Callable[[Tensor], Any], words: str, mend: str) -> None:
    with pytest.raises(
        ConfigError, match=f"forward of Net returns.*{words.removeprefix('returns')}"
    ) as caught:
        trace(Net(give))
    assert re.search(mend, caught.value.mend)


def test_of_outputs_of_transformers_logits_are_taken() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    logits = torch.zeros(2, 3)
    given = outputs.SequenceClassifierOutput(
        loss=torch.zeros(()), logits=logits, hidden_states=(torch.zeros(1),)
    )
    assert one_tensor(given, nn.Linear(1, 1)) is logits
    with pytest.raises(ConfigError, match="BaseModelOutput") as caught:
        one_tensor(outputs.BaseModelOutput(last_hidden_state=logits), nn.Linear(1, 1))
    assert caught.value.mend.endswith("return self.net(*inputs).last_hidden_state")


def test_a_loss_of_ones_own_may_take_several_tensors() -> None:
    task = CustomTask(
        lambda output, _: output[0].square().mean(1) + output[1].mean(1),
        prediction=lambda output, _: {"value": output[0]},
    )
    trace(Net(lambda y: (y, y * 2)), task)
    with pytest.raises(ConfigError, match="a tuple"):
        trace(Net(lambda y: (y, y * 2)), CustomTask(task.loss))


def test_an_axis_that_a_single_row_loses_is_named() -> None:
    with pytest.raises(
        ExportError, match=r"is \[4\] for the example's 4 rows and \[\] for the 1.*squeeze\(\).*lambda"
    ):
        trace(Net(lambda y: y.squeeze(), 1), RegressionTask(), labels=torch.randn(4))
    trace(Net(lambda y: y.squeeze(-1), 1), RegressionTask(), labels=torch.randn(4))


def test_rows_that_are_not_those_of_the_batch_are_named() -> None:
    with pytest.raises(
        ExportError, match=r"gives 4 rows for a batch of 1.*fixed in the model \(.*zeros\(4, 3\)"
    ):
        trace(Net(lambda y: y + torch.zeros(4, 3)))
    trace(Net(lambda y: y + torch.zeros(len(y), 3)))


@pytest.mark.parametrize(
    ("give", "words", "mend"),
    [
        (lambda y: y.argmax(-1, keepdim=True).expand(-1, 3), r"returns int64 \[4, 3\]", r"before any argmax"),
        (lambda y: torch.complex(y, y), r"returns complex64", r"view_as_real"),
        (lambda y: y.half(), r"returns float16", r"\.half\(\)"),
        (lambda y: torch.cat([y, y]), r"is \[8, 3\] for a batch of 4 rows", r"batch_first=True"),
    ],
)
def test_numbers_and_rows_that_a_task_cannot_take_are_named(
    give: Callable[[Tensor], Any], words: str, mend: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        trace(Net(give))
    assert re.search(mend, caught.value.mend)
