"""Linear maps of fixed sizes that treat each axis alone: average pooling, resizing, padding with the border.

Each is a product with one constant matrix for each axis, and its gradient the product with the transposed ones. The
matrix is what PyTorch's own operator makes of the unit vectors along that axis, so that all options (padding, which
cells count, how corners are aligned) are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.programs.forms.constants import outside_traces

_aten = torch.ops.aten


def along(x: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """The product with a matrix [new, old] along one axis."""
    last = x.dim() - 1
    if dim == last:
        return torch.matmul(x, matrix.to(x.dtype).t())
    return torch.matmul(x.transpose(dim, last), matrix.to(x.dtype).t()).transpose(dim, last)


def _apply(x: Tensor, matrices: Sequence[Tensor | None], *, back: bool = False) -> Tensor:
    """Multiply the last axes; those that a map leaves as they are have no matrix."""
    first = x.dim() - len(matrices)
    for place, matrix in enumerate(matrices):
        if matrix is not None:
            x = along(x, first + place, matrix.t() if back else matrix)
    return x


def _of_units(size: int, dims: int, place: int, operator: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The matrix [new, old] of an operator along one of ``dims`` axes; the others have one cell."""
    shape = [1] * dims
    shape[place] = size
    with outside_traces():
        units = torch.eye(size).reshape(size, 1, *shape)
        made = operator(units).reshape(size, -1).t().contiguous()
        return None if made.shape == (size, size) and torch.equal(made, torch.eye(size)) else made


def _called(operator: Any, option: list[int], units: Tensor) -> Tensor:
    made: Tensor = operator(units, option)
    return made


def each(value: Any, dims: int) -> list[Any]:
    """An option for each axis, where one may stand for all."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    return found * dims if len(found) == 1 else found


# -- average pooling


def _pooled(
    sizes: Sequence[int],
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil: bool,
    inside: bool,
    divisor: int | None,
) -> list[Tensor | None]:
    dims = len(sizes)
    kernels, pads = each(kernel, dims), each(padding, dims)
    steps = each(stride, dims) if stride not in (None, [], ()) else kernels
    made = []
    for place, size in enumerate(sizes):
        options = [1] * dims, [1] * dims, [0] * dims
        for option, values in zip(options, (kernels, steps, pads), strict=True):
            option[place] = values[place]

        def pool(units: Tensor, options: Any = options) -> Tensor:
            call = _aten.avg_pool2d.default if dims == 2 else _aten.avg_pool3d.default
            return call(units, *options, ceil, inside, None if divisor is None else 1)

        made.append(_of_units(size, dims, place, pool))
    return made


def _avg_pool(dims: int) -> Callable[..., Tensor]:
    def form(
        x: Tensor,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        sizes = x.shape[-dims:]
        out = _apply(
            x, _pooled(sizes, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        )
        return out if divisor_override is None else out / divisor_override

    return form


def _avg_pool_backward(dims: int) -> Callable[..., Tensor]:
    def form(
        grad: Tensor,
        x: Tensor,
        kernel: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:
        sizes = x.shape[-dims:]
        maps = _pooled(sizes, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        out = _apply(grad, maps, back=True)
        return out if divisor_override is None else out / divisor_override

    return form


def _adaptive(sizes: Sequence[int], wanted: Sequence[int]) -> list[Tensor | None]:
    made = []
    for place, (size, new) in enumerate(zip(sizes, wanted, strict=True)):
        goal = [1] * len(sizes)
        goal[place] = new
        call = _aten._adaptive_avg_pool2d.default if len(sizes) == 2 else _aten._adaptive_avg_pool3d.default
        made.append(_of_units(size, len(sizes), place, partial(_called, call, goal)))
    return made


def _adaptive_avg_pool(dims: int) -> Callable[..., Tensor]:
    return lambda x, size: _apply(x, _adaptive(x.shape[-dims:], size))


def _adaptive_avg_pool_backward(dims: int) -> Callable[..., Tensor]:
    return lambda grad, x: _apply(grad, _adaptive(x.shape[-dims:], grad.shape[-dims:]), back=True)


# -- resizing


def _resized(
    operator: Any,
    sizes: Sequence[int],
    wanted: Sequence[int],
    corners: tuple[bool, ...],
    scales: Sequence[Any],
) -> list[Tensor | None]:
    made = []
    for place, (size, new) in enumerate(zip(sizes, wanted, strict=True)):
        goal: list[int] = [1] * len(sizes)
        given: list[Any] = [None] * len(sizes)
        goal[place], given[place] = new, scales[place]

        def resize(units: Tensor, goal: Any = goal, given: Any = given) -> Tensor:
            result: Tensor = operator(units, goal, *corners, *given)
            return result

        made.append(_of_units(size, len(sizes), place, resize))
    return made


def _resize(operator: Any, dims: int, *, aligned: bool) -> Callable[..., Tensor]:
    def form(x: Tensor, size: Sequence[int], *options: Any) -> Tensor:
        corners, scales = _corners_and_scales(options, dims, aligned=aligned)
        return _apply(x, _resized(operator, x.shape[-dims:], size, corners, scales))

    return form


def _resize_backward(operator: Any, dims: int, *, aligned: bool) -> Callable[..., Tensor]:
    def form(grad: Tensor, size: Sequence[int], input_size: Sequence[int], *options: Any) -> Tensor:
        corners, scales = _corners_and_scales(options, dims, aligned=aligned)
        return _apply(grad, _resized(operator, input_size[-dims:], size, corners, scales), back=True)

    return form


def _corners_and_scales(
    options: Sequence[Any], dims: int, *, aligned: bool
) -> tuple[tuple[bool, ...], list[Any]]:
    corners = (bool(options[0]),) if aligned else ()
    scales = list(options[len(corners) :])
    return corners, scales + [None] * (dims - len(scales))


# -- padding with the border


def _bordered(sizes: Sequence[int], pad: Sequence[int]) -> list[Tensor | None]:
    call = {1: _aten.replication_pad1d, 2: _aten.replication_pad2d, 3: _aten.replication_pad3d}[len(sizes)]
    made = []
    for place, size in enumerate(sizes):
        own = [0] * (2 * len(sizes))
        own[-2 * place - 2 : len(own) - 2 * place] = pad[len(pad) - 2 * place - 2 : len(pad) - 2 * place]
        made.append(_of_units(size, len(sizes), place, partial(_called, call.default, own)))
    return made


def _replication_pad(dims: int) -> Callable[..., Tensor]:
    return lambda x, pad: _apply(x, _bordered(x.shape[-dims:], pad))


def _replication_pad_backward(dims: int) -> Callable[..., Tensor]:
    return lambda grad, x, pad: _apply(grad, _bordered(x.shape[-dims:], pad), back=True)


@lru_cache(1)
def _table() -> dict[Any, Callable[..., Tensor]]:
    table: dict[Any, Callable[..., Tensor]] = {}
    for dims in (2, 3):
        table[getattr(_aten, f"avg_pool{dims}d").default] = _avg_pool(dims)
        table[getattr(_aten, f"avg_pool{dims}d_backward").default] = _avg_pool_backward(dims)
        table[getattr(_aten, f"_adaptive_avg_pool{dims}d").default] = _adaptive_avg_pool(dims)
        table[getattr(_aten, f"_adaptive_avg_pool{dims}d_backward").default] = _adaptive_avg_pool_backward(
            dims
        )
    for dims in (1, 2, 3):
        table[getattr(_aten, f"replication_pad{dims}d").default] = _replication_pad(dims)
        table[getattr(_aten, f"replication_pad{dims}d_backward").default] = _replication_pad_backward(dims)
    for name, dims, aligned in (
        ("upsample_nearest1d", 1, False),
        ("upsample_nearest2d", 2, False),
        ("upsample_nearest3d", 3, False),
        ("_upsample_nearest_exact1d", 1, False),
        ("_upsample_nearest_exact2d", 2, False),
        ("_upsample_nearest_exact3d", 3, False),
        ("upsample_linear1d", 1, True),
        ("upsample_bilinear2d", 2, True),
        ("upsample_bicubic2d", 2, True),
        ("upsample_trilinear3d", 3, True),
        ("_upsample_bilinear2d_aa", 2, True),
        ("_upsample_bicubic2d_aa", 2, True),
    ):
        operator = getattr(_aten, name).default
        table[operator] = _resize(operator, dims, aligned=aligned)
        table[getattr(_aten, f"{name}_backward").default] = _resize_backward(operator, dims, aligned=aligned)
    return table


DECOMPOSITIONS = _table()
