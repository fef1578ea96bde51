"""Forward and backward forms that every engine runs, and runs fast.

While a program is traced, :class:`ClosedForms` replaces a few PyTorch functions by the same mathematics in plain
operators whose derivative is plain too. Reasons, each measured or seen: fused attention gives wrong gradients under
decomposition; no phone engine has an erf of XNNPACK speed; frozen batch norm must not be put back into training
mode; cross-entropy over a vocabulary costs as much as several layers when written naively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pfl_mobile.programs.forms import (
    axes,
    convolutions,
    elementwise,
    indexing,
    lookups,
    losses,
    matrices,
    maxima,
    norms,
    orders,
    recurrences,
)

_aten = torch.ops.aten


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows, in two passes over the logits forward and two backward.

    log-sum-exp is recovered from the softmax at its largest entry, ``max(z) - log(max(p))``: that probability is at
    least 1/V, so the logarithm can neither underflow nor lose precision, and no third pass is needed.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        probs = torch.softmax(logits, -1)
        valid = labels != ignore
        index = torch.where(valid, labels, torch.zeros_like(labels)).unsqueeze(1)
        scale = valid.to(logits.dtype)
        top, where = torch.max(probs, -1, keepdim=True)
        lse = torch.gather(logits, 1, where) - torch.log(top)
        loss = (lse - torch.gather(logits, 1, index)).squeeze(1)
        ctx.save_for_backward(probs, index, scale)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        probs, index, scale = ctx.saved_tensors
        weight = (grads[0] * scale).unsqueeze(1)
        return torch.scatter_add(probs * weight, 1, index, -weight), None, None


class _Gelu(torch.autograd.Function):
    """Exact GELU whose derivative takes the normal CDF from the forward value: Phi(x) = gelu(x) / x.

    The division keeps full relative precision; (y x + c/2) / (x^2 + c) with a tiny c is the same quotient and has
    its limit 1/2 at zero.
    """

    _TINY = 1e-30

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _aten.gelu.default(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        square = x * x
        cdf = (y * x + 0.5 * _Gelu._TINY) / (square + _Gelu._TINY)
        return grads[0] * (cdf + x * torch.exp(square * -0.5) * (1.0 / math.sqrt(2.0 * math.pi)))


def _cross_entropy(
    input: Tensor,  # noqa: A002  (PyTorch's own argument name)
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    plain = weight is None and size_average is None and reduce is None and label_smoothing == 0.0
    if not plain or reduction != "none" or input.dim() != 2 or target.dim() != 1:
        return None
    loss: Tensor = _CrossEntropy.apply(input, target, ignore_index)
    return loss


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attention as two matrix products and a softmax (Vaswani 2017); None where that would not be exact."""
    if dropout_p or attn_mask is not None:
        return None  # a row masked everywhere gives zeros in PyTorch and would not here
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeat = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeat, -3)
        value = value.repeat_interleave(repeat, -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        rows, columns = scores.shape[-2:]
        scores = scores + torch.full((rows, columns), -1e9).triu(1)
    return torch.matmul(torch.softmax(scores, -1), value)


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:  # noqa: A002
    if approximate == "tanh":
        return elementwise.gelu_tanh(input)
    if approximate != "none":
        return None
    result: Tensor = _Gelu.apply(input)
    return result


def _batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor | None:
    """Frozen batch norm as one multiply and one add per channel."""
    if training or running_mean is None or running_var is None:
        return None
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = [1, -1] + [1] * (input.dim() - 2)
    return input * scale.reshape(shape) + shift.reshape(shape)


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019) from mean and rsqrt."""
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    small = torch.finfo(input.dtype).eps if eps is None else eps
    out = input * torch.rsqrt((input * input).mean(dims, keepdim=True) + small)
    return out if weight is None else out * weight


def _pool_windows(x: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor | None:
    """Windows of a non-overlapping pooling as a last dimension [..., H/k, W/k, k*k]; None for other poolings."""
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    steps = (kh, kw) if stride is None or stride == [] else stride
    sh, sw = (steps, steps) if isinstance(steps, int) else tuple(steps)
    zero = padding in (0, (0, 0), [0, 0])
    if not zero or (sh, sw) != (kh, kw) or x.dim() != 4:
        return None
    b, c, h, w = x.shape
    x = x[:, :, : h - h % kh, : w - w % kw]
    x = x.reshape(b, c, h // kh, kh, w // kw, kw).permute(0, 1, 2, 4, 3, 5)
    return x.reshape(b, c, h // kh, w // kw, kh * kw)


def _max_pool2d(
    input: Tensor,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if ceil_mode or return_indices or dilation not in (1, (1, 1), [1, 1]):
        return None
    windows = _pool_windows(input, kernel_size, stride, padding)
    if windows is None:
        return None
    _, where = torch.max(windows.detach(), -1, keepdim=True)
    return torch.gather(windows, -1, where).squeeze(-1)


def _avg_pool2d(
    input: Tensor,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,  # noqa: ARG001  (there is no padding here)
    divisor_override: int | None = None,
) -> Tensor | None:
    if ceil_mode or divisor_override is not None:
        return None
    windows = _pool_windows(input, kernel_size, stride, padding)
    return None if windows is None else windows.mean(-1)


#: Modules with ``DECOMPOSITIONS``, ``FORMS`` or both.
_KINDS: tuple[Any, ...] = (
    axes,
    maxima,
    convolutions,
    indexing,
    orders,
    elementwise,
    lookups,
    losses,
    matrices,
    norms,
    recurrences,
)
_FORMS: dict[Any, Callable[..., Tensor | None]] = {
    **{func: form for kind in _KINDS for func, form in getattr(kind, "FORMS", {}).items()},
    F.cross_entropy: _cross_entropy,
    F.scaled_dot_product_attention: _attention,
    F.gelu: _gelu,
    F.batch_norm: _batch_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
}


#: They hand values to Python behind the trace's back, and what Python computes from them becomes a constant.
_READS = {Tensor.numpy, Tensor.tolist, Tensor.__array__}


def _comes_from_an_input(tensor: Tensor) -> bool:
    """Whether the trace that is being made computes ``tensor`` from one of its inputs."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, has_proxy_slot

    mode = get_proxy_mode()
    if mode is None or not has_proxy_slot(tensor, mode.tracer):
        return False
    nodes, seen = [get_proxy_slot(tensor, mode.tracer).proxy.node], set()
    while nodes:
        node = nodes.pop()
        if node.op == "placeholder":
            return True
        if node not in seen:
            seen.add(node)
            nodes += node.all_input_nodes
    return False


class ClosedForms(TorchFunctionMode):
    """Replaces known functions while it is active; any other call, or an option it does not cover, passes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READS and _comes_from_an_input(args[0]):
            # as a trace does where it sees such a read itself: pfl_mobile.programs.refusals has the words for users
            raise RuntimeError(f"Tensor.{func.__name__}() would get value out of a tracing tensor")
        form = _FORMS.get(func)
        if form is not None:
            result = form(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _constant_pad(x: Tensor, pad: list[int], value: float = 0) -> Tensor:
    """Negative padding, as the backward pass of padding has it, is cut off: ExecuTorch's kernel refuses it."""
    if min(pad, default=0) >= 0:
        return NotImplemented
    for place in range(0, len(pad), 2):
        before, after = (max(-width, 0) for width in pad[place : place + 2])
        if before or after:
            dim = x.dim() - 1 - place // 2
            x = x.narrow(dim, before, x.shape[dim] - before - after)
    added = [max(width, 0) for width in pad]
    return _aten.constant_pad_nd.default(x, added, value) if any(added) else x.clone()


def _empty(size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Zeros: as a constant of a program it would be what lay there in memory, another number at each export."""
    return _aten.full.default(size, 0, dtype=dtype or torch.get_default_dtype())


def _empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _aten.full.default(list(x.shape), 0, dtype=dtype or x.dtype)


@cache
def of_values() -> dict[Any, Callable[..., Any]]:
    """``decompositions`` of a graph without mutations, where views are values like others. Do not change it."""
    return {**decompositions(), **indexing.OF_VALUES}


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions with ours on top: the table that programs are traced with. Do not change it."""
    from torch._decomp import core_aten_decompositions

    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    for kind in _KINDS:
        table.update(getattr(kind, "DECOMPOSITIONS", {}))
    table[_aten.constant_pad_nd.default] = _constant_pad
    table[_aten.empty.memory_format] = _empty
    table[_aten.empty_like.default] = _empty_like
    return table
