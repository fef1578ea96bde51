"""Max pooling of every kind: the largest of each window, and a gradient that goes where it was.

ExecuTorch's gradient of max pooling is wrong where windows overlap, and neither engine has the adaptive or the
three-dimensional kind. Here a window is a row of a constant table of cells; the gradient is added up by the cells'
numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.programs.forms.axes import each

_aten = torch.ops.aten


def _starts(size: int, kernel: int, step: int, pad: int, dilation: int, *, ceil: bool) -> list[list[int]]:
    """Cells of each window along an axis; those in the padding are left out."""
    span = dilation * (kernel - 1) + 1
    room = size + 2 * pad - span
    count = (math.ceil(room / step) if ceil else room // step) + 1
    if ceil and (count - 1) * step >= size + pad:
        count -= 1
    windows = []
    for number in range(count):
        cells = (number * step - pad + dilation * k for k in range(kernel))
        windows.append([c for c in cells if 0 <= c < size])
    return windows


def _adaptive_windows(size: int, count: int) -> list[list[int]]:
    return [list(range(n * size // count, -(-(n + 1) * size // count))) for n in range(count)]


def _table(sizes: Sequence[int], windows: Sequence[list[list[int]]]) -> Tensor:
    """Numbers of the cells of each window [windows, cells]; short windows repeat their last cell."""
    rows = []
    for parts in itertools.product(*windows):
        cells = []
        for place in itertools.product(*parts):
            number = 0
            for size, cell in zip(sizes, place, strict=True):
                number = number * size + cell
            cells.append(number)
        rows.append(cells)
    longest = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])


def _pooled(x: Tensor, windows: Sequence[list[list[int]]]) -> tuple[Tensor, Tensor]:
    dims = len(windows)
    sizes, lead = list(x.shape[-dims:]), list(x.shape[:-dims])
    table = _table(sizes, windows)
    flat = x.reshape(*lead, math.prod(sizes))
    cells = torch.index_select(flat, -1, table.reshape(-1)).reshape(*lead, *table.shape)
    best, where = torch.max(cells, -1)
    numbers = torch.gather(table.expand(*lead, *table.shape), -1, where.unsqueeze(-1)).squeeze(-1)
    out = [*lead, *(len(w) for w in windows)]
    return best.reshape(out), numbers.reshape(out)


def _max_pool(dims: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def form(
        x: Tensor,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        kernels = each(kernel, dims)
        steps = each(stride, dims) if stride not in (None, [], ()) else kernels
        options = zip(x.shape[-dims:], kernels, steps, each(padding, dims), each(dilation, dims), strict=True)
        return _pooled(x, [_starts(*o, ceil=ceil_mode) for o in options])

    return form


def _adaptive_max_pool(dims: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def form(x: Tensor, size: Any) -> tuple[Tensor, Tensor]:
        return _pooled(
            x, [_adaptive_windows(n, m) for n, m in zip(x.shape[-dims:], each(size, dims), strict=True)]
        )

    return form


def _backward(dims: int, place: int) -> Callable[..., Tensor]:
    """Of a pooling over so many axes whose indices are the argument at ``place``."""

    def form(grad: Tensor, x: Tensor, *options: Any) -> Tensor:
        indices: Tensor = options[place]
        lead, cells = list(x.shape[:-dims]), math.prod(x.shape[-dims:])
        zeros = torch.zeros([*lead, cells], dtype=grad.dtype)
        flat = torch.scatter_add(zeros, -1, indices.reshape(*lead, -1), grad.reshape(*lead, -1))
        return flat.reshape(x.shape)

    return form


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.max_pool2d_with_indices.default: _max_pool(2),
    _aten.max_pool3d_with_indices.default: _max_pool(3),
    _aten.max_pool2d_with_indices_backward.default: _backward(2, 5),
    _aten.max_pool3d_with_indices_backward.default: _backward(3, 5),
    _aten.adaptive_max_pool2d.default: _adaptive_max_pool(2),
    _aten.adaptive_max_pool3d.default: _adaptive_max_pool(3),
    _aten.adaptive_max_pool2d_backward.default: _backward(2, 0),
    _aten.adaptive_max_pool3d_backward.default: _backward(3, 0),
}
