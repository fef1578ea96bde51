"""Writing to parts of tensors, reading them by strides, and reductions into places that an index names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.programs.forms.constants import outside_traces
from pfl_mobile.programs.forms.orders import product

_aten = torch.ops.aten


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001
    """What a tensor holds after it was overwritten."""
    return source.to(x.dtype).expand(x.shape).clone(memory_format=torch.contiguous_format)


def _in_order(operator: Any) -> Callable[..., Tensor]:
    """How elements lie in memory is no matter of a graph of values, and engines expect rows one after another."""

    def form(x: Tensor, *, memory_format: torch.memory_format | None = None, **options: Any) -> Tensor:
        if memory_format in (None, torch.contiguous_format, torch.preserve_format):
            return NotImplemented
        made: Tensor = operator(x, memory_format=torch.contiguous_format, **options)
        return made

    return form


def _new_empty_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], **options: Any) -> Tensor:  # noqa: ARG001
    """Zeros, as what is not written yet may be anything; strides are no matter of a graph of values."""
    return torch.zeros(size, dtype=options.get("dtype") or x.dtype)


def _stored(x: Tensor) -> tuple[list[int], list[int]] | None:
    """Order of the axes in memory and its inverse; None where memory has gaps, or cells that are several elements."""
    order = sorted(range(x.dim()), key=lambda d: (-x.stride(d), d))
    expected = 1
    for d in reversed(order):
        if x.shape[d] != 1 and x.stride(d) != expected:
            return None
        expected *= x.shape[d]
    return order, sorted(range(x.dim()), key=order.__getitem__)


def _places(size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    with outside_traces():
        places = torch.tensor(offset)
        for length, step in zip(size, stride, strict=True):
            places = places.unsqueeze(-1) + torch.arange(length) * step
        return places.reshape(-1)


def _overlap(places: Tensor) -> bool:
    with outside_traces():
        return len(set(places.tolist())) != len(places)


def _within(places: Tensor, x: Tensor) -> bool:
    with outside_traces():
        return not len(places) or (int(places.min()) >= 0 and int(places.max()) < x.numel())


def _as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Tensor:
    """The elements by their places in memory."""
    stored = _stored(x)
    places = _places(size, stride, 0 if offset is None else offset - x.storage_offset())
    if stored is None or not _within(places, x):
        return NotImplemented
    flat = x.permute(stored[0]).reshape(-1)
    return torch.index_select(flat, 0, places).reshape(list(size))


def _as_strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Tensor:
    stored = _stored(x)
    places = _places(size, stride, 0 if offset is None else offset - x.storage_offset())
    if stored is None or not _within(places, x) or _overlap(places):
        return NotImplemented
    order, back = stored
    flat = x.permute(order).reshape(-1)
    filled = torch.scatter(flat, 0, places, source.to(x.dtype).reshape(-1))
    return filled.reshape([x.shape[d] for d in order]).permute(back)


def _unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Windows along an axis, their cells last."""
    if x.dim() == 0:
        return NotImplemented
    dim = dim % x.dim()
    count = (x.shape[dim] - size) // step + 1
    with outside_traces():
        cells = (torch.arange(count).unsqueeze(1) * step + torch.arange(size)).reshape(-1)
    shape = [*x.shape[:dim], count, size, *x.shape[dim + 1 :]]
    return torch.index_select(x, dim, cells).reshape(shape).movedim(dim + 1, -1)


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The n-th cell of the mask takes the n-th element of the source."""
    x, mask = torch.broadcast_tensors(x, mask)
    flat = mask.reshape(-1).to(torch.int64)
    place = (flat.cumsum(0) - 1).clamp(0, max(source.numel() - 1, 0))
    taken = torch.gather(source.reshape(-1), 0, place).reshape(x.shape)
    return torch.where(mask, taken, x)


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    with outside_traces():
        numbers = torch.arange(x.numel()).reshape(x.shape).diagonal(offset, dim1, dim2).reshape(-1)
    flat = torch.scatter(x.reshape(-1), 0, numbers, source.to(x.dtype).reshape(-1))
    return flat.reshape(x.shape)


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    flat, rows, values = x.reshape(-1), index.reshape(-1), source.reshape(-1)
    rows = torch.where(rows < 0, rows + x.numel(), rows)
    made = torch.scatter_add(flat, 0, rows, values) if accumulate else torch.scatter(flat, 0, rows, values)
    return made.reshape(x.shape)


def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Indices of 32 bits are none to ONNX Runtime."""
    if not any(index is not None and index.dtype == torch.int32 for index in indices):
        return NotImplemented
    wide = [i.to(torch.int64) if i is not None and i.dtype == torch.int32 else i for i in indices]
    return _aten.index_put.default(x, wide, values, accumulate)


def _scatter_value(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    """Engines scatter tensors of the target's dtype."""
    return torch.scatter(x, dim, index, torch.full(index.shape, value, dtype=x.dtype))


def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor | None:
    """Reductions by index over a table of which element of the source goes to which place."""
    if x.dim() == 0 or not x.is_floating_point():
        return None
    source = source[tuple(slice(0, n) for n in index.shape)]
    last = x.dim() - 1
    # a source may be narrower than the target along the other axes: nothing goes to the rest
    wide = [n if d == dim % x.dim() else m for d, (n, m) in enumerate(zip(index.shape, x.shape, strict=True))]
    index, source = (_widened(v, wide, fill) for v, fill in ((index, -1), (source, 0)))
    to = index.transpose(dim, last).unsqueeze(-1) == torch.arange(x.shape[dim])
    values = source.transpose(dim, last).unsqueeze(-1)
    own = x.transpose(dim, last)
    count = to.to(x.dtype).sum(-2)
    hit = count > 0
    if reduce in ("sum", "mean"):
        out = torch.where(to, values, 0.0).sum(-2)
        out = torch.where(hit, out + own if include_self else out, own)
        if reduce == "mean":
            out = out / torch.where(hit, count + float(include_self), 1.0)
    elif reduce == "prod":
        out = product(torch.where(to, values, 1.0), -2)
        out = torch.where(hit, out * own if include_self else out, own)
    elif reduce in ("amax", "amin"):
        low = -math.inf if reduce == "amax" else math.inf
        all_of = torch.where(to, values, low)
        if include_self:
            all_of = torch.cat([all_of, own.unsqueeze(-2)], -2)
        out = all_of.amax(-2) if reduce == "amax" else all_of.amin(-2)
        out = torch.where(hit, out, own)
    else:
        return None
    return out.transpose(dim, last)


def _widened(x: Tensor, size: Sequence[int], fill: int) -> Tensor:
    pad = [p for have, want in zip(reversed(x.shape), reversed(size), strict=True) for p in (0, want - have)]
    return torch.nn.functional.pad(x, pad, value=fill) if any(pad) else x


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor | None:
    """Without the look at the values that PyTorch's own takes; classes that are not there give zeros."""
    if num_classes < 0:
        return None
    return (x.unsqueeze(-1) == torch.arange(num_classes)).to(torch.int64)


FORMS: dict[Any, Callable[..., Any]] = {
    torch.scatter_reduce: _scatter_reduce,
    Tensor.scatter_reduce: _scatter_reduce,
    torch.masked_scatter: _masked_scatter,
    Tensor.masked_scatter: _masked_scatter,
    torch.nn.functional.one_hot: _one_hot,
}
#: These are views, which may be written to: only in a graph without mutations are they values.
OF_VALUES: dict[Any, Callable[..., Any]] = {
    _aten.as_strided.default: _as_strided,
    _aten.unfold.default: _unfold,
}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.copy.default: _copy,
    _aten.clone.default: _in_order(_aten.clone.default),
    _aten._to_copy.default: _in_order(_aten._to_copy.default),
    _aten.new_empty_strided.default: _new_empty_strided,
    _aten.as_strided_copy.default: _as_strided,
    _aten.as_strided_scatter.default: _as_strided_scatter,
    _aten.diagonal_scatter.default: _diagonal_scatter,
    _aten.put.default: _put,
    _aten.scatter.value: _scatter_value,
    _aten.index_put.default: _index_put,
}
