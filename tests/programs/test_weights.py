"""Frozen weights of 8 and 4 bits: how far rounding goes, which weights it takes, and that a model is itself again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from pfl_mobile import Head, LoRA
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.modules.model import tensor_digest
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.programs.trace import trace_programs
from pfl_mobile.programs.weights import (
    DEQUANTIZE,
    DEQUANTIZE_PACKED,
    WeightFormat,
    dequantize,
    pack,
    quantize,
    weights_stored,
)

WIDTH, WORDS = 32, 48
NUMBERS = st.floats(-1e6, 1e6, width=32)


class Conv1D(nn.Module):
    """As in transformers, by whose name and module it is known."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(size, out) / 6), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, x.shape[-1]) @ self.weight + self.bias).reshape(*x.shape[:-1], -1)


class Mixed(nn.Module):
    """A layer of each kind; one called twice, a table that is tied, and a head. Tokens [B, T] to [B, T, words]."""

    def __init__(self, words: int = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.twice = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.turned = Conv1D(width, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.twice(F.gelu(self.twice(x)))
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.last(self.norm(x + self.turned(x))))


def mixed(weights: str = "float32", words: int = WORDS, width: int = WIDTH) -> Deployment:
    """A deployment of it, whose layer `last` is trained as a whole."""
    torch.manual_seed(0)
    tokens = torch.randint(0, words, (2, 6))
    model = personalize(Mixed(words, width).eval(), [LoRA(["twice", "turned"], rank=2), Head("last")])
    return Deployment(
        "mixed",
        model,
        TokenTask(words),
        {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(tokens.shape)},
        Plan(phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),)),
        predict_batch={"tokens": tokens[:1], "position": torch.tensor([3])},
        weights=weights,
    )


@given(arrays(np.float32, (3, 32), elements=NUMBERS), st.sampled_from([None, 16, 32]))
def test_rounding_errs_by_half_a_step_at_most(values: np.ndarray, group: int | None) -> None:
    weight = torch.from_numpy(values)
    stored = quantize(weight, 8, group)
    error = (dequantize(stored.numbers, stored.scales) - weight).abs().reshape(*stored.scales.shape, -1)
    assert bool((error <= stored.scales.unsqueeze(-1) * (0.5 + 1e-4)).all())
    assert int(stored.numbers.min()) >= -127


@given(arrays(np.float32, (3, 32), elements=NUMBERS), st.sampled_from([16, 32]))
def test_four_bits_err_no_more_than_without_cutting_off(values: np.ndarray, group: int) -> None:
    weight = torch.from_numpy(values)
    stored = quantize(weight, 4, group)
    parts = weight.reshape(3, -1, group).double()
    step = (parts.abs().amax(-1, keepdim=True) / 7).clamp(min=torch.finfo(torch.float32).tiny)
    plain = ((parts / step).round() * step - parts).square().sum(-1)
    read = dequantize(stored.numbers, stored.scales).reshape(parts.shape).double()
    rounded = 1e-12 * parts.square().sum(-1) + 1e-60  # by float32
    assert bool(((read - parts).square().sum(-1) <= plain * (1 + 1e-4) + rounded).all())
    assert int(stored.numbers.min()) >= -8
    assert int(stored.numbers.max()) <= 7


@given(arrays(np.int8, (4, 32), elements=st.integers(-127, 127)))
def test_numbers_that_were_stored_are_stored_again_as_they_are(values: np.ndarray) -> None:
    values[:, 0] = 127
    weight = torch.from_numpy(values).float() * 0.25
    stored = quantize(weight, 8)
    assert torch.equal(stored.numbers, torch.from_numpy(values))
    assert torch.equal(stored.weight(), weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1e-45, 3.4028234e38, -3.4028234e38])
def test_extreme_weights_stay_finite(bits: int, value: float) -> None:
    weight = torch.full((2, 32), value)
    read = quantize(weight, bits, 32).weight()
    assert bool(read.isfinite().all())
    assert torch.allclose(read, weight, rtol=0.2, atol=1e-38)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.zeros(2, 32)
    weight[1, 3] = value
    with pytest.raises(ConfigError, match="not finite"):
        quantize(weight, 8)


def test_a_weight_may_lie_anyhow_in_memory_and_have_many_dimensions() -> None:
    weight = torch.randn(32, 4, 3, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    stored = quantize(weight, 8)
    assert stored.scales.shape == (4, 1)
    assert torch.equal(stored.numbers, quantize(weight.contiguous(), 8).numbers)
    assert float((stored.weight() - weight).abs().max()) <= float(stored.scales.max()) * 0.51


def test_what_is_stored_takes_the_bits_it_says() -> None:
    weight = torch.randn(64, 128)
    assert quantize(weight, 8).stored_bytes == 64 * 128 + 64 * 4
    assert quantize(weight, 4, 32).stored_bytes == 64 * 128 // 2 + 64 * 4 * 4


@pytest.mark.parametrize(
    ("given", "found"),
    [("int8", WeightFormat("int8")), ("int4:128", WeightFormat("int4", 128)), ("float32", WeightFormat())],
)
def test_formats_are_said_in_words(given: str, found: WeightFormat) -> None:
    assert WeightFormat.of(given) == found


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ("int5", UnknownNameError, "'int5'"),
        ("int8:32", ConfigError, "group to int4 only"),
        ("int4:x", ConfigError, "int4:x"),
        ("int4:7", ConfigError, "groups of 7"),
        ("int4:8", ConfigError, "groups of 8"),
        (8, ConfigError, "int"),
    ],
)
def test_a_format_that_is_none_is_refused(given: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as refused:
        WeightFormat.of(given)
    assert says in f"{refused.value} {refused.value.mend}"  # type: ignore[attr-defined]
    with pytest.raises(kind):
        mixed(given)


def test_frozen_weights_are_stored_and_trained_ones_are_not() -> None:
    d = mixed("int4:16")
    with d.stored() as stored:
        assert stored is not None
        bits = {name: tensor.bits for name, tensor in stored.tensors.items()}
    assert bits == {"embed.weight": 4, "twice.weight": 4, "conv.weight": 8, "turned.weight": 4}
    assert stored.tensors["embed.weight"].rel_err == pytest.approx(0.08, abs=0.03)
    assert stored.tensors["conv.weight"].rel_err < 0.01
    assert stored.float32_bytes == 4 * (WORDS * WIDTH + 5 * WIDTH * WIDTH)


def test_a_model_computes_with_what_is_stored_and_then_with_its_own_again() -> None:
    d = mixed("int8")
    before, tokens = d.model.backbone_digest(), d.batch["tokens"]
    users = {name: id(value) for name, value in d.model.named_parameters()}
    plain = d.model(tokens)
    with d.stored() as stored:
        assert stored is not None
        within = d.model(tokens)
        assert d.model.backbone.out.weight is d.model.backbone.embed.weight
        table = stored.originals["embed.weight"]
        read = quantize(table, 8).weight()
        assert torch.equal(d.model.backbone.embed.weight, read)
        # a layer whose weight is [in, out] has its scales along the outputs, too
        turned = quantize(stored.originals["turned.weight"].t(), 8).weight().t()
        assert torch.equal(d.model.backbone.turned.weight, turned)
    apart = (within - plain).detach().abs().max() / plain.detach().abs().max()
    assert 0 < float(apart) < 0.1
    assert d.model.backbone_digest() == before
    assert {name: id(value) for name, value in d.model.named_parameters()} == users
    assert torch.equal(d.model(tokens), plain)


def test_a_model_is_itself_again_after_an_error() -> None:
    d = mixed("int8")
    before = tensor_digest(d.model.frozen_tensors())
    with pytest.raises(ZeroDivisionError), d.stored():
        raise ZeroDivisionError
    assert tensor_digest(d.model.frozen_tensors()) == before


@pytest.mark.parametrize("weights", ["int8", "int4:16"])
def test_traced_programs_read_numbers_and_no_weight_besides(weights: str) -> None:
    d = mixed(weights)
    with d.stored():
        programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
        logits = d.model(d.batch["tokens"])[0, 3]
    for program in programs.values():
        nodes = list(program.graph.graph.nodes)
        constants = [getattr(program.graph, n.target) for n in nodes if n.op == "get_attr"]
        assert sum(n.target is DEQUANTIZE for n in nodes) == 4
        assert sum(c.dtype == torch.int8 for c in constants) == 4
        assert max(c.numel() for c in constants if c.dtype == torch.float32) < WIDTH * WIDTH
    predicted = programs["predict"].run({**d.inputs_of_predict(), **d.model.values()})
    ids = next(value for value in predicted.values() if value.dtype == torch.int64).flatten()
    assert torch.equal(ids, logits[d.task.specials :].topk(len(ids)).indices + d.task.specials)


def test_groups_that_do_not_divide_are_refused_by_the_name_of_the_weight() -> None:
    d = mixed("int4:24")
    with (
        pytest.raises(ConfigError, match=r"embed.weight: groups of 24 do not divide rows of 32") as refused,
        d.stored(),
    ):
        pass
    assert "int8" in refused.value.mend


def test_a_model_with_nothing_to_store_is_refused() -> None:
    d = replace(mixed(), weights="int8")
    small = personalize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [LoRA("0", rank=2)])
    assert d.weights == WeightFormat("int8")
    with (
        pytest.raises(ConfigError, match="no frozen weight of 1024 numbers"),
        weights_stored(small, WeightFormat("int8")),
    ):
        pass


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.data())
def test_packed_numbers_are_the_numbers(rows: int, groups: int, half: int, data: st.DataObject) -> None:
    columns = 2 * half * groups
    numbers = torch.from_numpy(data.draw(arrays(np.int8, (rows, columns), elements=st.integers(-8, 7))))
    scales = torch.arange(1.0, rows * groups + 1).reshape(rows, groups)
    packed = pack(numbers)
    assert packed.dtype == torch.int8
    assert packed.shape == (rows, columns // 2)
    assert torch.equal(DEQUANTIZE_PACKED(packed, scales), dequantize(numbers, scales))
    meta = DEQUANTIZE_PACKED(packed.to("meta"), scales.to("meta"))
    assert meta.shape == (rows, columns)
