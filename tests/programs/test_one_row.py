"""predict computes the position that is asked for, and gives what it gave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pfl_mobile.programs.made_up import text_context
from pfl_mobile.programs.one_row import pick_early
from pfl_mobile.programs.simplify import shape, simplify
from pfl_mobile.programs.trace import TracedProgram, predict, trace_programs
from tests import tiny

T, WIDTH, VOCABULARY = 6, 4, 9


@pytest.fixture(scope="module")
def traced() -> TracedProgram:
    d = tiny.deployment()
    return trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())["predict"]


def test_no_more_than_one_row_meets_the_vocabulary(traced: TracedProgram) -> None:
    """The output layer and the memory, which take most of the time, are of one position."""
    vocabulary = tiny.deployment().task.vocabulary  # type: ignore[attr-defined]
    wide = [
        n
        for n in traced.graph.graph.nodes
        if isinstance(n.meta.get("val"), Tensor) and n.op == "call_function"
    ]
    wide = [n for n in wide if shape(n)[-1:] == (vocabulary,)]
    assert len(wide) > 5
    assert {shape(n)[:-1] for n in wide} <= {(1, 1), (1,), ()}


@pytest.mark.parametrize("position", [0, 3, 7])
def test_each_position_gives_what_the_model_gives(traced: TracedProgram, position: int) -> None:
    d = tiny.deployment()
    values = {k: v + 0.05 if v.dtype == torch.float32 else v for k, v in d.model.values().items()}
    batch = {**text_context(8, 23), "position": torch.tensor([position])}
    got = traced.run({**batch, **{k: v for k, v in values.items() if k in traced.inputs}})
    want = predict(d.model, d.task, batch, values)
    assert torch.equal(got["top_ids"], want["top_ids"])
    torch.testing.assert_close(got["top_probs"], want["top_probs"])


class Rows(nn.Module):
    """Picks a row of what ``within`` makes of [1, T, WIDTH]."""

    def __init__(self, within: nn.Module) -> None:
        super().__init__()
        self.within = within

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        y = self.within(x)
        return torch.gather(y, 1, position.reshape(-1, 1, 1).expand(1, 1, y.shape[2])).squeeze(1)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


CASES = {
    "linear": nn.Linear(WIDTH, VOCABULARY),
    "norm": nn.Sequential(nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.Tanh()),
    "softmax over words": Of(lambda x: torch.softmax(x, -1) + x.mean(-1, keepdim=True)),
    "softmax over positions": Of(lambda x: 2 * torch.softmax(x, 1)),
    "a sum over positions": Of(lambda x: x - x.sum(1, keepdim=True)),
    "a product of positions": Of(lambda x: torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)),
    "turned and back": Of(lambda x: (x.transpose(1, 2) * 2).transpose(1, 2).flip(-1)),
    "heads": Of(lambda x: x.reshape(1, T, 2, 2).permute(0, 2, 1, 3).reshape(1, 2, T * 2).reshape(1, T, 4)),
    "shifted": Of(lambda x: torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :T] + x),
    "joined": Of(lambda x: torch.cat([x[:, :, 1:], torch.select(x, 2, 0).unsqueeze(-1)], -1)),
    "cumulated": Of(lambda x: torch.cumsum(x, 1) * x),
    "used twice": Of(lambda x: torch.relu(x) + torch.relu(x).sum()),
    "scattered": Of(
        lambda x: torch.zeros(1, T, 5).scatter_add(-1, (x > 0).long().cumsum(-1).clamp(max=4), torch.exp(x))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_the_row_whatever_is_in_between(name: str) -> None:
    model = Rows(CASES[name]).eval()
    torch.manual_seed(0)
    examples = [torch.randn(1, T, WIDTH), torch.tensor([2])]
    with torch.no_grad():
        graph = make_fx(model, tracing_mode="real")(*examples)
    simplify(graph, examples)
    if pick_early(graph):
        simplify(graph, examples)
    for position in range(T):
        given = (torch.randn(1, T, WIDTH), torch.tensor([position]))
        with torch.no_grad():
            torch.testing.assert_close(graph(*given), model(*given))


def test_a_pick_of_what_mixes_all_positions_stays() -> None:
    model = Rows(CASES["softmax over positions"])
    examples = [torch.randn(1, T, WIDTH), torch.tensor([2])]
    graph = make_fx(model, tracing_mode="real")(*examples)
    simplify(graph, examples)
    pick_early(graph)
    simplify(graph, examples)
    assert any(
        shape(n) == (1, T, WIDTH) and "softmax" in str(n.target)
        for n in graph.graph.nodes
        if n.op == "call_function"
    )
