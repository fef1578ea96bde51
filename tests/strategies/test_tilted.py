"""TERM: limits, gradients, no overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_mobile import LoRA
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs.tasks import ClassificationTask, tilted_task
from pfl_mobile.programs.trace import trace_programs
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.tilted import Tilted, tilt
from tests.backbones import MLP
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import Softmax, classes

losses = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)
tilts = st.floats(-1e9, 1e9)


def share(values: np.ndarray, weights: np.ndarray, t: float) -> np.ndarray:
    found = tilt(values, weights, t)
    return found / found.sum()


@given(losses, tilts)
def test_weights_never_overflow(values: list[float], t: float) -> None:
    found = share(np.array(values), np.arange(1.0, len(values) + 1), t)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)


@settings(deadline=None)  # the first call of a PyTorch kernel is slow
@given(losses, st.floats(-3, 3).filter(lambda t: abs(t) > 1e-4))
def test_weights_are_the_gradient_of_the_tilted_mean(values: list[float], t: float) -> None:
    x = torch.tensor([v / 1e5 for v in values], dtype=torch.float64, requires_grad=True)
    p = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    p = p / p.sum()
    mean = torch.logsumexp(p.log() + t * x, 0) / t
    (gradient,) = torch.autograd.grad(mean, x)
    np.testing.assert_allclose(share(x.detach().numpy(), p.numpy(), t), gradient.numpy(), atol=1e-6)


def test_limits_are_mean_largest_and_smallest() -> None:
    values, weights = np.array([1.0, 3.0, 2.0]), np.array([5.0, 1.0, 4.0])
    np.testing.assert_array_equal(tilt(values, weights, 0.0), weights)
    np.testing.assert_allclose(share(values, weights, 1e-9), weights / 10, atol=1e-8)
    np.testing.assert_array_equal(share(values, weights, 1e6), [0, 1, 0])
    np.testing.assert_array_equal(share(values, weights, -1e6), [1, 0, 0])
    np.testing.assert_array_equal(share(np.array([1e300, 1.0]), np.array([0.0, 1.0]), 1.0), [0, 1])


def test_tilt_zero_is_fedavg_and_a_large_one_helps_the_worst_device() -> None:
    def run(**rest: object) -> Federation:
        return Federation(FedAvg(**rest), Softmax(batch=32), classes(5, spread=2.0), full_batch(0.3)).run(60)  # type: ignore[arg-type]

    def worst(fed: Federation) -> float:
        return max(fed.loss(i, fed.served(i)) for i in range(5))

    plain, zero, large = run(), run(weighting=Tilted(t=0.0)), run(weighting=Tilted(t=20.0))
    assert_near(plain.server.values, zero.server.values)
    assert worst(large) < 0.9 * worst(plain)


def batch(size: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(size, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (size,), generator=generator)
    weight = torch.rand(size, generator=generator, dtype=torch.float64)
    weight[1] = 0.0
    return output, {"labels": labels, "weight": weight}


@pytest.mark.parametrize("t", [-3.0, -0.1, 0.0, 0.5, 4.0, 200.0])
def test_tilted_examples_have_the_gradient_of_the_tilted_loss(t: float) -> None:
    output, entries = batch()
    plain, weight = ClassificationTask(4), entries["weight"]
    found = tilted_task(plain, t).losses(output, entries)
    (got,) = torch.autograd.grad((found * weight).sum() / weight.sum(), output)
    values = plain.losses(output, entries)
    counted = weight > 0
    p = (weight / weight.sum())[counted]
    mean = (p * values[counted]).sum() if t == 0 else torch.logsumexp(p.log() + t * values[counted], 0) / t
    (want,) = torch.autograd.grad(mean, output)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, values)


def test_a_batch_that_does_not_count_gives_no_gradient() -> None:
    output, entries = batch()
    entries["weight"] = torch.zeros_like(entries["weight"])
    found = tilted_task(ClassificationTask(4), 2.0).losses(output, entries)
    (got,) = torch.autograd.grad((found * entries["weight"]).sum(), output)
    assert torch.equal(got, torch.zeros_like(got))


def test_tilted_task_is_exportable_and_otherwise_the_task() -> None:
    task = ClassificationTask(4)
    tilted = tilted_task(task, 1.5)
    assert tilted_task(task, 0.0) is task
    assert (tilted.kind, tilted.inputs, tilted.manifest()) == (task.kind, task.inputs, task.manifest())
    entries = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 3]), "weight": torch.ones(4)}
    model = personalize(MLP().eval(), [LoRA("hidden.[02]", rank=2)], example=(entries["x"],))
    programs = {k: trace_programs(model, k, entries, {"x": entries["x"][:1]}) for k in (task, tilted)}
    plain, other = (programs[k]["gradients"].run({**entries, **model.values()}) for k in (task, tilted))
    torch.testing.assert_close(plain["loss_sum"], other["loss_sum"])
    assert not torch.allclose(plain["grad.hidden.0.lora_B"], other["grad.hidden.0.lora_B"])


@pytest.mark.parametrize("t", [math.nan, math.inf])
def test_a_tilt_that_is_not_finite_is_refused(t: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        tilted_task(ClassificationTask(4), t)
