"""Simplified graphs give the same numbers with less in them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from pfl_mobile.programs.simplify import FOLD_LIMIT, annotate, put_in_order, simplify

aten = torch.ops.aten
X = torch.arange(12, dtype=torch.float32).reshape(3, 4)


def simplified(function, *examples):
    graph = make_fx(function)(*examples)
    expected = graph(*examples)
    simplify(graph, examples)
    torch.testing.assert_close(graph(*examples), expected)
    Described(graph).run(*examples)
    return graph


class Described(fx.Interpreter):
    """Sees that what is noted of each value is so."""

    def run_node(self, n):
        result = super().run_node(n)
        if n.op != "output":
            values, notes = tree_leaves(result), tree_leaves(n.meta["val"])
            assert [(v.shape, v.dtype) for v in notes] == [(v.shape, v.dtype) for v in values], n
        return result


def test_a_graph_whose_trace_noted_its_values_is_not_run_again():
    graph = make_fx(lambda x: torch.topk(x @ x.t(), 2)[0].neg())(X)
    asked = next(n for n in graph.graph.nodes if n.target is aten.neg.default)
    asked.target = lambda _: pytest.fail("it was run")
    annotate(graph, [X])
    del asked.meta["val"]
    with pytest.raises(pytest.fail.Exception, match="it was run"):
        annotate(graph, [X])
    asked.target = torch.exp
    annotate(graph, [X])
    Described(graph).run(X)


def called(graph):
    return [n.target for n in graph.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clone().detach(),
        lambda x: x.reshape(3, 4).view(3, 4),
        lambda x: x.permute(0, 1),
        lambda x: x.t().t(),
        lambda x: x.transpose(0, 1).permute(1, 0),
        lambda x: x * 1,
        lambda x: x.expand(3, 4),
    ],
)
def test_what_changes_nothing_goes(function):
    assert [t for t in called(simplified(function, X)) if t not in (aten.permute.default,)] == []


def test_a_product_with_one_of_another_type_stays():
    whole = torch.arange(3)
    assert simplified(lambda x: x * 1.0, whole)(whole).dtype == torch.float32


def test_views_of_views_are_one():
    graph = simplified(lambda x: x.reshape(12).unsqueeze(0).reshape(2, 6) + 1, X)
    assert called(graph) == [aten.reshape.default, aten.add.Tensor]


def test_equal_parts_are_computed_once():
    graph = simplified(lambda x: torch.exp(x + 1) * torch.exp(x + 1), X)
    assert called(graph) == [aten.add.Tensor, aten.exp.default, aten.mul.Tensor]


def test_what_nobody_reads_goes():
    def function(x):
        torch.exp(x)
        return x + 1

    assert called(simplified(function, X)) == [aten.add.Tensor]


def test_products_with_a_transposed_weight_read_the_weight_itself():
    w, b = torch.randn(5, 4), torch.randn(5)
    assert called(simplified(lambda x, w: x @ w.t(), X, w)) == [aten.linear.default]
    assert called(simplified(lambda x, w, b: torch.addmm(b, x, w.t()), X, w, b)) == [aten.linear.default]


@pytest.mark.parametrize("shape", [(3, 5), (1,)])
def test_a_bias_that_is_not_one_value_for_each_output_makes_no_linear(shape):
    w, b = torch.randn(5, 4), torch.randn(shape)
    graph = simplified(lambda x, w, b: torch.addmm(b, x, w.t()), X, w, b)
    assert aten.addmm.default in called(graph)


def test_arithmetic_on_constants_is_done_at_once():
    table = torch.arange(4, dtype=torch.float32)
    graph = simplified(lambda x: x + (table * 2 + 1), X)
    assert called(graph) == [aten.add.Tensor]


def test_large_constants_are_not_stored_a_second_time():
    table = torch.zeros(FOLD_LIMIT + 1)
    x = torch.zeros(FOLD_LIMIT + 1)
    assert called(simplified(lambda x: x + table * 2, x)) == [aten.mul.Tensor, aten.add.Tensor]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12))
def test_nodes_are_put_before_their_readers_and_the_others_stay(seed: int, size: int) -> None:
    draw = random.Random(seed)
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(size):
        nodes.append(graph.call_function(torch.add, tuple(draw.choices(nodes, k=2))))
    graph.output(nodes[-1])
    module = fx.GraphModule({}, graph)
    before = list(module.graph.nodes)
    assert list(put_in_order(module).graph.nodes) == before  # nothing to do
    for node in draw.sample(before[1:-1], size // 2):
        draw.choice(before[:-1]).append(node)
    put_in_order(module).graph.lint()
    assert set(module.graph.nodes) == set(before)
    x = torch.tensor(1.0)
    assert module(x) == fx.Interpreter(module).run(x)


def test_nodes_in_a_circle_are_an_error() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    one = graph.call_function(torch.add, (x, x))
    other = graph.call_function(torch.add, (one, x))
    one.args = (x, other)
    with pytest.raises(RuntimeError, match="in a circle, add"):
        put_in_order(fx.GraphModule({}, graph))


def test_the_derivative_of_a_square_is_no_power():
    def gradient(x):
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad((x**2).sum(), x)
        return found

    graph = simplified(gradient, X)
    powers = [n.args[1] for n in graph.graph.nodes if n.target is aten.pow.Tensor_Scalar]
    assert 1 not in powers
    integers = simplified(lambda x: torch.pow(x, 1.0), torch.arange(3))
    assert integers(torch.arange(3)).dtype == torch.float32
