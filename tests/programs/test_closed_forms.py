"""The forms that programs are traced with equal PyTorch's functions, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_mobile.programs.closed_forms import ClosedForms, decompositions
from pfl_mobile.programs.trace import trace_function


def both(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Same value and same gradients with and without the closed forms."""
    results = []
    for forms in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        if forms:
            with ClosedForms():
                out = function(*leaves)
        else:
            out = function(*leaves)
        weight = torch.linspace(-1.0, 1.0, out.numel()).reshape(out.shape)
        results.append((out, torch.autograd.grad((out * weight).sum(), leaves)))
    (want, want_grads), (got, got_grads) = results
    # float32 loses what cancels, so errors are measured against the largest entry of what goes in
    size = max(float(x.abs().max()) for x in inputs)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6 + 1e-6 * size)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6 + 1e-6 * size)


@given(st.floats(-60, 60), st.floats(0.01, 50), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_cross_entropy_at_any_scale_and_offset(offset: float, scale: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = offset + scale * torch.randn(5, 11, generator=g)
    labels = torch.randint(0, 11, (5,), generator=g)
    both(lambda x: F.cross_entropy(x, labels, reduction="none"), logits)


def test_cross_entropy_of_an_impossible_class_is_finite_and_exact() -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0]])
    with ClosedForms():
        assert F.cross_entropy(logits, torch.tensor([1]), reduction="none").item() == 600.0


def test_cross_entropy_keeps_ignore_index_and_falls_back_for_other_options() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([1, -100, 2, 0])
    both(lambda x: F.cross_entropy(x, labels, reduction="none"), logits)
    both(lambda x: F.cross_entropy(x, labels.clamp(min=0), reduction="none", label_smoothing=0.1), logits)
    both(lambda x: F.cross_entropy(x, labels).reshape(1), logits)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_gelu_derivative_has_no_hole_at_zero(values: list[float]) -> None:
    both(F.gelu, torch.tensor([0.0, 1e-20, -1e-12, 1e-6, *values]))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    both(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, is_causal=causal), q, k, v)


def test_attention_with_masks_and_groups() -> None:
    q, k, v = torch.randn(1, 4, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    both(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, enable_gqa=True), q, k, v)
    allowed = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    keys, values = torch.randn(1, 4, 3, 4), torch.randn(1, 4, 3, 4)
    both(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, attn_mask=allowed), q, keys, values)
    bias = torch.randn(3, 3)
    both(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, attn_mask=bias, scale=0.3), q, keys, values)


def test_frozen_batch_norm() -> None:
    layer = torch.nn.BatchNorm2d(3).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(layer.weight)
    both(layer, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_poolings(pool: Callable[..., Tensor], size: int) -> None:
    x = torch.randn(2, 3, size, size)
    both(lambda a: pool(a, 2), x)
    both(lambda a: pool(a, 2, stride=1), x)


def test_rms_norm() -> None:
    both(lambda x, w: F.rms_norm(x, (6,), w, 1e-5), torch.randn(2, 6), torch.randn(6))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (2, 2, 2, 1), (3, 1, 1, 2), (1, 1, 1, 4)],
)
def test_convolution_backward(stride: int, padding: int, dilation: int, groups: int) -> None:
    x = torch.randn(2, 4, 9, 8)
    weight = torch.randn(8, 4 // groups, 3, 3)
    out = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    grad = torch.randn(out.shape)
    args = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups, [True, True, True])
    want = torch.ops.aten.convolution_backward.default(grad, x, weight, [8], *args)
    got = decompositions()[torch.ops.aten.convolution_backward.default](grad, x, weight, [8], *args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_embedding_backward_adds_repeated_rows_and_skips_padding() -> None:
    grad, rows = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [2, 1, 0]])
    args = (grad, rows, 5, 0, False)
    want = torch.ops.aten.embedding_dense_backward.default(*args)
    got = decompositions()[torch.ops.aten.embedding_dense_backward.default](*args)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("pad", [(-1, 0), (0, -2), (-1, 2, 3, -1), (-1, -1, 0, 0, -1, 1)])
def test_negative_padding_is_cut_off(pad: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, 5)
    want = torch.ops.aten.constant_pad_nd.default(x, pad, 0.5)
    got = decompositions()[torch.ops.aten.constant_pad_nd.default](x, list(pad), 0.5)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_memory_that_nobody_wrote_is_zero() -> None:
    """Else it would be a constant of the program that is another one at each export."""
    x = torch.ones(3)
    for make in (lambda: torch.empty_like(x), lambda: torch.empty(3), lambda: x.new_empty(3)):
        made = trace_function(
            "f", lambda batch, _, make=make: {"y": batch["x"] + make()}, {"x": x}, {}, ("x",)
        )
        assert torch.equal(made.run({"x": x})["y"], x)
        assert not any("empty" in str(node.target) for node in made.graph.graph.nodes)
