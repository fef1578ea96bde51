"""Embedding tables, bags of them, and images read at places that are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def _embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """Gradient of an embedding table as one scatter-add."""
    if scale_grad_by_freq:
        return NotImplemented
    width = grad.shape[-1]
    rows = indices.reshape(-1)
    flat = grad.reshape(-1, width)
    if padding_idx >= 0:
        flat = flat * (rows != padding_idx).to(flat.dtype).unsqueeze(1)
    table = torch.zeros((num_weights, width), dtype=grad.dtype)
    return torch.scatter_add(table, 0, rows.unsqueeze(1).expand(-1, width), flat)


def _embedding_bag(
    input: Tensor,  # noqa: A002  (PyTorch's own argument name)
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001  (the gradient is the same)
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:
    """A sum, mean or maximum over rows that are looked up one by one."""
    if max_norm is not None or scale_grad_by_freq or (input.dim() == 1) == (offsets is None):
        return None
    counts = torch.ones(input.shape, dtype=weight.dtype)
    if padding_idx is not None:
        padding_idx = padding_idx % len(weight)
        counts = (input != padding_idx).to(weight.dtype)
    rows = F.embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if offsets is None:
        inside = counts.unsqueeze(1)  # [bags, 1, words]
        rows = rows.unsqueeze(1)  # [bags, 1, words, width]
    else:
        begins = offsets[:-1] if include_last_offset else offsets
        place = torch.arange(len(input))
        bag = (begins.unsqueeze(0) <= place.unsqueeze(1)).to(torch.int64).sum(1) - 1
        inside = (bag.unsqueeze(0) == torch.arange(len(begins)).unsqueeze(1)).to(weight.dtype) * counts
        inside, rows = inside.unsqueeze(0), rows.unsqueeze(0).unsqueeze(0)
    number = inside.sum(-1, keepdim=True)
    if mode == "max":
        low = torch.where(inside.unsqueeze(-1) > 0, rows, -float("inf"))
        best = low.max(-2).values
        out = torch.where(number > 0, best, 0.0)
    else:
        out = (rows * inside.unsqueeze(-1)).sum(-2)
        if mode == "mean":
            out = out / number.clamp(min=1.0)
    return out.squeeze(1) if offsets is None else out.squeeze(0)


def _grid_sample(
    input: Tensor,  # noqa: A002
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor | None:
    """Sums of cells that are gathered by number (Jaderberg et al. 2015, spatial transformers)."""
    if input.dim() != 4 or mode not in ("bilinear", "nearest"):
        return None
    batch, channels, height, width = input.shape
    flat = input.reshape(batch, channels, height * width)

    def place(at: Tensor, size: int) -> Tensor:
        spread = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
        if padding_mode == "reflection":
            low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
            span = high - low
            if span == 0:
                return torch.zeros_like(spread)
            over = (spread - low).abs()
            turns = torch.floor(over.detach() / span)
            rest = over - turns * span
            odd = (turns - 2 * torch.floor(turns / 2)) > 0.5
            spread = torch.where(odd, span - rest, rest) + low
        return spread if padding_mode == "zeros" else spread.clamp(0, size - 1)

    def read(x: Tensor, y: Tensor) -> Tensor:
        """Cells [batch, channels, places] at whole places, zero outside."""
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        number = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        number = number.detach().to(torch.int64).reshape(batch, 1, -1)
        cells = torch.gather(flat, 2, number.expand(-1, channels, -1))
        return cells * inside.to(input.dtype).reshape(batch, 1, -1)

    x, y = place(grid[..., 0], width), place(grid[..., 1], height)
    if mode == "nearest":
        out = read(torch.round(x).detach(), torch.round(y).detach())
        return out.reshape(batch, channels, *grid.shape[1:3])
    left, top = torch.floor(x).detach(), torch.floor(y).detach()
    out = None
    for dx in (0.0, 1.0):
        for dy in (0.0, 1.0):
            share = (x - left if dx else left + 1 - x) * (y - top if dy else top + 1 - y)
            part = read(left + dx, top + dy) * share.reshape(batch, 1, -1)
            out = part if out is None else out + part
    assert out is not None
    return out.reshape(batch, channels, *grid.shape[1:3])


FORMS: dict[Any, Callable[..., Any]] = {
    F.embedding_bag: _embedding_bag,
    F.grid_sample: _grid_sample,
}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.embedding_dense_backward.default: _embedding_backward,
}
