"""Exceptions know the user's layer and line that they come from."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import Head, personalize
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.modules.places import Origin, is_tool, of_exception
from pfl_mobile.programs import trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return torch.asinh(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def personal(net: nn.Module) -> PersonalizedModel:
    return personalize(net.eval(), [Head("head")])


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


class Failing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(7, -1))


def test_an_exception_names_the_innermost_layer_and_the_users_line() -> None:
    model = personal(Net())
    model.backbone.blocks[1].inner.weight = nn.Parameter(torch.zeros(6, 5))
    with pytest.raises(RuntimeError) as caught:
        model(torch.randn(2, 6))
    origin = of_exception(caught.value, model)
    assert (origin.layer, origin.kind) == ("blocks.1.inner", "Linear")
    assert origin.code == "y = self.inner(x)"
    assert str(origin).startswith("in layer 'blocks.1.inner' (")
    with pytest.raises(RuntimeError) as caught:
        personal(Failing())(torch.randn(2, 6))
    assert of_exception(caught.value, personal(Failing())).layer is None  # another model's layers


def test_an_exception_raised_from_another_has_the_origin_of_its_cause() -> None:
    model = personal(Failing())
    try:
        try:
            model(torch.randn(2, 6))
        except RuntimeError as error:
            raise ValueError("again") from error
    except ValueError as error:
        found = of_exception(error, model)
    assert found.layer == ""
    assert found.line == line_of(Failing.forward, "view")
    assert str(found) == f"in the model ({found.place}: return super().forward(x.view(7, -1)))"


def test_words_of_what_is_half_known() -> None:
    assert str(Origin("a.b", "BatchNorm1d")) == "in layer 'a.b' (BatchNorm1d)"
    assert str(Origin(None, "", "/x/loss.py", 3, "return a / b")) == "at /x/loss.py:3: return a / b"
    assert not Origin().known


def test_files_of_tools_are_not_the_users() -> None:
    assert is_tool(torch.nn.functional.__file__)
    assert is_tool(trace.__file__)
    assert is_tool(types.__file__)
    assert is_tool("<eval_with_key>.1")
    assert not is_tool(__file__)


def test_a_backbone_that_fails_on_its_example_is_placed() -> None:
    with pytest.raises(
        ConfigError, match=r"fails on the example input in the model \(.*test_places\.py:\d+: .*view"
    ) as caught:
        personalize(Failing(), [Head("head")], example=[torch.randn(2, 6)])
    assert "forward takes" in caught.value.mend
