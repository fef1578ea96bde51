"""Functions of single elements that some engine lacks, and norms and distances made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten
_INF = float("inf")


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(x^2 + y^2) of what is divided by the larger, so that squares neither overflow nor vanish."""
    large, small = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    ratio = small / torch.where(large > 0, large, 1.0)
    return large * torch.sqrt(1.0 + ratio * ratio)


def _fmax(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x >= y) | (y != y), x, y)


def _fmin(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x <= y) | (y != y), x, y)


def _copysign(x: Tensor, y: Tensor) -> Tensor:
    """A zero that is negative counts as one that is not."""
    return torch.where(y < 0, -x.abs(), x.abs())


def _shrink_backward(grad: Tensor, x: Tensor, lambd: float) -> Tensor:
    return torch.where((x >= -lambd) & (x <= lambd), 0.0, grad)


def _bitwise_not(x: Tensor) -> Tensor:
    return torch.logical_not(x) if x.dtype == torch.bool else NotImplemented


def _bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    one = x.unsqueeze(-1)
    passed = one >= boundaries if right else one > boundaries
    return passed.to(torch.int64).sum(-1).to(torch.int32 if out_int32 else torch.int64)


def _logcumsumexp(x: Tensor, dim: int) -> Tensor | None:
    """Sums of what is left after the largest so far was taken out, over a triangle of pairs."""
    if x.dim() == 0:
        return None
    moved = x.transpose(dim, -1)
    size = x.shape[dim]
    seen = torch.ones(size, size).tril() > 0
    return torch.where(seen, moved.unsqueeze(-2), -_INF).logsumexp(-1).transpose(dim, -1)


def gelu_tanh(x: Tensor) -> Tensor:
    """(1 + tanh u) / 2 is the logistic function of 2 u, which XNNPACK computes more exactly."""
    inner = 2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return x * torch.sigmoid(inner)


def _rrelu(
    x: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor | None:
    return None if training or inplace else F.leaky_relu(x, (lower + upper) / 2)


def _cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor | None:  # noqa: ARG001
    """Distances of all pairs, each by its difference."""
    if p == 0.0:
        return None
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = (torch.matmul(x.unsqueeze(-2).unsqueeze(-2), weight).squeeze(-2) * y.unsqueeze(-2)).sum(-1)
    return out if bias is None else out + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v| (Salimans and Kingma 2016)."""
    axes = list(range(v.dim())) if dim == -1 else [d for d in range(v.dim()) if d != dim]
    return v * (g / torch.linalg.vector_norm(v, 2, axes, keepdim=True))


FORMS: dict[Any, Callable[..., Any]] = {
    F.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    torch.cdist: _cdist,
    F.bilinear: _bilinear,
    torch._weight_norm: _weight_norm,
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.hypot.default: _hypot,
    _aten.fmax.default: _fmax,
    _aten.fmin.default: _fmin,
    _aten.copysign.Tensor: _copysign,
    _aten.hardshrink_backward.default: _shrink_backward,
    _aten.softshrink_backward.default: _shrink_backward,
    _aten.bitwise_not.default: _bitwise_not,
    _aten.bucketize.Tensor: _bucketize,
}
