"""Sorting, order statistics and scans: all of a known length, so that they are selections and sums of logs' depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """All of a tensor's largest, in order: every engine has ``topk``."""
    values, indices = torch.topk(x, x.shape[dim], dim, descending, True)
    return values, indices


def _stable_sort(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    if not stable:
        return _sort(x, dim, descending)
    # the place of each element is the number of those before it: smaller ones, and equal ones that came first
    moved = x.transpose(dim, -1)
    one, other = moved.unsqueeze(-1), moved.unsqueeze(-2)
    before = other > one if descending else other < one
    size = x.shape[dim]
    earlier = torch.ones(size, size).tril(-1) > 0
    place = (before | ((other == one) & earlier)).to(torch.int64).sum(-1)
    numbers = torch.arange(size).expand(place.shape)
    indices = torch.scatter(torch.zeros_like(place), -1, place, numbers)
    return torch.gather(moved, -1, indices).transpose(dim, -1), indices.transpose(dim, -1)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = (t.narrow(dim, k - 1, 1) for t in torch.topk(x, k, dim, False, True))
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def product(x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor | None:
    """Products of halves, so that the gradient holds where factors are zero too."""
    if dtype is not None or not x.is_floating_point() or x.dim() == 0:
        return None
    if dim is None:
        x, dim = x.reshape(-1), 0
    while (size := x.shape[dim]) > 1:
        half = size // 2
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = pairs if size % 2 == 0 else torch.cat([pairs, x.narrow(dim, size - 1, 1)], dim)
    return x if keepdim or x.shape[dim] == 0 else x.squeeze(dim)


def _scanned(x: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Every prefix combined, doubling what each has seen (Hillis and Steele 1986)."""
    size, reach = x.shape[dim], 1
    while reach < size:
        kept = x.narrow(dim, 0, reach)
        x = torch.cat(
            [kept, combine(x.narrow(dim, reach, size - reach), x.narrow(dim, 0, size - reach))], dim
        )
        reach *= 2
    return x


def _cumprod(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor | None:
    if dtype is not None or not x.is_floating_point() or x.dim() == 0:
        return None
    return _scanned(x, dim, torch.mul)


def _cummax(sign: float) -> Callable[..., Any]:
    def form(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        size = x.shape[dim]
        moved = x.transpose(dim, -1)
        # PyTorch's own index is that of the last of equals
        seen = torch.ones(size, size).tril() > 0
        all_of = torch.where(seen, moved.unsqueeze(-2) * sign, -float("inf"))
        values, from_behind = all_of.flip(-1).max(-1)
        return values.transpose(dim, -1) * sign, (size - 1 - from_behind).transpose(dim, -1)

    return form


FORMS: dict[Any, Callable[..., Any]] = {
    torch.prod: product,
    Tensor.prod: product,
    torch.cumprod: _cumprod,
    Tensor.cumprod: _cumprod,
}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.sort.default: _sort,
    _aten.sort.stable: _stable_sort,
    _aten.kthvalue.default: _kthvalue,
    _aten.median.dim: _median,
    _aten.cummax.default: _cummax(1.0),
    _aten.cummin.default: _cummax(-1.0),
}
