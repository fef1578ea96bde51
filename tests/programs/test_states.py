"""What a model keeps from one call to the next is refused by name, with the line that changes it."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile import ClassificationTask, CustomTask, Head, personalize
from pfl_mobile.errors import ExportError
from pfl_mobile.programs.trace import TracedProgram, trace_programs


class Keeping(nn.Module):
    """A layer with attributes and a forward pass of the test's."""

    def __init__(self, function: Callable[..., Tensor], kept: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        for name, value in kept.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value.clone())
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.keep, self.h = nn.Linear(8, 6), layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.keep(self.a(x)))


def trace(net: nn.Module) -> dict[str, TracedProgram]:
    rows = {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4)}
    return trace_programs(
        personalize(net.eval(), [Head("h")]), ClassificationTask(3), rows, {"x": rows["x"][:1]}
    )


def averages(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(0.1 * x.mean(0))
    return x - self.mean


def replaces(self: Any, x: Tensor) -> Tensor:
    self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
    return x - self.mean


def recurs(self: Any, x: Tensor) -> Tensor:
    y = x if self.h is None else x + self.h
    self.h = y.detach()
    return y


def caches(self: Any, x: Tensor) -> Tensor:
    self.keys[:, self.at] = x
    self.at += 1
    return self.keys[:, : self.at].mean(1)


def lists(self: Any, x: Tensor) -> Tensor:
    self.items.append(x.detach())
    return sum(self.items)


def looks_up(self: Any, x: Tensor) -> Tensor:
    count = len(self.items)
    self.items[count] = x.detach()
    return x + count


def counts(self: Any, x: Tensor) -> Tensor:
    self.n += 1
    return x * self.n


def scales(self: Any, x: Tensor) -> Tensor:
    self.w.data.mul_(0.9)
    return x * self.w


@pytest.mark.parametrize(
    ("function", "kept", "words"),
    [
        (averages, {"mean": torch.zeros(6)}, r"its buffer 'mean' .*: self\.mean\.mul_"),
        (replaces, {"mean": torch.zeros(6)}, r"its buffer 'mean' .*: self\.mean = 0\.9"),
        (recurs, {"h": None}, r"its attribute 'h' .*: self\.h = y\.detach\(\)"),
        (recurs, {"h": torch.zeros(4, 6)}, r"its buffer 'h' .*: self\.h = y\.detach\(\)"),
        (
            caches,
            {"keys": torch.zeros(4, 5, 6), "at": 0},
            r"its buffer 'keys' .*: self\.keys\[:, self\.at\] = x",
        ),
        (lists, {"items": []}, r"its attribute 'items' .*: self\.items\.append"),
        (lists, {"items": deque(maxlen=3)}, r"its attribute 'items' .*: self\.items\.append"),
        (looks_up, {"items": {}}, r"its attribute 'items' .*: self\.items\[count\] ="),
        (counts, {"n": 0}, r"its attribute 'n' .*: self\.n \+= 1"),
        (counts, {"n": torch.zeros(())}, r"its buffer 'n' .*: self\.n \+= 1"),
        (scales, {"w": nn.Parameter(torch.ones(6))}, r"its parameter 'w' .*: self\.w\.data"),
    ],
)
def test_what_is_kept_is_named_with_its_line(
    function: Callable[..., Tensor], kept: dict[str, Any], words: str
) -> None:
    net = Net(Keeping(function, kept))
    before = {name: value.clone() for name, value in net.named_buffers()}
    with pytest.raises(ExportError, match=rf"layer 'keep' \(Keeping\) changes {words}") as caught:
        trace(net)
    assert re.search(r"test_states\.py:\d+: ", caught.value.message)
    wanted = "the parameter as it is" if "w" in kept else "an input and an output"
    assert wanted in caught.value.mend
    for name, value in net.named_buffers():  # looking changes nothing
        if function is not scales:
            assert torch.equal(value, before[name])


def in_training(self: Any, x: Tensor) -> Tensor:
    self.norm.train()
    return self.norm(x)


def by_function(self: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, self.running, self.spread, training=True)


def by_instance(self: Any, x: Tensor) -> Tensor:
    return self.norm.train()(x.unsqueeze(-1).expand(-1, -1, 3)).mean(-1)


def as_it_is(self: Any, x: Tensor) -> Tensor:
    return self.norm(x)


@pytest.mark.parametrize(
    ("function", "kept", "words"),
    [
        (in_training, {"norm": nn.BatchNorm1d(6)}, r"'keep\.norm' \(BatchNorm1d\).*: self\.norm\.train\(\)"),
        (in_training, {"norm": nn.BatchNorm1d(6, momentum=None)}, r"'keep\.norm'.*: self\.norm\.train\(\)"),
        (
            by_instance,
            {"norm": nn.InstanceNorm1d(6, track_running_stats=True)},
            r"\(InstanceNorm1d\).*train\(\)",
        ),
        (by_function, {"running": torch.zeros(6), "spread": torch.ones(6)}, r"'keep' .*F\.batch_norm\("),
        (
            as_it_is,
            {"norm": nn.BatchNorm1d(6, track_running_stats=False)},
            r"each batch.*return self\.norm\(x\)",
        ),
    ],
)
def test_normalization_of_the_batch_is_named_as_such(
    function: Callable[..., Tensor], kept: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        trace(Net(Keeping(function, kept)))
    assert "statistics of" in caught.value.message
    assert "replace_batch_norm(model)" in caught.value.mend
    assert re.search(r"test_states\.py:\d+: ", caught.value.message)


def standardized(self: Any, x: Tensor) -> Tensor:
    weight = F.batch_norm(self.w.reshape(1, 6, 6), None, None, training=True)[0]
    return x @ weight


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (
            standardized,
            {"w": nn.Parameter(torch.randn(6, 6))},
        ),  # as timm standardizes weights: rows stay apart
        (as_it_is, {"norm": nn.SyncBatchNorm(6)}),
        (lambda self, x: (setattr(self, "seen", x.detach()), x)[1], {"seen": None}),
    ],
)
def test_what_no_output_depends_on_is_traced(function: Callable[..., Tensor], kept: dict[str, Any]) -> None:
    trace(Net(Keeping(function, kept)))


def test_a_state_as_input_and_output_works() -> None:
    """The way out that the refusal names."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            new = torch.tanh(self.a(x) + state)
            return self.h(new), new

    task = CustomTask(
        lambda out, batch: F.cross_entropy(out[0], batch["labels"], reduction="none"),
        inputs=("x", "state"),
        prediction=lambda out, _: {"value": out[0], "state": out[1]},
    )
    rows = {"x": torch.randn(4, 8), "state": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0])}
    rows["weight"] = torch.ones(4)
    model = personalize(Step().eval(), [Head("h")])
    predict = trace_programs(model, task, rows, {"x": rows["x"][:1], "state": rows["state"][:1]})["predict"]
    assert predict.outputs == ("value", "state")


CALLS: list[int] = []


def counts_outside(_self: Any, x: Tensor) -> Tensor:
    CALLS.append(1)
    return x * len(CALLS)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda _, x: x * random.random(), r"random numbers.*test_states\.py:\d+: .*random\.random\(\)"),
        (lambda _, x: x * float(np.random.rand()), r"random numbers.*: .*np\.random\.rand\(\)"),
        (counts_outside, r"what is outside the model"),
    ],
)
def test_an_output_that_differs_from_call_to_call_is_refused(
    function: Callable[..., Tensor], words: str
) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        trace(Net(Keeping(function, {})))
    assert "an entry of the batch" in caught.value.mend
