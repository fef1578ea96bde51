"""The largest values of a program in parts of their rows: the same numbers in less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from pfl_exporters.export import export_bundle
from pfl_exporters.lowering import in_rows as module
from pfl_exporters.lowering.in_rows import in_rows
from pfl_exporters.lowering.stored import has_stored
from pfl_mobile import LoRA, NgramMemory, VocabularySlots
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.blocks import peak
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.programs.trace import TracedProgram, trace_function, trace_programs
from pfl_mobile.programs.weights import one_for_each_use, rows_first

WORDS, WIDTH, LENGTH = 1200, 64, 6


class Words(nn.Module):
    """A table of words that is the output layer too, as in most small language models."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.deeper = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(9)))
        self.head = nn.Linear(WIDTH, WORDS)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.deeper(self.layer(self.embed(tokens)))))
        return logits


def words(rows: int, *modules: ModuleConfig, tied: bool = True) -> Deployment:
    tokens = torch.arange(rows * LENGTH).reshape(rows, LENGTH)
    weight = torch.ones(rows, LENGTH)
    weight[0, 2:] = 0.0
    return Deployment(
        name="words",
        model=personalize(Words(tied), [LoRA("layer", rank=2), *modules]),
        task=TokenTask(WORDS),
        batch={"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": weight},
        predict_batch={"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])},
        plan=Plan(phases=(TrainPhase(steps=1, optimizer=Sgd(lr=0.1)),)),
    )


def traced(d: Deployment) -> dict[str, TracedProgram]:
    return trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())


def same_values(program: TracedProgram, other: TracedProgram) -> None:
    torch.manual_seed(3)
    inputs = {
        k: v if k in program.batch or not v.is_floating_point() else torch.randn(v.shape)
        for k, v in program.inputs.items()
    }
    got = other.run(inputs)
    for name, value in program.run(inputs).items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_BYTES", 100)
    monkeypatch.setattr(module, "MOST_BYTES", 4 * WORDS * LENGTH)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("program", ["gradients", "evaluate"])
def test_slots_and_memory_in_parts(program: str) -> None:
    """Logits with those of slots behind them, a mixture with a memory, loss and ranks."""
    slots = VocabularySlots(embedding="embed", output="head", count=3)
    plain = words(4)
    model = personalize(Words(), [LoRA("layer", rank=2), slots, NgramMemory(capacity=WORDS, order=3)])
    inputs = plain.inputs_of_predict()
    whole = trace_programs(model, TokenTask(WORDS + 3), plain.batch, inputs)[program]
    parts = in_rows(whole)
    values = [n.meta["val"] for n in parts.graph.graph.nodes if n.op == "call_function"]
    assert not [v for v in values if isinstance(v, Tensor) and v.shape[-1:] == (WORDS + 3,)]
    same_values(whole, parts)
    assert module._needs(parts) < peak(whole) / 2


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("of_each_use", [False, True])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_of_few_bits_are_unpacked_once(weights: str, of_each_use: bool) -> None:
    """Before the loop, also where each use had a reading of its own, and not in each part."""
    d = replace(words(16), weights=weights)
    with d.stored():
        whole = traced(d)["gradients"]
    if of_each_use:
        rows_first(whole.graph)
        one_for_each_use(whole.graph)
    parts = in_rows(whole)
    assert parts is not whole
    (step,) = (step for _, step in parts.graph.named_children() if isinstance(step, fx.GraphModule))
    assert not has_stored(step)
    (loop,) = (n for n in parts.graph.graph.nodes if n.target is torch.ops.higher_order.scan)
    tables = [n for n in loop.args[3] if n.meta["val"].numel() >= WORDS * WIDTH]
    assert len(tables) == 1
    same_values(whole, parts)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("program", ["gradients", "evaluate"])
def test_gradients_are_the_same(rows: int, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one example, whose rows are the positions."""
    monkeypatch.setattr(module, "MOST_BYTES", 4 * WORDS)
    whole = traced(words(rows))[program]
    parts = in_rows(whole)
    assert parts is not whole
    same_values(whole, parts)


@pytest.mark.usefixtures("small")
def test_what_is_summed_over_rows_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of factors in the output layer itself."""
    monkeypatch.setattr(module, "WORTH", 10.0)
    whole = traced(words(4, LoRA("head", rank=2), tied=False))["gradients"]
    regions = list(module._regions(module._begun_at_once(copied(whole.graph))))
    assert regions[-1].summed
    parts = in_rows(whole)
    assert parts is not whole
    same_values(whole, parts)


def function(of: Callable[[Tensor], Tensor]) -> TracedProgram:
    """The sum of something large that is made of [8, 1000] in several steps before."""

    def before(x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.tanh(x)
        return x

    return trace_function(
        "evaluate",
        lambda b, _: {"y": of((before(b["x"]).unsqueeze(-1) * torch.ones(50)).exp()).sum(-1).sum(-1)},
        {"x": torch.randn(8, 10)},
        {},
        ("x",),
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("of", "cut"),
    [
        (lambda x: (x * 2).sin(), True),
        (lambda x: x.softmax(-1).cos() + x, True),
        (lambda x: (x.reshape(80, 50).sin() * 2).cos().reshape(8, 10, 50), True),
        (lambda x: x.permute(1, 0, 2).sin().permute(1, 0, 2).cos(), True),
        (lambda x: torch.zeros(8, 10, 50).scatter_add(2, (x > 0).long(), x).cos() + x, True),
        (lambda x: x.max(-1, keepdim=True)[0] * x + x.sin(), True),
        (lambda x: (x - x.mean(0, keepdim=True)).sin().cumsum(1), False),
        (lambda x: x.reshape(-1).softmax(0).reshape(8, 10, 50).sin(), False),
        (lambda x: (x + x.sum().sin()).cos().flip(0), False),
    ],
)
def test_only_where_no_row_meets_another(
    of: Callable[[Tensor], Tensor], cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 500)
    whole = function(of)
    parts = in_rows(whole)
    assert (parts is not whole) is cut
    same_values(whole, parts)


def test_what_is_small_stays_whole() -> None:
    for program in traced(words(2)).values():
        assert in_rows(program) is program


@pytest.mark.usefixtures("small")
def test_a_program_that_is_large_all_through_stays_whole() -> None:
    """A smaller batch would do the same."""
    whole = trace_function(
        "evaluate", lambda b, _: {"y": b["x"].sin().cos().sum(-1)}, {"x": torch.randn(8, 10)}, {}, ("x",)
    )
    assert in_rows(whole) is whole


def test_engines_take_less_memory_and_no_larger_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export compares loss, gradients and hits with PyTorch."""
    d = words(16, NgramMemory(capacity=16, order=2))
    before = export_bundle(d, ["android", "onnx"], tmp_path / "whole").manifest.engines
    monkeypatch.setattr(module, "LEAST_BYTES", 100)
    monkeypatch.setattr(module, "MOST_BYTES", 4 * WORDS * LENGTH)
    after = export_bundle(d, ["android", "onnx"], tmp_path / "parts").manifest.engines
    few = export_bundle(replace(d, weights="int4"), ["android", "onnx"], tmp_path / "few").manifest.engines
    table = 4 * WORDS * WIDTH
    for name in ("gradients", "evaluate"):
        most, least, packed = (
            e["executorch"].measured[f"planned_{name}_bytes"] for e in (before, after, few)
        )
        assert least < 0.8 * most
        assert packed < least + 1.3 * table  # the table is unpacked as long as the loop runs
    for engine in ("executorch", "onnxruntime"):
        grown = after[engine].measured["model_bytes"] - before[engine].measured["model_bytes"]
        assert grown < table / 4, engine
        assert few[engine].measured["model_bytes"] < after[engine].measured["model_bytes"] / 2, engine
