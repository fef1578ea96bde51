"""Inverses of small matrices, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.errors import ExportError

_aten = torch.ops.aten
#: Rows up to which elimination is written out.
LARGEST = 16


def _checked(x: Tensor, what: str) -> int:
    size = int(x.shape[-1])
    if size > LARGEST:
        raise ExportError(
            f"{what} of a matrix of {size} rows is not written out (at most {LARGEST})",
            mend="use smaller matrices, or solve by a fixed number of iterations",
        )
    return size


def _swapped(rows: Tensor, column: int) -> tuple[Tensor, Tensor]:
    """The rows with that of the largest entry of a column, from the diagonal down, on the diagonal; and whether."""
    size = rows.shape[-2]
    numbers = torch.arange(size)
    entries = torch.where(numbers >= column, rows[..., column].detach().abs(), -1.0)
    best = entries.argmax(-1, keepdim=True)  # [..., 1]
    pivot, here = numbers == best, numbers == column
    chosen = torch.gather(rows, -2, best.unsqueeze(-1).expand(*best.shape[:-1], 1, rows.shape[-1]))
    own = rows[..., column : column + 1, :]
    out = torch.where(here.unsqueeze(-1), chosen, torch.where(pivot.unsqueeze(-1), own, rows))
    return out, best.squeeze(-1) != column


def _inverse(x: Tensor) -> Tensor:
    """Gauss and Jordan's elimination with the largest entry of each column as pivot (Golub and Van Loan 2013, 3.4)."""
    size = _checked(x, "the inverse")
    rows = torch.cat([x, torch.eye(size).expand(x.shape)], -1)
    for column in range(size):
        rows, _ = _swapped(rows, column)
        own = rows[..., column : column + 1, :]
        own = own / own[..., column : column + 1]
        factors = rows[..., column : column + 1]
        here = (torch.arange(size) == column).unsqueeze(-1)
        rows = torch.where(here, own, rows - factors * own)
    return rows[..., size:]


def _inv_ex(x: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return _inverse(x), torch.zeros(x.shape[:-2], dtype=torch.int32)


def _inv(x: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv_ex(x).inverse
    return inverse


def _solve(x: Tensor, y: Tensor, *, left: bool = True) -> Tensor:
    """By the inverse, whose gradient needs no other solution."""
    inverse = _inv(x)
    vector = y.dim() == 1 or (y.dim() == x.dim() - 1 and y.shape == x.shape[:-1])
    if vector:
        return torch.matmul(inverse, y.unsqueeze(-1)).squeeze(-1)
    return torch.matmul(inverse, y) if left else torch.matmul(y, inverse)


def _det(x: Tensor) -> Tensor:
    """The product of the pivots."""
    size = _checked(x, "the determinant")
    rows, out = x, None
    for column in range(size):
        rows, moved = _swapped(rows, column)
        pivot = rows[..., column, column]
        signed = torch.where(moved, -pivot, pivot)
        out = signed if out is None else out * signed
        below = rows[..., column + 1 :, :]
        rows = torch.cat(
            [
                rows[..., : column + 1, :],
                below
                - below[..., column : column + 1]
                / pivot[..., None, None]
                * rows[..., column : column + 1, :],
            ],
            -2,
        )
    assert out is not None
    return out


def _cholesky(x: Tensor, *, upper: bool = False) -> Tensor:
    """Column by column (Golub and Van Loan 2013, 4.2); of the lower triangle, as PyTorch's."""
    size = _checked(x, "the Cholesky factor")
    columns: list[Tensor] = []
    for place in range(size):
        column = x[..., :, place]
        for earlier in columns:
            column = column - earlier * earlier[..., place : place + 1]
        column = column / torch.sqrt(column[..., place : place + 1])
        columns.append(column * (torch.arange(size) >= place).to(x.dtype))
    lower = torch.stack(columns, -1)
    return lower.mT if upper else lower


FORMS: dict[Any, Callable[..., Any]] = {
    torch.linalg.inv: _inv,
    torch.inverse: _inv,
    Tensor.inverse: _inv,
    torch.linalg.solve: _solve,
    torch.linalg.det: _det,
    torch.det: _det,
    Tensor.det: _det,
    torch.linalg.cholesky: _cholesky,
}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.linalg_inv_ex.default: _inv_ex,
}
