"""Losses whose own operators look at values, or that no engine has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Stands for the logarithm of zero: no sum of it overflows, and its exponential is zero.
_NEVER = -1e30


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _gaussian_nll(
    input: Tensor,  # noqa: A002  (PyTorch's own argument name)
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor | None:
    """Without the look for negative variances; the clamp has no gradient, as in PyTorch (Nix and Weigend 1994)."""
    if not isinstance(var, Tensor):
        var = torch.full(input.shape, float(var))
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
        elif not (input.shape[:-1] == var.shape[:-1] and var.shape[-1] == 1):
            return None  # PyTorch says what is wrong
    var = var + (var.clamp(min=eps) - var).detach()
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    return _reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


def _multi_margin(
    input: Tensor,  # noqa: A002
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor | None:
    if size_average is not None or reduce is not None or input.dim() != 2:
        return None
    own = torch.gather(input, 1, target.unsqueeze(1))
    short = (margin - own + input).clamp(min=0) ** p
    if weight is not None:
        short = short * weight[target].unsqueeze(1)
    others = target.unsqueeze(1) != torch.arange(input.shape[1])
    return _reduced((short * others.to(input.dtype)).sum(1) / input.shape[1], reduction)


def _multilabel_margin(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor | None:
    """Labels end at the first that is negative."""
    if size_average is not None or reduce is not None or input.dim() != 2:
        return None
    ended = (target < 0).to(torch.int64).cumsum(1) > 0
    labels = torch.where(ended, 0, target)
    hot = (labels.unsqueeze(2) == torch.arange(input.shape[1])) & ~ended.unsqueeze(2)
    positive = hot.to(torch.int64).sum(1) > 0  # [rows, classes]
    own = torch.gather(input, 1, labels)
    short = (1 - own.unsqueeze(2) + input.unsqueeze(1)).clamp(min=0)
    counts = (~ended).unsqueeze(2) & ~positive.unsqueeze(1)
    return _reduced((short * counts.to(input.dtype)).sum((1, 2)) / input.shape[1], reduction)


def _lengths(given: Any) -> Tensor:
    return given if isinstance(given, Tensor) else torch.tensor(list(given))


def _ctc(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor | None:
    """The forward recursion over paths, step by step (Graves et al. 2006, (5) to (8)); targets are padded rows."""
    if log_probs.dim() != 3 or targets.dim() != 2:
        return None
    steps, batch, _ = log_probs.shape
    width = targets.shape[1]
    ends, spoken = _lengths(input_lengths), _lengths(target_lengths)
    labels = torch.where(torch.arange(width) < spoken.unsqueeze(1), targets, blank)
    states = torch.stack([torch.full_like(labels, blank), labels], 2).reshape(batch, 2 * width)
    states = torch.cat([states, torch.full((batch, 1), blank)], 1)  # [batch, 2 width + 1]
    size = 2 * width + 1
    before = torch.cat([torch.full((batch, 2), blank), states[:, : size - 2]], 1)
    leaps = (states != blank) & (states != before)
    emitted = torch.gather(log_probs, 2, states.unsqueeze(0).expand(steps, -1, -1))
    first = (torch.arange(size) < 2) & ((torch.arange(size) == 0) | (spoken.unsqueeze(1) > 0))
    alpha = torch.where(first, emitted[0], _NEVER)
    for step in range(1, steps):
        stay = alpha
        move = F.pad(alpha[:, : size - 1], (1, 0), value=_NEVER)
        leap = torch.where(leaps, F.pad(alpha[:, : max(size - 2, 0)], (2, 0), value=_NEVER), _NEVER)
        came = torch.logsumexp(torch.stack([stay, move, leap], 2), 2)
        new = (came + emitted[step]).clamp(min=_NEVER)
        alpha = torch.where((ends > step).unsqueeze(1), new, alpha)
    last = torch.gather(alpha, 1, (2 * spoken).unsqueeze(1))
    beside = torch.gather(alpha, 1, (2 * spoken - 1).clamp(min=0).unsqueeze(1))
    beside = torch.where((spoken > 0).unsqueeze(1), beside, _NEVER)
    loss = -torch.logsumexp(torch.cat([last, beside], 1), 1)
    impossible = loss > -_NEVER / 2
    loss = torch.where(impossible, 0.0 if zero_infinity else float("inf"), loss)
    if reduction == "mean":
        return (loss / spoken.clamp(min=1).to(loss.dtype)).mean()
    return _reduced(loss, reduction)


FORMS: dict[Any, Callable[..., Any]] = {
    F.gaussian_nll_loss: _gaussian_nll,
    F.multi_margin_loss: _multi_margin,
    F.multilabel_margin_loss: _multilabel_margin,
    F.ctc_loss: _ctc,
    torch.ctc_loss: _ctc,
}
