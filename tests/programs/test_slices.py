"""The loss over a vocabulary in slices is the loss, and so is its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import LoRA
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs import slices
from pfl_mobile.programs.blocks import Recompute, peak, prepare, stage
from pfl_mobile.programs.simplify import shape
from pfl_mobile.programs.slices import in_slices
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from pfl_mobile.programs.weights import DEQUANTIZE, WeightFormat, weights_stored

LENGTH, WIDTH = 5, 64


class Words(nn.Module):
    def __init__(self, words: int, bias: bool, cap: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = nn.Embedding(words, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, words, bias=bias)
        self.cap = cap

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(torch.tanh(self.layer(self.embed(tokens))))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def traced(
    words: int, bias: bool = False, cap: float | None = None, scale: float = 1.0, gradients: bool = True
) -> TracedProgram:
    model = Words(words, bias, cap)
    with torch.no_grad():
        model.head.weight.mul_(scale)
    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH) % words
    weight = torch.tensor([[1.0, 0.5, 0.0, 2.0, 1.0]] * 2)
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": weight}
    little = {"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])}
    task = TokenTask(words, specials=4)
    found = trace_programs(personalize(model, [LoRA("layer", rank=2)]), task, batch, little)
    return found["gradients" if gradients else "evaluate"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "LEAST_BYTES", 100)
    monkeypatch.setattr(slices, "MOST_BYTES", 4 * 10 * 32)


def values(program: TracedProgram) -> Mapping[str, Tensor]:
    torch.manual_seed(3)
    return {k: v if k in program.batch else torch.randn(v.shape) for k, v in program.inputs.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("words", [96, 100, 161])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_loss_in_slices_is_the_loss(words: int, bias: bool, scale: float) -> None:
    """Also where a vocabulary cannot be divided evenly, and with logits whose exponentials no float holds."""
    program = traced(words, bias, scale=scale)
    sliced = in_slices(program)
    assert sliced is not program
    wide = [n for n in sliced.graph.graph.nodes if n.op == "call_function" and shape(n)[-1:] == (words,)]
    assert not wide
    inputs = values(program)
    want, got = program.run(inputs), sliced.run(inputs)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("words", [96, 161])
def test_hits_are_counted_in_slices(words: int, bias: bool) -> None:
    """Whose words are better than the label's is the same, ties and labels that are never suggested included."""
    program = traced(words, bias, gradients=False)
    sliced = in_slices(program)
    wide = [n for n in sliced.graph.graph.nodes if n.op == "call_function" and shape(n)[-1:] == (words,)]
    assert not wide
    inputs = dict(values(program))
    for labels in (
        inputs["labels"],
        inputs["labels"] * 0 + 4,
        inputs["labels"] * 0,
        inputs["labels"] * 0 + words - 1,
    ):
        given = inputs | {"labels": labels}
        want, got = program.run(given), sliced.run(given)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_the_best_word_of_each_row_is_a_hit() -> None:
    program = traced(96, gradients=False)
    inputs = dict(values(program))
    logits = next(
        n
        for n in program.graph.graph.nodes
        if n.target is torch.ops.aten.linear.default and shape(n)[-1] == 96
    )
    seen: dict[str, Tensor] = {}

    class Noting(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Noting(program.graph).run(*(inputs[name] for name in program.inputs))
    scores = seen[logits.name].clone()
    scores[:, :4] = -1e9
    order = scores.argsort(-1, descending=True)
    for place, hits in ((0, (1.0, 1.0)), (2, (0.0, 1.0)), (3, (0.0, 0.0))):
        found = in_slices(program).run(inputs | {"labels": order[:, place].reshape(2, LENGTH)})
        total = float(found["weight_sum"])
        assert (float(found["top1_sum"]) / total, float(found["top3_sum"]) / total) == hits


def test_the_slices_are_blocks_and_take_less() -> None:
    program = traced(320)
    staged = stage(prepare({"gradients": program}))
    assert 10 in staged.repeats["gradients"]
    assert max(map(peak, staged.parts.values())) < peak(program) / 3


def test_rows_whose_label_is_left_out_count_nothing() -> None:
    program = traced(96)
    inputs = dict(values(program))
    inputs["labels"] = inputs["labels"].clone()
    inputs["labels"][0, 1] = -100
    for name, value in program.run(inputs).items():
        torch.testing.assert_close(in_slices(program).run(inputs)[name], value, rtol=1e-4, atol=1e-5)


def test_logits_that_something_else_reads_stay_whole() -> None:
    program = traced(96, cap=30.0)
    assert in_slices(program) is program


def test_a_small_vocabulary_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    program = traced(96)
    monkeypatch.setattr(slices, "LEAST_BYTES", 4 * 10 * 96 + 1)
    assert in_slices(program) is program


def test_slices_of_a_tied_table_of_few_bits_lie_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed numbers are stored once, for looking up tokens and for the slices of the loss."""
    monkeypatch.setattr("pfl_mobile.programs.blocks.LARGE_BYTES", 0)
    model = Words(320, bias=False)
    model.head.weight = model.embed.weight
    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH)
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(2, LENGTH)}
    little = {"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])}
    found = personalize(model, [LoRA("layer", rank=2)])
    with weights_stored(found, WeightFormat("int4")):
        programs = trace_programs(found, TokenTask(320, specials=4), batch, little)
        staged = stage(prepare(programs), Recompute.ALL)
    schedule, pieces = staged.schedule()
    assert 10 in staged.repeats["gradients"]
    table = 320 * WIDTH // 2 + 320 * WIDTH // 32 * 4
    rest = WIDTH * WIDTH // 2 + WIDTH * WIDTH // 32 * 4 + 3000  # the other layer, and what is small
    assert sum(map(len, pieces)) < table + rest
    assert sum(map(schedule.constant_bytes, schedule.constants)) > 2 * table


@pytest.mark.parametrize("bias", [False, True])
def test_an_output_layer_of_few_bits_is_read_slice_by_slice(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one row is asked for, whose logits are few: its weight as float32 is what would be large."""
    words = 330  # not to be divided evenly
    monkeypatch.setattr(slices, "LARGE_LAYER_BYTES", 4 * words * WIDTH)
    monkeypatch.setattr(slices, "MOST_WEIGHT_BYTES", 4 * 32 * WIDTH)
    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH)
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(2, LENGTH)}
    little = {"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])}
    found = personalize(Words(words, bias), [LoRA("layer", rank=2)])
    with weights_stored(found, WeightFormat("int4")):
        program = trace_programs(found, TokenTask(words, specials=4), batch, little)["predict"]
    sliced = in_slices(program)
    read = {
        shape(n)[0]
        for n in sliced.graph.graph.nodes
        if n.target is DEQUANTIZE and any(u.target is torch.ops.aten.linear.default for u in n.users)
    }
    assert words not in read
    assert max(map(peak, stage(prepare({"predict": program})).parts.values())) < 4 * words * WIDTH / 2
    inputs = values(program)
    for name, value in program.run(inputs).items():
        torch.testing.assert_close(sliced.run(inputs)[name], value, rtol=1e-5, atol=1e-6)
