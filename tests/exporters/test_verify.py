"""With which values programs are compared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from pfl_exporters import verify
from pfl_exporters.verify import cases, compared_with_pytorch
from pfl_mobile import Deployment, Head, Plan, Sgd, TrainPhase
from pfl_mobile.engines.compare import TOLERANCE, output_errors
from pfl_mobile.errors import ExportError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.programs.tasks import RegressionTask
from pfl_mobile.programs.trace import gradients, trace_programs, trained_names


class Rolling(nn.Module):
    """A head, and behind it a map that is repeated: of numbers beyond a size of 1 rounding decides the result."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(4, 1), steps
        nn.init.constant_(self.head.weight, 1e-3)
        nn.init.zeros_(self.head.bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for _ in range(self.steps):
            y = torch.sin(3.0 * y * (1.0 + 200.0 * y * y)) / 3.0
        return y


def rolling(steps: int) -> tuple[PersonalizedModel, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=draw)
    model = personalize(Rolling(steps), [Head("head")], example=[x[:2]])
    return model, {"x": x, "labels": torch.zeros(6, 1), "weight": torch.ones(6)}


def moved(model: PersonalizedModel, batch: dict[str, Tensor]) -> list[float]:
    """How far from the shipped values the cases are, by round."""
    found = [
        c for c in cases(model, RegressionTask(), batch, {"x": batch["x"][:1]}) if c.program == "gradients"
    ]
    shipped = model.values()
    return [max(float((c.inputs[n] - v).abs().max()) for n, v in shipped.items()) for c in found]


@pytest.mark.parametrize("steps", [0, 1])
def test_values_are_far_from_the_shipped_ones_where_float32_says_what_the_gradients_are(steps: int) -> None:
    model, batch = rolling(steps)
    assert min(moved(model, batch)) > 0.02


def errors(model: PersonalizedModel, batch: dict[str, Tensor]) -> list[float]:
    """Largest error of a gradient of PyTorch in float32, by round; in float64 it is none."""
    found = []
    for case in cases(model, RegressionTask(), batch, {"x": batch["x"][:1]}):
        if case.program == "gradients":
            given = {k: v.double() for k, v in case.inputs.items()}
            data = {k: v for k, v in given.items() if k in batch}
            values = {k: v for k, v in given.items() if k not in batch}
            exact = gradients(model.double(), RegressionTask(), data, values, trained_names(model))
            model.float()
            got = {name: value.numpy() for name, value in case.outputs.items()}
            want = {name: value.numpy() for name, value in exact.items()}
            found.append(max(e for _, e, kind in output_errors(got, want) if kind == "gradient"))
    return found


def test_values_come_nearer_where_rounding_says_what_the_gradients_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, right = moved(*rolling(14)), errors(*rolling(14))
    monkeypatch.setattr(verify, "_HALVINGS", 0)
    far, wrong = moved(*rolling(14)), errors(*rolling(14))
    assert max(right) < TOLERANCE < max(wrong)
    for a, b, error in zip(near, far, wrong, strict=True):
        assert a <= b / 4 if error > TOLERANCE else a <= b


@pytest.mark.parametrize("function", [torch.sign, lambda y: 1e-42 * y], ids=["sign", "of denormal size"])
def test_a_model_whose_gradients_are_all_zero_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return function(self.head(x))

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model = personalize(Flat(), [Head("head")], example=[x[:2]])
    batch = {"x": x, "labels": torch.zeros(6, 1), "weight": torch.ones(6)}
    plan = Plan(phases=(TrainPhase(steps=1, optimizer=Sgd(lr=0.1)),))
    d = Deployment("flat", model, RegressionTask(), batch, plan)
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    with pytest.raises(ExportError, match="every gradient is zero on every batch"):
        compared_with_pytorch(d, programs)


def test_neighbours_change_which_of_two_nearly_equal_sums_is_the_larger() -> None:
    x = torch.randn(8, generator=torch.Generator().manual_seed(3))
    w = torch.randn(8, generator=torch.Generator().manual_seed(4))
    v = w.flip(0)
    v[0] += ((w @ x) - (v @ x)) / x[0]
    values = {"w": torch.stack([w, v])}
    found = {int((values["w"] @ x).argmax())}
    found |= {int((beside["w"] @ x).argmax()) for beside in verify._neighbours(values, ["w"])}
    assert found == {0, 1}
    assert [beside["w"].equal(values["w"]) for beside in verify._neighbours(values, [])] == [True, True]
