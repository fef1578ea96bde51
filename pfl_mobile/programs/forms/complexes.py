"""Complex numbers as pairs of real ones, and Fourier transforms of fixed sizes as matrix products.

No engine has complex tensors. A graph that computes with them between real inputs and outputs, as spectra do, is run
once more with each complex value as its real and its imaginary part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from typing_extensions import override

from pfl_mobile.errors import ExportError
from pfl_mobile.programs.forms.axes import along
from pfl_mobile.programs.forms.constants import outside_traces
from pfl_mobile.programs.origin import Replay

_aten = torch.ops.aten


class Pair(NamedTuple):
    """A complex tensor."""

    re: Tensor
    im: Tensor


def has_complex(graph: fx.GraphModule) -> bool:
    """Whether a traced graph computes with complex numbers."""
    values = (node.meta.get("val") for node in graph.graph.nodes)
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


class AsPairs(Replay):
    """Runs a graph with pairs in place of complex tensors."""

    @override
    def compute(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            value = getattr(self.module, str(n.target))
            return _pair_of_constant(value) if value.is_complex() else value
        if n.op == "placeholder":
            value = super().compute(n)
            if value.is_complex():
                raise ExportError(
                    f"the input {n.target!r} is complex",
                    mend="give its real and imaginary part as two inputs",
                )
            return value
        if n.op == "output":
            args, _ = self.fetch_args_kwargs_from_env(n)
            if any(isinstance(v, Pair) for v in args[0]):
                raise ExportError(
                    "an output is complex", mend="return real and imaginary part, or the magnitude"
                )
            return args[0]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return _call(n.target, args, kwargs, n)


def _pair_of_constant(value: Tensor) -> Pair:
    with outside_traces():
        value = value.detach().resolve_conj().resolve_neg()
        return Pair(value.real.contiguous(), value.imag.contiguous())


def _is_complex(value: Any) -> bool:
    if isinstance(value, list | tuple) and not isinstance(value, Pair):
        return any(_is_complex(v) for v in value)
    return isinstance(value, Pair | complex)


def _call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], node: fx.Node) -> Any:
    described = node.meta.get("val")
    makes = isinstance(described, Tensor) and described.is_complex()
    if not makes and not _is_complex((args, tuple(kwargs.values()))):
        return target(*args, **kwargs)
    rule = _RULES.get(target)
    if rule is not None:
        if target is not _aten.pow.Tensor_Scalar:
            args = tuple(_pair(a) if isinstance(a, complex) else a for a in args)
        return rule(*args, **kwargs)
    if target in _EACH:
        parts = [
            target(*(_part(a, n) for a in args), **{k: _part(v, n) for k, v in kwargs.items()})
            for n in (0, 1)
        ]
        return Pair(*parts)
    raise ExportError(
        f"{target} of complex numbers has no form in real ones",
        mend="compute with torch.view_as_real, or with real and imaginary part",
    )


def _part(value: Any, number: int) -> Any:
    """Real or imaginary part of an argument; flags, sizes and masks are for both."""
    if isinstance(value, Pair | complex):
        return _pair(value)[number]
    if isinstance(value, list | tuple):
        return type(value)(_part(v, number) for v in value)
    if isinstance(value, torch.dtype) and value.is_complex:
        return value.to_real()
    return value


def _pair(value: Any) -> Pair:
    if isinstance(value, Pair):
        return value
    if isinstance(value, Tensor):
        return Pair(value, torch.zeros_like(value))
    number = complex(value)
    return Pair(torch.tensor(number.real), torch.tensor(number.imag))


def _mul(x: Any, y: Any) -> Pair:
    if not _is_complex(x) or not _is_complex(y):
        whole, real = (_pair(x), y) if _is_complex(x) else (_pair(y), x)
        return Pair(whole.re * real, whole.im * real)
    a, b = _pair(x), _pair(y)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _product(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Pair]:
    def form(x: Any, y: Any) -> Pair:
        a, b = _pair(x), _pair(y)
        return Pair(of(a.re, b.re) - of(a.im, b.im), of(a.re, b.im) + of(a.im, b.re))

    return form


def _div(x: Any, y: Any) -> Pair:
    a = _pair(x)
    if not _is_complex(y):
        return Pair(a.re / y, a.im / y)
    b = _pair(y)
    square = b.re * b.re + b.im * b.im
    return Pair((a.re * b.re + a.im * b.im) / square, (a.im * b.re - a.re * b.im) / square)


def _sum_of(sign: float) -> Callable[..., Pair]:
    def form(x: Any, y: Any, *, alpha: Any = 1) -> Pair:
        a, b = _pair(x), _mul(y, alpha) if alpha != 1 else _pair(y)
        return Pair(a.re + sign * b.re, a.im + sign * b.im)

    return form


def _abs(z: Pair) -> Tensor:
    """Exact where squares would overflow or vanish."""
    return torch.hypot(z.re, z.im)


def _sgn(z: Pair) -> Pair:
    size = _abs(z)
    safe = torch.where(size > 0, size, 1.0)
    return Pair(z.re / safe, z.im / safe)


def _conj(z: Pair) -> Pair:
    return Pair(z.re, -z.im)


def _view_as_real(z: Pair) -> Tensor:
    return torch.stack([z.re, z.im], -1)


def _view_as_complex(x: Tensor) -> Pair:
    return Pair(x[..., 0], x[..., 1])


def _polar(size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * torch.cos(angle), size * torch.sin(angle))


def _exp(z: Pair) -> Pair:
    return _polar(torch.exp(z.re), z.im)


def _pow(z: Pair, power: Any) -> Pair:
    if power != int(power.real) or not 1 <= power.real <= 8:
        raise ExportError(f"the power {power} of complex numbers has no form", mend="use products")
    out = z
    for _ in range(int(power.real) - 1):
        out = _mul(out, z)
    return out


def _to_copy(x: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if dtype is None or dtype.is_complex:
        return _pair(x)
    return _pair(x).re.to(dtype)


def _full(size: Sequence[int], value: Any, **_: Any) -> Pair:
    number = complex(value)
    return Pair(torch.full(size, number.real), torch.full(size, number.imag))


def _full_like(x: Any, value: Any, **_: Any) -> Pair:
    return _full(_pair(x).re.shape, value)


# -- Fourier transforms


def _waves(rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, size] of 2 pi j k / size."""
    with outside_traces():
        turns = torch.arange(rows, dtype=torch.float64).unsqueeze(1) * torch.arange(size, dtype=torch.float64)
        angle = 2 * math.pi * (turns % size) / size
        return torch.cos(angle).float(), torch.sin(angle).float()


def _scale(sizes: Sequence[int], normalization: int) -> float:
    count = math.prod(sizes)
    return {0: 1.0, 1: 1 / math.sqrt(count), 2: 1 / count}[normalization]


def _turned(z: Pair, dim: int, *, forward: bool) -> Pair:
    cos, sin = _waves(z.re.shape[dim], z.re.shape[dim])
    sin = -sin if forward else sin
    re, im = z.re.movedim(dim, -1), z.im.movedim(dim, -1)
    last = re.dim() - 1
    new = Pair(along(re, last, cos) - along(im, last, sin), along(re, last, sin) + along(im, last, cos))
    return Pair(new.re.movedim(-1, dim), new.im.movedim(-1, dim))


def _fft_c2c(z: Any, dims: Sequence[int], normalization: int, forward: bool) -> Pair:
    z = _pair(z)
    factor = _scale([z.re.shape[d] for d in dims], normalization)
    for dim in dims:
        z = _turned(z, dim, forward=forward)
    return Pair(z.re * factor, z.im * factor)


def _fft_r2c(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Pair:
    *others, last = (d % x.dim() for d in dims)
    size = x.shape[last]
    factor = _scale([x.shape[d] for d in dims], normalization)
    cos, sin = _waves(size // 2 + 1 if onesided else size, size)
    z = Pair(along(x, last, cos * factor), along(x, last, -sin * factor))
    for dim in others:
        z = _turned(z, dim, forward=True)
    return z


def _fft_c2r(z: Any, dims: Sequence[int], normalization: int, size: int) -> Tensor:
    """The half that is given stands for the other too; its imaginary parts at the ends count for nothing."""
    z = _pair(z)
    *others, last = (d % z.re.dim() for d in dims)
    for dim in others:
        z = _turned(z, dim, forward=False)
    half = size // 2 + 1
    z = Pair(z.re.narrow(last, 0, half), z.im.narrow(last, 0, half))
    cos, sin = _waves(half, size)
    with outside_traces():
        factor = _scale([*(z.re.shape[d] for d in others), size], normalization)
        twice = torch.full((half, 1), 2.0 * factor)
        twice[0] = factor
        if size % 2 == 0:
            twice[-1] = factor
        cos, sin = (cos * twice).t().contiguous(), (sin * twice).t().contiguous()
    return along(z.re, last, cos) - along(z.im, last, sin)


_RULES: dict[Any, Callable[..., Any]] = {
    _aten._fft_r2c.default: _fft_r2c,
    _aten._fft_c2c.default: _fft_c2c,
    _aten._fft_c2r.default: _fft_c2r,
    _aten.view_as_real.default: _view_as_real,
    _aten.view_as_complex.default: _view_as_complex,
    _aten.complex.default: Pair,
    _aten.polar.default: _polar,
    _aten.abs.default: _abs,
    _aten.angle.default: lambda z: torch.atan2(z.im, z.re),
    _aten.sgn.default: _sgn,
    _aten.exp.default: _exp,
    _aten.reciprocal.default: lambda z: _div(1.0, z),
    _aten.pow.Tensor_Scalar: _pow,
    _aten._conj.default: _conj,
    _aten._conj_physical.default: _conj,
    _aten.conj_physical.default: _conj,
    _aten.mul.Tensor: _mul,
    _aten.mul.Scalar: _mul,
    _aten.div.Tensor: _div,
    _aten.div.Scalar: _div,
    _aten.add.Tensor: _sum_of(1.0),
    _aten.add.Scalar: _sum_of(1.0),
    _aten.sub.Tensor: _sum_of(-1.0),
    _aten.mm.default: _product(torch.mm),
    _aten.bmm.default: _product(torch.bmm),
    _aten._to_copy.default: _to_copy,
    _aten.full.default: _full,
    _aten.scalar_tensor.default: lambda value, **_: _full([], value),
    _aten.full_like.default: _full_like,
    _aten.zeros.default: lambda size, **_: _full(size, 0),
    _aten.new_zeros.default: lambda _, size, **__: _full(size, 0),
    _aten.zeros_like.default: lambda x, **_: _full_like(x, 0),
    _aten.ones_like.default: lambda x, **_: _full_like(x, 1),
}
#: Linear maps with real coefficients: the same on both parts.
_EACH = {
    _aten.alias.default,
    _aten.cat.default,
    _aten.clone.default,
    _aten.constant_pad_nd.default,
    _aten.cumsum.default,
    _aten.detach.default,
    _aten.diagonal.default,
    _aten.expand.default,
    _aten.flip.default,
    _aten.gather.default,
    _aten.index.Tensor,
    _aten.index_select.default,
    _aten.mean.default,
    _aten.mean.dim,
    _aten.neg.default,
    _aten.permute.default,
    _aten.repeat.default,
    _aten.reshape.default,
    _aten.resolve_conj.default,
    _aten.resolve_neg.default,
    _aten.roll.default,
    _aten.scatter_add.default,
    _aten.select.int,
    _aten.select_scatter.default,
    _aten.slice.Tensor,
    _aten.slice_scatter.default,
    _aten.split.Tensor,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.stack.default,
    _aten.sum.default,
    _aten.sum.dim_IntList,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.where.self,
}
