"""Convolutions and their gradients as convolutions over at most two axes.

Engines differ in which gradients of convolutions they have, and ExecuTorch has none over three axes, not even
forward; but all convolve over two, plain and transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.programs.forms.axes import along

_aten = torch.ops.aten


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Over three axes: the sum, over the kernel's places along the first of them, of convolutions over two."""
    if weight.dim() != 5:
        return NotImplemented
    (step, *steps), (pad, *pads), (spread, *spreads) = (list(v) for v in (stride, padding, dilation))
    more = list(output_padding)
    batch, _, depth = x.shape[:3]
    size = weight.shape[2]
    if transposed:
        new = (depth - 1) * step - 2 * pad + spread * (size - 1) + 1 + more[0]
    else:
        new = (depth + 2 * pad - spread * (size - 1) - 1) // step + 1
    out = None
    for place in range(size):
        # which plane of the input each plane of the output sees through this place of the kernel
        pairs = [(n, n * step - pad + place * spread) for n in range(depth if transposed else new)]
        pairs = [(b, a) if transposed else (a, b) for a, b in pairs]
        ones = {(a, b) for a, b in pairs if 0 <= a < new and 0 <= b < depth}
        if not ones:
            continue
        seen = torch.tensor([[float((a, b) in ones) for b in range(depth)] for a in range(new)])
        planes = x if transposed else along(x, 2, seen)
        flat = planes.transpose(1, 2).reshape(-1, x.shape[1], *x.shape[3:])
        part = _aten.convolution.default(
            flat, weight[:, :, place], None, steps, pads, spreads, transposed, more[1:], groups
        )
        part = part.reshape(batch, -1, *part.shape[1:]).transpose(1, 2)
        part = along(part, 2, seen) if transposed else part
        out = part if out is None else out + part
    if out is None:
        raise ValueError("a convolution whose kernel only ever sees its padding")
    return out if bias is None else out + bias.reshape(-1, 1, 1, 1)


def _weight_gradient(
    x: Tensor,
    grad: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Of the weight that leads from ``x`` to an output with this gradient: ``x`` convolved with it."""
    dims = len(size)
    zeros = [0] * dims
    parts = []
    cin, cout = x.shape[1] // groups, grad.shape[1] // groups
    for g in range(groups):
        xg = x.narrow(1, g * cin, cin).transpose(0, 1)
        gg = grad.narrow(1, g * cout, cout).transpose(0, 1)
        # strides and dilations change places when the output's gradient is the kernel
        full = _aten.convolution.default(xg, gg, None, dilation, padding, stride, False, zeros, 1)
        for d in range(dims):
            full = full.narrow(2 + d, 0, size[d])
        parts.append(full.transpose(0, 1))
    return parts[0] if groups == 1 else torch.cat(parts, 0)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,  # noqa: ARG001
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],  # noqa: ARG001
    groups: int,
    output_mask: list[bool],
) -> Any:
    """Convolution's gradients as convolutions: the input's by the other kind, the weight's by the input."""
    size = weight.shape[2:]
    dims = len(size)
    zeros = [0] * dims
    out: list[Tensor | None] = [None, None, None]
    if output_mask[0] and transposed:
        back = _aten.convolution.default(grad, weight, None, stride, padding, dilation, False, zeros, groups)
        for d in range(dims):  # padding of the output may be as wide as a step
            back = back.narrow(2 + d, 0, x.shape[2 + d])
        out[0] = back
    elif output_mask[0]:
        rest = [
            x.shape[2 + d]
            - ((grad.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (size[d] - 1) + 1)
            for d in range(dims)
        ]
        out[0] = _aten.convolution.default(grad, weight, None, stride, padding, dilation, True, rest, groups)
    if output_mask[1]:
        # a transposed convolution is the plain one from its output to its input
        source, result = (grad, x) if transposed else (x, grad)
        out[1] = _weight_gradient(source, result, size, stride, padding, dilation, groups)
    if output_mask[2]:
        out[2] = grad.sum([0, *range(2, 2 + dims)])
    return tuple(out)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
}
