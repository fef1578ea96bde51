"""Operators written in other operators compute the same, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from pfl_exporters.lowering.expand import convolution, expand, layer_norm, with_constant_weight
from pfl_mobile.programs.closed_forms import decompositions
from pfl_mobile.programs.simplify import annotate, simplify

aten = torch.ops.aten


@st.composite
def convolutions(draw):
    space = draw(st.integers(1, 3))

    def each(least, most):
        return draw(st.lists(st.integers(least, most), min_size=space, max_size=space))

    kernel, stride, padding, dilation, size = each(1, 4), each(1, 3), each(0, 2), each(1, 2), each(1, 7)
    transposed, groups, biased = draw(st.booleans()), draw(st.integers(1, 2)), draw(st.booleans())
    more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    more = more if transposed else [0] * space
    cin, cout = 2 * groups, 3 * groups
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = (cin, cout // groups) if transposed else (cout, cin // groups)
    x = torch.randn(2, cin, *size, generator=generator)
    weight = torch.randn(*shape, *kernel, generator=generator)
    bias = torch.randn(cout, generator=generator) if biased else None
    return x, weight, bias, stride, padding, dilation, transposed, more, groups


@given(convolutions())
@settings(deadline=None)
def test_a_convolution_by_products_is_a_convolution(arguments):
    x, weight, _, stride, padding, dilation, transposed, more, _ = arguments
    outs = []
    for d, (n, k) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        reach = dilation[d] * (k - 1)
        full = (n - 1) * stride[d] + reach + 1 + more[d] - 2 * padding[d]
        outs.append(full if transposed else (n + 2 * padding[d] - reach - 1) // stride[d] + 1)
    assume(all(n > 0 for n in outs))
    want = aten.convolution.default(*arguments)
    torch.testing.assert_close(convolution(*arguments), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_by_means(affine):
    x, weight, bias = torch.randn(3, 4, 5), torch.rand(4, 5), torch.rand(4, 5)
    given_ = (weight, bias) if affine else (None, None)
    for got, want in zip(
        layer_norm(x, [4, 5], *given_, 1e-5), torch.native_layer_norm(x, [4, 5], *given_, 1e-5), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_a_graph_computes_the_same_with_what_was_chosen_replaced():
    frozen = torch.randn(4, 3, 3)

    def function(x, w):
        mean = aten.native_layer_norm(x, [8], None, None, 1e-5)
        y = aten.convolution.default(mean[0] * mean[2], w, None, [1], [1], [1], False, [0], 1)
        return aten.convolution.default(x, frozen, None, [1], [1], [1], False, [0], 1) + y.relu()

    x, w = torch.randn(2, 3, 8), torch.randn(4, 3, 3)
    graph = make_fx(function, decomposition_table=decompositions())(x, w)
    simplify(graph, (x, w))
    want = graph(x, w)
    annotate(graph, (x, w))
    expand(
        graph,
        {
            aten.native_layer_norm.default: lambda node: layer_norm,
            aten.convolution.default: lambda node: None if with_constant_weight(node) else convolution,
        },
    )
    torch.testing.assert_close(graph(x, w), want)
    left = [n for n in graph.graph.nodes if n.target is aten.convolution.default]
    assert [n.args[1].op for n in left] == ["get_attr"]
    assert not any(n.target is aten.native_layer_norm.default for n in graph.graph.nodes)


def test_a_result_of_several_values_that_is_taken_whole_is_no_silent_mistake():
    x = torch.randn(3, 4)
    graph = make_fx(lambda x: aten.native_layer_norm(x, [4], None, None, 1e-5)[0])(x)
    annotate(graph, (x,))
    node = next(n for n in graph.graph.nodes if n.target is aten.native_layer_norm.default)
    node.replace_all_uses_with(node)
    with graph.graph.inserting_after(node):
        graph.graph.call_function(math.prod, (node,))
    with pytest.raises(TypeError, match="takes them all"):
        expand(graph, {aten.native_layer_norm.default: lambda node: layer_norm})
