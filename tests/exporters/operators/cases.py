"""What PyTorch's layers, functions and losses lead to: one small function for each, of tensors that are trained.

A case is a function of float tensors; all of them get a gradient. Whole numbers, masks and frozen weights are constants
of the function, as they are constants or inputs without a gradient in a program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn


@dataclass(frozen=True)
class Case:
    """One use of an operator.

    Attributes:
        group: heading in the table.
        name: of the operator as its user writes it, with the options that matter.
        function: of the inputs; returns a tensor, or several.
        shapes: of the inputs, drawn from a normal distribution by a seed of the name.
        positive: inputs are drawn from (0.2, 1.2) instead.
    """

    group: str
    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    positive: bool = False

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        if self.positive:
            return [torch.rand(shape, generator=generator) + 0.2 for shape in self.shapes]
        return [torch.randn(shape, generator=generator) for shape in self.shapes]


CASES: list[Case] = []


def _add(
    group: str, name: str, function: Callable[..., Any], *shapes: tuple[int, ...], positive: bool = False
) -> None:
    CASES.append(Case(group, name, function, shapes, positive))


def _layer(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().eval().requires_grad_(requires_grad=False)


def _packed(layer: nn.Module, x: Tensor) -> Tensor:
    """What a recurrent layer gives for rows of two lengths, packed and unpacked again."""
    given = rnn.pack_padded_sequence(
        x, torch.tensor([x.shape[1] - 1, x.shape[1]]), batch_first=True, enforce_sorted=False
    )
    return rnn.pad_packed_sequence(layer(given)[0], batch_first=True)[0]


def _states(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """All that a recurrent layer gives."""
    out, last = layer(x)
    return (out, *last) if isinstance(last, tuple) else (out, last)


def _fixed(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


# -- pooling

for _n, _shape in ((1, (2, 3, 11)), (2, (2, 3, 9, 8)), (3, (1, 2, 6, 5, 6))):
    _max, _avg = getattr(F, f"max_pool{_n}d"), getattr(F, f"avg_pool{_n}d")
    for _options in (
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    ):
        _text = ", ".join(f"{k}={v}" for k, v in _options.items())
        _add("Pooling", f"max_pool{_n}d({_text})", lambda x, f=_max, o=_options: f(x, **o), _shape)
    for _options in (
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ):
        _text = ", ".join(f"{k}={v}" for k, v in _options.items())
        _add("Pooling", f"avg_pool{_n}d({_text})", lambda x, f=_avg, o=_options: f(x, **o), _shape)
    for _size in (1, 2, 3, 4):
        for _kind in ("avg", "max"):
            _f = getattr(F, f"adaptive_{_kind}_pool{_n}d")
            _add("Pooling", f"adaptive_{_kind}_pool{_n}d({_size})", lambda x, f=_f, s=_size: f(x, s), _shape)
_add(
    "Pooling",
    "avg_pool2d(3, divisor_override=5)",
    lambda x: F.avg_pool2d(x, 3, divisor_override=5),
    (2, 3, 9, 8),
)
_add(
    "Pooling",
    "max_pool2d(return_indices=True)",
    lambda x: F.max_pool2d(x, 3, 2, return_indices=True)[0],
    (2, 3, 9, 8),
)
_add("Pooling", "adaptive_avg_pool2d((2, None))", lambda x: F.adaptive_avg_pool2d(x, (2, None)), (2, 3, 9, 8))
_add("Pooling", "lp_pool2d(2, 2)", lambda x: F.lp_pool2d(x, 2, 2), (2, 3, 8, 8), positive=True)
_add(
    "Pooling",
    "max_unpool2d",
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    (2, 3, 8, 8),
)


# -- convolutions

for _n, _in in ((1, (2, 4, 9)), (2, (2, 4, 7, 6)), (3, (1, 4, 4, 5, 4))):
    for _options in (
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2},
        {"groups": 2, "stride": 2},
        {"groups": 4, "padding": 1},
    ):
        _text = ", ".join(f"{k}={v}" for k, v in _options.items())
        _f = getattr(F, f"conv{_n}d")
        _weight = (4, 4 // _options.get("groups", 1), *(3,) * _n)
        _padded = _options if _n < 3 else {"padding": 1, **_options}
        _add(
            "Convolution",
            f"conv{_n}d({_text}), trained",
            lambda x, w, b, f=_f, o=_padded: f(x, w, b, **o),
            _in,
            _weight,
            (4,),
        )
    for _options in (
        {},
        {"stride": 2},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"dilation": 2},
        {"groups": 2, "stride": 2},
        {"groups": 4, "stride": 2, "padding": 1},
    ):
        _text = ", ".join(f"{k}={v}" for k, v in _options.items())
        _f = getattr(F, f"conv_transpose{_n}d")
        _weight = (
            4,
            6 // 2 if _options.get("groups") == 2 else 1 if _options.get("groups") == 4 else 3,
            *(3,) * _n,
        )
        _out = _weight[1] * _options.get("groups", 1)
        _add(
            "Convolution",
            f"conv_transpose{_n}d({_text}), trained",
            lambda x, w, b, f=_f, o=_options: f(x, w, b, **o),
            _in,
            _weight,
            (_out,),
        )
        _add(
            "Convolution",
            f"conv_transpose{_n}d({_text}), frozen",
            lambda x, f=_f, o=_options, w=_fixed(*_weight): f(x, w, **o),
            _in,
        )
_add(
    "Convolution", "conv1d(padding='same')", lambda x, w: F.conv1d(x, w, padding="same"), (2, 3, 9), (4, 3, 4)
)
_add("Convolution", "unfold", lambda x: F.unfold(x, 3, padding=1, stride=2), (2, 3, 6, 6))
_add("Convolution", "fold", lambda x: F.fold(x, (6, 6), 3, padding=1, stride=2), (2, 27, 9))
_add(
    "Convolution",
    "conv2d of channels_last tensors",
    lambda x, w: F.conv2d(x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)),
    (2, 3, 6, 6),
    (4, 3, 3, 3),
)

# -- resizing and padding

for _mode, _n, _shape in (
    ("nearest", 1, (2, 3, 5)),
    ("nearest", 2, (2, 3, 4, 5)),
    ("linear", 1, (2, 3, 5)),
    ("bilinear", 2, (2, 3, 4, 5)),
    ("bicubic", 2, (2, 3, 5, 5)),
    ("nearest-exact", 2, (2, 3, 4, 5)),
    ("area", 2, (2, 3, 4, 6)),
    ("trilinear", 3, (1, 2, 3, 4, 3)),
):
    for _options in ({"scale_factor": 2}, {"size": 7}):
        for _corners in (False, True) if "linear" in _mode or "cubic" in _mode else (None,):
            _text = ", ".join(f"{k}={v}" for k, v in _options.items()) + (
                ", align_corners" if _corners else ""
            )
            _add(
                "Resizing",
                f"interpolate({_mode}, {_n}d, {_text})",
                lambda x, o=_options, m=_mode, c=_corners: F.interpolate(x, mode=m, align_corners=c, **o),
                _shape,
            )
_add("Resizing", "pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (2, 8, 3, 3))
_add("Resizing", "pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (2, 2, 4, 6))
_add("Resizing", "channel_shuffle", lambda x: F.channel_shuffle(x, 2), (2, 4, 3, 3))
for _mode in ("constant", "reflect", "replicate", "circular"):
    _add("Resizing", f"pad({_mode})", lambda x, m=_mode: F.pad(x, (2, 1), mode=m), (2, 3, 5))
    _add("Resizing", f"pad({_mode}, 2d)", lambda x, m=_mode: F.pad(x, (2, 1, 1, 2), mode=m), (2, 3, 5, 4))
_add("Resizing", "pad(constant, cutting)", lambda x: F.pad(x, (-1, 2)), (2, 3, 5))
_GRID = torch.stack(
    torch.meshgrid(torch.linspace(-1.1, 0.9, 5), torch.linspace(-0.8, 1.2, 5), indexing="ij"), -1
).expand(2, 5, 5, 2)
for _mode in ("bilinear", "nearest"):
    for _pad in ("zeros", "border", "reflection"):
        _add(
            "Resizing",
            f"grid_sample({_mode}, {_pad})",
            lambda x, m=_mode, p=_pad: F.grid_sample(x, _GRID, m, p, align_corners=False),
            (2, 3, 4, 5),
        )
_add(
    "Resizing",
    "grid_sample of a trained grid",
    lambda x, g: F.grid_sample(x, g.tanh(), align_corners=True),
    (2, 3, 4, 5),
    (2, 3, 3, 2),
)
_add("Resizing", "affine_grid", lambda t: F.affine_grid(t, [2, 3, 4, 5], align_corners=False), (2, 2, 3))

# -- indexing and assignment


def _assigned(x: Tensor, write: Callable[[Tensor, Tensor], None]) -> Tensor:
    z = torch.zeros(len(x), 16)
    write(z, x)
    return z


def _put(index: Any, take: Any = slice(None)) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        z = x.new_zeros(len(x), 16)
        z[index] = x[take] if take is not None else 1.0
        return z * 1.5 + x.sum()

    return function


_ROWS = torch.tensor([2, 0, 1, 0])


def _plus(x: Tensor, index: Any) -> Tensor:
    z = x.clone()
    z[index] += x[index] * 2 + 1
    return z


def _times(x: Tensor, index: Any) -> Tensor:
    z = x.clone()
    z[index] *= 3
    return z


_add("Indexing", "z[:, 2:14] = x", _put((slice(None), slice(2, 14))), (4, 12))
_add(
    "Indexing",
    "z[1:3, ::2] = x",
    _put((slice(1, 3), slice(None, None, 2)), (slice(0, 2), slice(0, 8))),
    (4, 12),
)
_add("Indexing", "z[:, tensor] = x", _put((slice(None), torch.arange(12).flip(0))), (4, 12))
_add(
    "Indexing", "z[tensor, tensor] = x", _put((_ROWS, torch.tensor([1, 5, 3, 2])), (slice(None), 3)), (4, 12)
)
_add("Indexing", "z[mask] = 1", _put(_fixed(4, 16) > 0, None), (4, 12))
_add("Indexing", "z[:, 3] = x[:, 0]", _put((slice(None), 3), (slice(None), 0)), (4, 12))
_add("Indexing", "z[..., -1] = x", _put((..., -1), (..., 2)), (4, 12))
_add("Indexing", "z[:, :6] += y", lambda x: _plus(x, (slice(None), slice(0, 6))), (4, 12))
_add("Indexing", "z[tensor] += y", lambda x: _plus(x, torch.tensor([2, 0])), (4, 12))
_add("Indexing", "z[:, tensor] *= 3", lambda x: _times(x, (slice(None), torch.tensor([3, 1]))), (4, 12))
_add("Indexing", "z[1] *= 3", lambda x: _times(x, 1), (4, 12))
_add("Indexing", "x[:, tensor]", lambda x: x[:, torch.tensor([3, 1, 1])], (4, 12))
_add("Indexing", "x[tensor, tensor]", lambda x: x[_ROWS, torch.tensor([3, 1, 1, 5])], (4, 12))
_add("Indexing", "x[:, None, ::2]", lambda x: x[:, None, ::2], (4, 12))
_add("Indexing", "x[..., -3:]", lambda x: x[..., -3:], (4, 12))
_add("Indexing", "gather", lambda x: x.gather(1, torch.tensor([[0, 2], [1, 1], [5, 3], [2, 2]])), (4, 12))
_add("Indexing", "take_along_dim", lambda x: torch.take_along_dim(x, torch.tensor([[0, 2]]), 1), (4, 12))
_add("Indexing", "take", lambda x: torch.take(x, torch.tensor([0, 5, 5])), (4, 12))
_add("Indexing", "index_select", lambda x: x.index_select(1, torch.tensor([2, 2, 0])), (4, 12))
_add("Indexing", "index_add", lambda x, y: x.index_add(0, torch.tensor([1, 1]), y), (4, 6), (2, 6))
_add("Indexing", "index_copy", lambda x, y: x.index_copy(0, torch.tensor([3, 1]), y), (4, 6), (2, 6))
_add("Indexing", "index_fill", lambda x: x.index_fill(1, torch.tensor([3, 1]), 0.5), (4, 6))
_MASK = _fixed(4, 6) > 0
_add("Indexing", "masked_fill", lambda x: x.masked_fill(x.detach() < 0, 0.1) * x, (4, 6))
_add("Indexing", "masked_scatter", lambda x, y: x.masked_scatter(_MASK, y), (4, 6), (4, 6))
_add("Indexing", "where", lambda x, y: torch.where(x > y, x * y, y), (4, 6), (4, 6))
for _reduce in (None, "add"):
    _f = "scatter" if _reduce is None else "scatter_add"
    _add(
        "Indexing",
        _f,
        lambda x, y, f=_f: getattr(x, f)(1, torch.tensor([[0, 3], [1, 2], [5, 4], [2, 0]]), y),
        (4, 6),
        (4, 2),
    )
for _reduce in ("sum", "mean", "amax", "prod"):
    _add(
        "Indexing",
        f"scatter_reduce({_reduce})",
        lambda x, y, r=_reduce: x.scatter_reduce(1, torch.tensor([[0, 3], [1, 2], [5, 4], [2, 0]]), y, r),
        (4, 6),
        (4, 2),
        positive=True,
    )
_add("Indexing", "select_scatter", lambda x, y: torch.select_scatter(x, y, 1, 2), (4, 6), (4,))
_add("Indexing", "slice_scatter", lambda x, y: torch.slice_scatter(x, y, 1, 1, 5, 2), (4, 6), (4, 2))
_add("Indexing", "diagonal_scatter", lambda x, y: torch.diagonal_scatter(x, y), (4, 4), (4,))
_add("Indexing", "as_strided", lambda x: x.as_strided((3, 2), (2, 1), 1), (4, 6))
_add("Indexing", "unfold (Tensor)", lambda x: x.unfold(1, 4, 2).mean(-1), (4, 12))
_add(
    "Indexing",
    "new_empty_strided, filled",
    lambda x: x.new_empty_strided((4, 6), (6, 1)).copy_(x) * 2,
    (4, 6),
)
_add("Indexing", "one_hot of argmax", lambda x: F.one_hot(x.argmax(-1), 6).float() * x, (4, 6))
_add(
    "Indexing",
    "bincount of classes as a sum of one-hot",
    lambda x: F.one_hot(x.argmax(-1), 6).sum(0).float() * x,
    (4, 6),
)
_add("Indexing", "roll", lambda x: x.roll(2, -1) * x, (4, 6))
_add("Indexing", "flip", lambda x: x.flip(1) * x, (4, 6))
_add("Indexing", "rot90", lambda x: torch.rot90(x) * 2, (4, 6))
_add("Indexing", "tril", lambda x: x.tril(-1) + x.triu(1) * 2, (4, 4))
_add("Indexing", "diag_embed", torch.diag_embed, (2, 4))
_add("Indexing", "diagonal", lambda x: x.diagonal(1) * 2, (4, 6))
_add("Indexing", "repeat_interleave", lambda x: x.repeat_interleave(3, 1), (4, 3))
_add("Indexing", "repeat", lambda x: x.repeat(2, 3), (4, 3))
_add("Indexing", "tile", lambda x: x.tile(2, 1, 3), (4, 3))
_add(
    "Indexing",
    "split and cat",
    lambda x: torch.cat([p * n for n, p in enumerate(x.split([1, 2, 3], 1))], 1),
    (4, 6),
)
_add("Indexing", "chunk and stack", lambda x: torch.stack(x.chunk(3, 1), 0), (4, 6))
_add("Indexing", "unbind", lambda x: x.unbind(1)[2] * x.unbind(0)[1].sum(), (4, 6))
_add("Indexing", "meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="ij"), (3,), (4,))
_add("Indexing", "cartesian_prod", lambda x, y: torch.cartesian_prod(x, y), (3,), (4,))
_add("Indexing", "block_diag", lambda x, y: torch.block_diag(x, y), (2, 3), (3, 2))
_add(
    "Indexing",
    "bucketize as a weight",
    lambda x: x * torch.bucketize(x.detach(), torch.linspace(-1, 1, 5)).float(),
    (4, 6),
)

# -- sorting, scans, reductions

_add("Sorting", "sort", lambda x: x.sort(-1).values * torch.arange(6.0), (4, 6))
_add("Sorting", "sort(descending)", lambda x: x.sort(-1, descending=True).values * torch.arange(6.0), (4, 6))
_add("Sorting", "sort, dim=0", lambda x: x.sort(0).values * torch.arange(4.0)[:, None], (4, 6))
_add("Sorting", "argsort and gather", lambda x: x.gather(1, x.argsort(-1)) * torch.arange(6.0), (4, 6))
_add("Sorting", "topk", lambda x: x.topk(3, -1).values * torch.arange(3.0), (4, 6))
_add(
    "Sorting",
    "topk and scatter",
    lambda x: torch.zeros_like(x).scatter(1, x.topk(3, -1).indices, x.topk(3, -1).values.softmax(-1)),
    (4, 6),
)
_add("Sorting", "kthvalue", lambda x: x.kthvalue(3, -1).values, (4, 6))
_add("Sorting", "median", lambda x: x.median(-1).values, (4, 7))
_add("Sorting", "quantile", lambda x: x.quantile(0.3, -1), (4, 7))
_add("Sorting", "msort", lambda x: x.msort() * torch.arange(4.0)[:, None], (4, 6))
_add("Sorting", "max and min", lambda x: x.max(-1).values + x.min(0).values.sum(), (4, 6))
_add("Sorting", "amax", lambda x: x.amax(-1) - x.amin(0).sum(), (4, 6))
_add("Sorting", "aminmax", lambda x: torch.aminmax(x, dim=1)[1], (4, 6))
for _name in ("cumsum", "logcumsumexp"):
    _add("Sorting", _name, lambda x, f=_name: getattr(x, f)(-1), (4, 6))
_add("Sorting", "cumprod", lambda x: x.cumprod(-1), (4, 6), positive=True)
_add("Sorting", "cummax", lambda x: x.cummax(-1).values, (4, 6))
_add("Sorting", "diff", lambda x: x.diff(dim=-1), (4, 6))
for _name, _call in {
    "sum": lambda x: x.sum((0, 2)),
    "mean": lambda x: x.mean(1, keepdim=True),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1),
    "var_mean(correction=0)": lambda x: torch.var_mean(x, -1, correction=0),
    "logsumexp": lambda x: x.logsumexp(-1),
    "norm": lambda x: x.norm(dim=-1),
    "norm(p=1)": lambda x: x.norm(1, -1),
    "norm(p=3)": lambda x: x.norm(3, -1),
    "linalg.vector_norm(inf)": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
    "prod": lambda x: x.prod(-1),
    "nansum": lambda x: x.nansum(-1),
    "count_nonzero as a scale": lambda x: x * x.count_nonzero().float(),
    "any and all as masks": lambda x: x * (x > 0).any(-1, keepdim=True) + x * (x > -9).all(-1, keepdim=True),
    "trapezoid": lambda x: torch.trapezoid(x, dim=-1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(1),
    "softmin": lambda x: F.softmin(x, -1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.roll(1, -1).tanh(), -1),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.roll(1, -1) * 2),
    "cdist": lambda x: torch.cdist(x, x.flip(1) + 0.3),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clip by tensors": lambda x: x.clamp(x.detach() - 1, x.tanh()),
}.items():
    _add("Reductions", _name, _call, (2, 4, 5))

# -- elementwise

for _name in [
    "relu",
    "relu6",
    "elu",
    "selu",
    "celu",
    "leaky_relu",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "hardshrink",
    "softshrink",
    "tanhshrink",
    "softplus",
    "softsign",
    "logsigmoid",
    "silu",
    "mish",
    "gelu",
    "threshold",
]:
    _f = getattr(F, _name)
    _add("Activations", _name, (lambda x: F.threshold(x, 0.1, 0.5)) if _name == "threshold" else _f, (4, 6))
_add("Activations", "gelu(tanh)", lambda x: F.gelu(x, approximate="tanh"), (4, 6))
_add("Activations", "glu", lambda x: F.glu(x), (4, 6))
_add("Activations", "prelu, trained", F.prelu, (2, 3, 4), (3,))
_add("Activations", "rrelu(eval)", lambda x: F.rrelu(x, training=False), (4, 6))
for _name in [
    "exp",
    "expm1",
    "sin",
    "cos",
    "tan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "atan",
    "sigmoid",
    "erf",
    "abs",
    "neg",
    "sign",
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "square",
    "sinc",
]:
    _add("Elementwise", _name, lambda x, f=_name: getattr(torch, f)(x) * x, (4, 6))
for _name in [
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "logit",
    "erfinv",
    "asin",
    "acos",
    "atanh",
    "digamma",
    "lgamma",
    "xlogy",
    "pow",
    "atan2",
    "hypot",
    "fmod",
    "remainder",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "logaddexp",
    "lerp",
    "addcmul",
    "addcdiv",
    "copysign",
]:
    _add(
        "Elementwise",
        _name,
        {
            "xlogy": lambda x: torch.xlogy(x, x + 1),
            "pow": lambda x: x.pow(1.7) + x**-2 + 2**x,
            "atan2": lambda x: torch.atan2(x - 0.5, x * 2),
            "hypot": lambda x: torch.hypot(x, x + 1),
            "fmod": lambda x: torch.fmod(x, 0.3),
            "remainder": lambda x: torch.remainder(x, 0.3),
            "maximum": lambda x: torch.maximum(x, 1 - x),
            "minimum": lambda x: torch.minimum(x, 1 - x),
            "fmax": lambda x: torch.fmax(x, 1 - x),
            "fmin": lambda x: torch.fmin(x, 1 - x),
            "logaddexp": lambda x: torch.logaddexp(x, x * 2),
            "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
            "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
            "addcdiv": lambda x: torch.addcdiv(x, x, x + 1, value=0.5),
            "copysign": lambda x: torch.copysign(x, x - 0.5),
            "erfinv": lambda x: torch.erfinv(x * 0.7),
            "asin": lambda x: torch.asin(x * 0.7),
            "acos": lambda x: torch.acos(x * 0.7),
            "atanh": lambda x: torch.atanh(x * 0.7),
            "logit": lambda x: torch.logit(x * 0.7),
        }.get(_name, lambda x, f=_name: getattr(torch, f)(x)),
        (4, 6),
        positive=True,
    )
_add("Elementwise", "double", lambda x: (x.double() * 2).float(), (4, 6))
_add(
    "Elementwise",
    "complex magnitude",
    lambda x: torch.view_as_complex(x.reshape(4, 3, 2).contiguous()).abs(),
    (4, 6),
)

# -- products and linear algebra

_add("Products", "linear, trained", F.linear, (4, 6), (3, 6), (3,))
_add("Products", "bilinear, trained", F.bilinear, (4, 3), (4, 5), (2, 3, 5), (2,))
_add("Products", "matmul, broadcast", torch.matmul, (2, 1, 3, 4), (5, 4, 2))
_add("Products", "einsum", lambda x, y: torch.einsum("bik,bjk->bij", x, y), (2, 3, 4), (2, 5, 4))
_add(
    "Products", "einsum, three", lambda x, y, z: torch.einsum("bi,bj,ij->b", x, y, z), (2, 3), (2, 4), (3, 4)
)
_add("Products", "tensordot", lambda x, y: torch.tensordot(x, y, 2), (2, 3, 4), (3, 4, 5))
_add("Products", "outer, kron", lambda x, y: torch.kron(torch.outer(x, y), torch.ones(2, 2)), (3,), (4,))
_add(
    "Products",
    "addmm, baddbmm",
    lambda x, y: torch.addmm(x, x, y, beta=0.5) + torch.baddbmm(x[None], x[None], y[None])[0],
    (4, 4),
    (4, 4),
)
_add("Products", "cross", lambda x, y: torch.cross(x, y, dim=-1), (4, 3), (4, 3))
_add("Products", "linalg.inv", lambda x: torch.linalg.inv(x + 3 * torch.eye(3)), (2, 3, 3))
_add(
    "Products", "linalg.solve", lambda x, y: torch.linalg.solve(x + 3 * torch.eye(3), y), (2, 3, 3), (2, 3, 2)
)
_add("Products", "linalg.det", lambda x: torch.linalg.det(x + 3 * torch.eye(3)), (2, 3, 3))
_add("Products", "cholesky", lambda x: torch.linalg.cholesky(x @ x.mT + 3 * torch.eye(3)), (2, 3, 3))
_add("Products", "matrix_power", lambda x: torch.matrix_power(x, 3), (2, 3, 3))
_add("Products", "matrix_exp", lambda x: torch.matrix_exp(x * 0.3), (3, 3))
_add("Products", "rfft", lambda x: torch.fft.rfft(x).abs(), (2, 8))
_add(
    "Products", "irfft of rfft", lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.arange(5.0), n=8), (2, 8)
)
_add(
    "Products",
    "stft",
    lambda x: torch.stft(x, 8, 4, window=torch.hann_window(8), return_complex=True).abs(),
    (2, 32),
)
_add(
    "Products",
    "stft, power by real parts",
    lambda x: torch.view_as_real(torch.stft(x, 8, 4, return_complex=True)).square().sum(-1),
    (2, 32),
)

# -- attention and normalization

for _name, _kw in {
    "no mask": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": torch.ones(3, 3).tril().bool()},
    "float mask": {"attn_mask": _fixed(3, 3)},
    "boolean mask with an empty row": {
        "attn_mask": torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    },
    "scale": {"scale": 0.3},
}.items():
    _add(
        "Attention",
        f"scaled_dot_product_attention({_name})",
        lambda q, k, v, o=_kw: F.scaled_dot_product_attention(q, k, v, **o),
        (2, 2, 3, 4),
        (2, 2, 3, 4),
        (2, 2, 3, 4),
    )
_add(
    "Attention",
    "scaled_dot_product_attention(enable_gqa)",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    (2, 4, 3, 4),
    (2, 2, 3, 4),
    (2, 2, 3, 4),
)
_PADDING = torch.tensor([[False, False, True], [False, False, False]])
for _name, _kw in {
    "plain": {},
    "key_padding_mask": {"key_padding_mask": _PADDING},
    "need_weights=False": {"need_weights": False},
    "attn_mask": {"attn_mask": torch.ones(3, 3).triu(1).bool()},
}.items():
    _mha = _layer(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    _add(
        "Attention",
        f"MultiheadAttention({_name}), frozen",
        lambda x, m=_mha, o=_kw: m(x, x, x, **o)[0],
        (2, 3, 8),
    )
    _add(
        "Attention",
        f"MultiheadAttention({_name}), trained",
        lambda x, w, m=_mha, o=_kw: torch.func.functional_call(m, {"in_proj_weight": w}, (x, x, x), o)[0],
        (2, 3, 8),
        (24, 8),
    )
_encoder = _layer(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2))
_add("Attention", "TransformerEncoder, frozen", lambda x: _encoder(x), (2, 3, 8))
_add(
    "Attention",
    "TransformerEncoder with padding, frozen",
    lambda x: _encoder(x, src_key_padding_mask=_PADDING),
    (2, 3, 8),
)
_add(
    "Attention",
    "TransformerEncoder, causal, frozen",
    lambda x: _encoder(x, mask=torch.ones(3, 3).triu(1).bool(), is_causal=True),
    (2, 3, 8),
)
_decoder = _layer(lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1))
_add(
    "Attention",
    "TransformerDecoder with padding, frozen",
    lambda x, y: _decoder(x, y, memory_key_padding_mask=_PADDING),
    (2, 4, 8),
    (2, 3, 8),
)
_add(
    "Normalization", "layer_norm, trained", lambda x, w, b: F.layer_norm(x, (5,), w, b), (2, 4, 5), (5,), (5,)
)
_add("Normalization", "group_norm, trained", lambda x, w, b: F.group_norm(x, 2, w, b), (2, 4, 5), (4,), (4,))
_add("Normalization", "instance_norm", lambda x: F.instance_norm(x), (2, 4, 5))
_add(
    "Normalization",
    "instance_norm of images, trained",
    lambda x, w, b: F.instance_norm(x, None, None, w, b),
    (2, 4, 5, 3),
    (4,),
    (4,),
)
_add(
    "Normalization",
    "instance_norm, fixed statistics",
    lambda x, w: F.instance_norm(x, torch.full((4,), 0.3), torch.full((4,), 2.0), w, use_input_stats=False),
    (2, 4, 5),
    (4,),
)
_add("Normalization", "rms_norm, trained", lambda x, w: F.rms_norm(x, (5,), w), (2, 4, 5), (5,))
_add("Normalization", "local_response_norm", lambda x: F.local_response_norm(x, 3), (2, 4, 5))
_add(
    "Normalization",
    "batch_norm(eval), trained scale",
    lambda x, w, b: F.batch_norm(x, torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4), w, b),
    (2, 4, 5),
    (4,),
    (4,),
)


def _normed(kind: str) -> Callable[..., Tensor]:
    layer = _layer(lambda: nn.Linear(5, 3))
    if kind == "old":
        layer = nn.utils.weight_norm(layer)
        return lambda x, g, v: torch.func.functional_call(layer, {"weight_g": g, "weight_v": v}, (x,))
    if kind == "new":
        layer = nn.utils.parametrizations.weight_norm(layer)
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        return lambda x, g, v: torch.func.functional_call(layer, dict(zip(names, (g, v), strict=True)), (x,))
    layer = nn.utils.parametrizations.spectral_norm(layer).eval()
    return lambda x, v: torch.func.functional_call(layer, {"parametrizations.weight.original": v}, (x,))


_add("Normalization", "weight_norm (old), trained", _normed("old"), (4, 5), (3, 1), (3, 5))
_add("Normalization", "weight_norm (parametrization), trained", _normed("new"), (4, 5), (3, 1), (3, 5))
_add("Normalization", "spectral_norm, trained", _normed("spectral"), (4, 5), (3, 5))

# -- embeddings

_IDS, _OFFSETS = torch.tensor([[0, 2, 1], [4, 1, 1]]), torch.tensor([0, 2])
_add("Embeddings", "embedding, trained", lambda w: F.embedding(_IDS, w), (5, 3))
_add("Embeddings", "embedding(padding_idx), trained", lambda w: F.embedding(_IDS, w, padding_idx=1), (5, 3))
for _mode in ("sum", "mean", "max"):
    _add(
        "Embeddings",
        f"embedding_bag({_mode}), trained",
        lambda w, m=_mode: F.embedding_bag(_IDS, w, mode=m),
        (5, 3),
    )
    _add(
        "Embeddings",
        f"embedding_bag({_mode}, offsets), trained",
        lambda w, m=_mode: F.embedding_bag(_IDS.flatten(), w, _OFFSETS, mode=m),
        (5, 3),
    )
_add(
    "Embeddings",
    "embedding_bag(sum, weights, padding_idx), trained",
    lambda w, s: F.embedding_bag(_IDS, w, mode="sum", per_sample_weights=s, padding_idx=1),
    (5, 3),
    (2, 3),
)

# -- recurrent layers

for _kind in ("RNN", "RNN(relu)", "GRU", "LSTM"):
    _options = {"nonlinearity": "relu"} if "relu" in _kind else {}
    _make = partial(getattr(nn, _kind.partition("(")[0]), 4, 3, batch_first=True, **_options)
    _rnn = _layer(_make)
    _add("Recurrent", f"{_kind}, frozen", lambda x, m=_rnn: m(x)[0], (2, 5, 4))
    _weights = {n: tuple(p.shape) for n, p in _rnn.named_parameters()}
    _add(
        "Recurrent",
        f"{_kind}, trained",
        lambda x, *w, m=_rnn, n=tuple(_weights): torch.func.functional_call(
            m, dict(zip(n, w, strict=True)), (x,)
        )[0],
        (2, 5, 4),
        *_weights.values(),
    )
    _two = _layer(partial(_make, num_layers=2, bidirectional=True))
    _add("Recurrent", f"{_kind}(2 layers, bidirectional), frozen", lambda x, m=_two: _states(m, x), (2, 5, 4))
    _add(
        "Recurrent",
        f"{_kind}(2 layers, bidirectional), packed",
        lambda x, m=_two: _packed(m, x),
        (2, 3, 4),
    )
_projected = _layer(lambda: nn.LSTM(4, 3, proj_size=2))
_add(
    "Recurrent",
    "LSTM(proj_size), frozen, first states",
    lambda x, h, c, m=_projected: m(x, (h, c))[0],
    (5, 2, 4),
    (1, 2, 2),
    (1, 2, 3),
)
for _kind in ("RNN", "GRU", "LSTM"):
    _cell = _layer(lambda k=_kind: getattr(nn, f"{k}Cell")(4, 3))
    _add("Recurrent", f"{_kind}Cell, frozen", lambda x, m=_cell: m(x), (2, 4))

# -- losses

_CLASSES, _ONES = torch.tensor([1, 0, 3, -100]), torch.tensor([1.0, -1.0, 1.0, 1.0])
for _options in (
    {},
    {"weight": torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0])},
    {"label_smoothing": 0.1},
    {"reduction": "mean"},
):
    _text = ", ".join(_options)
    _add(
        "Losses",
        f"cross_entropy({_text})",
        lambda x, o=_options: F.cross_entropy(x, _CLASSES, **{"reduction": "none", **o}),
        (4, 5),
    )
_add(
    "Losses",
    "cross_entropy(of probabilities)",
    lambda x, y: F.cross_entropy(x, y.softmax(-1), reduction="none"),
    (4, 5),
    (4, 5),
)
_add(
    "Losses",
    "cross_entropy(images)",
    lambda x: F.cross_entropy(x, torch.ones(2, 3, 3, dtype=torch.long), reduction="none"),
    (2, 5, 3, 3),
)
_T = torch.rand(4, 5, generator=torch.Generator().manual_seed(3))
for _name in (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy_with_logits",
    "soft_margin_loss",
    "multilabel_soft_margin_loss",
    "kl_div",
):
    _add("Losses", _name, lambda x, f=_name: getattr(F, f)(x, _T, reduction="none"), (4, 5))
_add(
    "Losses",
    "binary_cross_entropy",
    lambda x: F.binary_cross_entropy(x.sigmoid(), _T, reduction="none"),
    (4, 5),
)
_add("Losses", "poisson_nll_loss", lambda x: F.poisson_nll_loss(x, _T, reduction="none"), (4, 5))
_add(
    "Losses",
    "gaussian_nll_loss",
    lambda x, v: F.gaussian_nll_loss(x, _T, v.exp(), reduction="none"),
    (4, 5),
    (4, 5),
)
_add("Losses", "nll_loss", lambda x: F.nll_loss(x.log_softmax(-1), _CLASSES, reduction="none"), (4, 5))
_add(
    "Losses",
    "hinge_embedding_loss",
    lambda x: F.hinge_embedding_loss(x, _ONES[:, None].expand(4, 5), reduction="none"),
    (4, 5),
)
_add(
    "Losses",
    "margin_ranking_loss",
    lambda x, y: F.margin_ranking_loss(x, y, _ONES, margin=0.3, reduction="none"),
    (4,),
    (4,),
)
_add(
    "Losses",
    "cosine_embedding_loss",
    lambda x, y: F.cosine_embedding_loss(x, y, _ONES, reduction="none"),
    (4, 5),
    (4, 5),
)
_add(
    "Losses",
    "triplet_margin_loss",
    lambda x, y, z: F.triplet_margin_loss(x, y, z, reduction="none"),
    (4, 5),
    (4, 5),
    (4, 5),
)
_add(
    "Losses",
    "multi_margin_loss",
    lambda x: F.multi_margin_loss(x, torch.tensor([1, 0, 3, 2]), reduction="none"),
    (4, 5),
)
_add(
    "Losses",
    "multilabel_margin_loss",
    lambda x: F.multilabel_margin_loss(x, torch.tensor([[1, 0, -1, -1, -1]] * 4), reduction="none"),
    (4, 5),
)
_add(
    "Losses",
    "ctc_loss",
    lambda x: F.ctc_loss(
        x.log_softmax(-1), torch.tensor([[1, 2, 2], [3, 1, 0]]), (4, 3), (3, 2), reduction="none"
    ),
    (4, 2, 5),
)
