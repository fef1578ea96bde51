"""The operators of ML Programs in NumPy, as Core ML's documentation of its intermediate language defines them.

Plain and slow, on purpose: what an export wrote is compared with PyTorch by something that shares no code with the
tool that wrote it. Values of 16 bits are computed in 32 bits and rounded once, as processors do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

#: A NumPy array of the dtype that the program says; the types of NumPy's functions are narrower than what they take.
Array: TypeAlias = Any
#: Arguments by name; what a parameter of several values has is a list.
Arguments = Mapping[str, Any]
Kernel = Callable[[Arguments], Any]

KERNELS: dict[str, Kernel] = {}


def _kernel(*names: str) -> Callable[[Kernel], Kernel]:
    def known(kernel: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, kernel))
        return kernel

    return known


def _ints(value: Any) -> list[int]:
    return [int(v) for v in np.atleast_1d(value)]


def _flag(value: Any) -> bool:
    return bool(np.asarray(value).item())


def _scalar(value: Any) -> Any:
    return np.asarray(value).item()


def _unary(name: str, function: Callable[[Array], Any]) -> None:
    KERNELS[name] = lambda a: function(a["x"])


def _binary(name: str, function: Callable[[Array, Array], Any]) -> None:
    KERNELS[name] = lambda a: function(a["x"], a["y"])


def _erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    # the form whose exponential cannot overflow, on each side of zero
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


_OF_ONE: dict[str, Any] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": _erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.array,
    "logical_not": np.logical_not,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": np.rint,  # halves to even numbers
    "sigmoid": _sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * _sigmoid(x),
    "sin": np.sin,
    "sinh": np.sinh,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
for _name, _function in _OF_ONE.items():
    _unary(_name, _function)


_OF_TWO: dict[str, Any] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "real_div": np.true_divide,
    "sub": np.subtract,
}
for _name, _function in _OF_TWO.items():
    _binary(_name, _function)


# what these add to their argument is a parameter, and its value without one is not zero everywhere
KERNELS["log"] = lambda a: np.log(a["x"] + np.float32(_scalar(a.get("epsilon", 1e-45))))
KERNELS["rsqrt"] = lambda a: 1 / np.sqrt(a["x"] + np.float32(_scalar(a.get("epsilon", 1e-12))))
KERNELS["inverse"] = lambda a: 1 / (a["x"] + np.float32(_scalar(a.get("epsilon", 1e-4))))


@_kernel("clip")
def _clip(a: Arguments) -> Array:
    return np.clip(a["x"], a["alpha"], a["beta"])


KERNELS["elu"] = lambda a: np.where(a["x"] >= 0, a["x"], a["alpha"] * np.expm1(np.minimum(a["x"], 0)))
KERNELS["leaky_relu"] = lambda a: np.where(a["x"] >= 0, a["x"], a["alpha"] * a["x"])
KERNELS["linear_activation"] = lambda a: a["x"] * a["alpha"] + a["beta"]
KERNELS["sigmoid_hard"] = lambda a: np.clip(a["x"] * a["alpha"] + a["beta"], 0, 1)
KERNELS["thresholded_relu"] = lambda a: np.where(a["x"] >= a["alpha"], a["x"], 0)
KERNELS["scaled_tanh"] = lambda a: a["alpha"] * np.tanh(a["x"] * a["beta"])


@_kernel("gelu")
def _gelu(a: Arguments) -> Array:
    x, mode = a["x"], a.get("mode", "EXACT")
    if mode == "EXACT":
        return x * 0.5 * (1 + _erf(x / np.float32(math.sqrt(2))))
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return x * 0.5 * (1 + np.tanh(inner))
    return x * _sigmoid(np.float32(1.702) * x)


@_kernel("softmax")
def _softmax(a: Arguments) -> Array:
    axis = int(_scalar(a.get("axis", -1)))
    raised = np.exp(a["x"] - a["x"].max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


@_kernel("cast")
def _cast(a: Arguments) -> Array:
    kinds = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}
    kind = kinds.get(a["dtype"], a["dtype"])
    x = a["x"]
    if np.dtype(kind).kind in "iu" and x.dtype.kind == "f":
        x = np.trunc(x)
    return x.astype(kind)


# --- products


@_kernel("matmul")
def _matmul(a: Arguments) -> Array:
    x, y = a["x"], a["y"]
    if _flag(a.get("transpose_x", False)):
        x = np.swapaxes(x, -1, -2)
    if _flag(a.get("transpose_y", False)):
        y = np.swapaxes(y, -1, -2)
    return np.matmul(x, y)


@_kernel("linear")
def _linear(a: Arguments) -> Array:
    out = np.matmul(a["x"], a["weight"].T)
    return out + a["bias"] if "bias" in a else out


@_kernel("einsum")
def _einsum(a: Arguments) -> Array:
    return np.einsum(a["equation"], *a["values"])


def _padding(a: Arguments, kernel: Sequence[int], space: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and after, of each dimension of space."""
    kind, dims = a.get("pad_type", "valid"), len(kernel)
    if kind == "valid":
        return [(0, 0)] * dims
    if kind == "custom":
        flat = _ints(a["pad"])
        return [(flat[2 * d], flat[2 * d + 1]) for d in range(dims)]
    strides, dilations = (_ints(a.get(n, [1] * dims)) for n in ("strides", "dilations"))
    pads = []
    for size, k, s, d in zip(space, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if kind == "same" else (total - total // 2, total // 2))
    return pads


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """[B, C, *space] -> a view [B, C, *out, *kernel] of what each output sees."""
    space = x.shape[2:]
    if min(*kernel, *strides, *dilations) < 1:
        raise ValueError(f"a window of {kernel}, strides {strides} and dilations {dilations}")
    out = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(space, kernel, strides, dilations, strict=True)
    ]
    if min(out) < 1:
        raise ValueError(f"a window of {kernel} is larger than {space}")
    steps = x.strides[2:]
    return np.lib.stride_tricks.as_strided(
        x,
        (*x.shape[:2], *out, *kernel),
        (
            *x.strides[:2],
            *(t * s for t, s in zip(steps, strides, strict=True)),
            *(t * d for t, d in zip(steps, dilations, strict=True)),
        ),
        writeable=False,
    )


@_kernel("conv")
def _conv(a: Arguments) -> Array:
    x, weight = a["x"], a["weight"]
    dims = x.ndim - 2
    kernel = weight.shape[2:]
    strides, dilations = (_ints(a.get(n, [1] * dims)) for n in ("strides", "dilations"))
    groups = int(_scalar(a.get("groups", 1)))
    x = np.pad(x, [(0, 0), (0, 0), *_padding(a, kernel, x.shape[2:])])
    parts = []
    for xs, ws in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True):
        seen = _windows(xs, kernel, strides, dilations)
        axes = [1, *range(2 + dims, 2 + 2 * dims)]
        parts.append(np.moveaxis(np.tensordot(seen, ws, (axes, list(range(1, 2 + dims)))), -1, 1))
    out = np.concatenate(parts, 1)
    return out + a["bias"].reshape([1, -1] + [1] * dims) if "bias" in a else out


@_kernel("conv_transpose")
def _conv_transpose(a: Arguments) -> Array:
    x, weight = a["x"], a["weight"]
    dims = x.ndim - 2
    kernel = weight.shape[2:]
    strides, dilations = (_ints(a.get(n, [1] * dims)) for n in ("strides", "dilations"))
    groups = int(_scalar(a.get("groups", 1)))
    full = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
    ]
    pads = _padding(a, kernel, full)
    parts = []
    for xs, ws in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True):
        whole = np.zeros((x.shape[0], ws.shape[1], *full), x.dtype)
        for at in itertools.product(*map(range, kernel)):
            where = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(at, dilations, x.shape[2:], strides, strict=True)
            )
            entry: tuple[Any, ...] = (slice(None), slice(None), *at)
            met = np.moveaxis(np.tensordot(xs, ws[entry], ([1], [0])), -1, 1)
            whole[(slice(None), slice(None), *where)] += met
        parts.append(whole)
    out = np.concatenate(parts, 1)
    wanted = (
        _ints(a["output_shape"])[2:]
        if "output_shape" in a
        else [n - b - e for n, (b, e) in zip(full, pads, strict=True)]
    )
    # what the wanted shape has more than was computed are zeros at the end
    more = [max(w + p[0] - n, 0) for w, p, n in zip(wanted, pads, full, strict=True)]
    out = np.pad(out, [(0, 0), (0, 0), *((0, m) for m in more)])
    out = out[(slice(None), slice(None), *(slice(p[0], p[0] + w) for p, w in zip(pads, wanted, strict=True)))]
    return out + a["bias"].reshape([1, -1] + [1] * dims) if "bias" in a else out


def _pooled(a: Arguments, fill: float) -> tuple[Array, list[int], Any]:
    x, kernel = a["x"], _ints(a["kernel_sizes"])
    if _flag(a.get("ceil_mode", False)):
        raise NotImplementedError("pooling with ceil_mode")
    strides = _ints(a.get("strides", [1] * len(kernel)))
    pads = _padding({**a, "strides": strides}, kernel, x.shape[2:])
    wide = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    seen = _windows(wide, kernel, strides, [1] * len(kernel))
    ones = np.pad(np.ones((1, 1, *x.shape[2:]), np.float32), [(0, 0), (0, 0), *pads])
    axes = tuple(range(2 + len(kernel), 2 + 2 * len(kernel)))
    counts = _windows(ones, kernel, strides, [1] * len(kernel)).sum(axes)
    return seen, list(axes), counts


@_kernel("max_pool")
def _max_pool(a: Arguments) -> Array:
    seen, axes, _ = _pooled(a, -np.inf)
    return seen.max(tuple(axes))


@_kernel("avg_pool")
def _avg_pool(a: Arguments) -> Array:
    seen, axes, counts = _pooled(a, 0)
    if _flag(a.get("exclude_padding_from_average", False)):
        return np.asarray(seen.sum(tuple(axes)) / counts)
    return np.asarray(seen.mean(tuple(axes)))


# --- sums and the like


def _reduced(name: str, function: Callable[..., Any]) -> None:
    def kernel(a: Arguments) -> Any:
        axes = tuple(_ints(a["axes"])) if "axes" in a else None
        return function(a["x"], axis=axes, keepdims=_flag(a.get("keep_dims", False)))

    KERNELS[name] = kernel


def _log_sum_exp(x: Array, axis: Any, keepdims: bool) -> Any:
    top = x.max(axis=axis, keepdims=True)
    out = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return out if keepdims else np.squeeze(out, axis)


_OF_AXES: dict[str, Any] = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **k: (x * x).sum(**k),
}
for _name, _function in _OF_AXES.items():
    _reduced(_name, _function)


@_kernel("reduce_argmax")
def _argmax(a: Arguments) -> Array:
    return np.asarray(
        np.argmax(a["x"], int(_scalar(a.get("axis", -1))), keepdims=_flag(a.get("keep_dims", False)))
    )


@_kernel("reduce_argmin")
def _argmin(a: Arguments) -> Array:
    return np.asarray(
        np.argmin(a["x"], int(_scalar(a.get("axis", -1))), keepdims=_flag(a.get("keep_dims", False)))
    )


@_kernel("cumsum")
def _cumsum(a: Arguments) -> Array:
    x, axis = a["x"], int(_scalar(a.get("axis", 0)))
    back = _flag(a.get("reverse", False))
    x = np.flip(x, axis) if back else x
    out = np.cumsum(x, axis, dtype=x.dtype)
    out = out - x if _flag(a.get("exclusive", False)) else out
    return np.flip(out, axis) if back else out


@_kernel("layer_norm")
def _layer_norm(a: Arguments) -> Array:
    x, axes = a["x"], tuple(_ints(a["axes"])) if "axes" in a else None
    centred = x - x.mean(axes, keepdims=True)
    out = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + _scalar(a.get("epsilon", 1e-5)))
    out = out * a["gamma"] if "gamma" in a else out
    return out + a["beta"] if "beta" in a else out


@_kernel("batch_norm")
def _batch_norm(a: Arguments) -> Array:
    shape = [1, -1] + [1] * (a["x"].ndim - 2)
    scale = 1 / np.sqrt(a["variance"] + _scalar(a.get("epsilon", 1e-5)))
    out = (a["x"] - a["mean"].reshape(shape)) * scale.reshape(shape)
    out = out * a["gamma"].reshape(shape) if "gamma" in a else out
    return out + a["beta"].reshape(shape) if "beta" in a else out


# --- shape


@_kernel("reshape")
def _reshape(a: Arguments) -> Array:
    x, wanted = a["x"], _ints(a["shape"])
    # 0 stands for the size that is there
    return x.reshape([x.shape[i] if n == 0 and x.size else n for i, n in enumerate(wanted)])


@_kernel("transpose")
def _transpose(a: Arguments) -> Array:
    return np.transpose(a["x"], _ints(a["perm"]))


@_kernel("expand_dims")
def _expand_dims(a: Arguments) -> Array:
    return np.expand_dims(a["x"], tuple(_ints(a["axes"])))


@_kernel("squeeze")
def _squeeze(a: Arguments) -> Array:
    return np.squeeze(a["x"], tuple(_ints(a["axes"])) if "axes" in a else None)


def _slices(a: Arguments) -> tuple[Any, ...]:
    """Index of ``slice_by_index`` and ``slice_update``."""
    rank = a["x"].ndim

    def mask(name: str) -> list[bool]:
        return [bool(v) for v in np.atleast_1d(a.get(name, [False] * rank))]

    begin, end, stride = _ints(a["begin"]), _ints(a["end"]), _ints(a.get("stride", [1] * rank))
    index: list[Any] = []
    for d, (first, last, whole, to_end) in enumerate(
        zip(begin, end, mask("begin_mask"), mask("end_mask"), strict=True)
    ):
        if mask("squeeze_mask")[d]:
            index.append(first)
        else:
            index.append(slice(None if whole else first, None if to_end else last, stride[d]))
    return tuple(index)


@_kernel("slice_by_index")
def _slice_by_index(a: Arguments) -> Array:
    return a["x"][_slices(a)]


@_kernel("slice_update")
def _slice_update(a: Arguments) -> Array:
    out = a["x"].copy()
    index = _slices(a)
    out[index] = a["update"].reshape(out[index].shape)
    return out


@_kernel("slice_by_size")
def _slice_by_size(a: Arguments) -> Array:
    where = tuple(
        slice(b, None if n == -1 else b + n) for b, n in zip(_ints(a["begin"]), _ints(a["size"]), strict=True)
    )
    return np.asarray(a["x"][where])


@_kernel("concat")
def _concat(a: Arguments) -> Array:
    if _flag(a.get("interleave", False)):
        raise NotImplementedError("concat with interleave")
    return np.concatenate(a["values"], int(_scalar(a["axis"])))


@_kernel("stack")
def _stack(a: Arguments) -> Array:
    return np.stack(a["values"], int(_scalar(a["axis"])))


@_kernel("split")
def _split(a: Arguments) -> list[Array]:
    axis = int(_scalar(a["axis"]))
    if "split_sizes" in a:
        return np.split(a["x"], np.cumsum(_ints(a["split_sizes"]))[:-1].tolist(), axis)
    return np.split(a["x"], int(_scalar(a["num_splits"])), axis)


@_kernel("tile")
def _tile(a: Arguments) -> Array:
    return np.tile(a["x"], _ints(a["reps"]))


@_kernel("pad")
def _pad(a: Arguments) -> Array:
    x, flat = a["x"], _ints(a["pad"])
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    mode = a.get("mode", "constant")
    if mode == "constant":
        return np.pad(x, pairs, constant_values=_scalar(a.get("constant_val", 0)))
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge"}
    return np.pad(x, pairs, mode=modes[mode])


@_kernel("crop")
def _crop(a: Arguments) -> Array:
    (top, bottom), (left, right) = _ints(a["crop_height"]), _ints(a["crop_width"])
    height, width = a["x"].shape[-2:]
    return np.asarray(a["x"][..., top : height - bottom, left : width - right])


@_kernel("reverse")
def _reverse(a: Arguments) -> Array:
    return np.flip(a["x"], tuple(_ints(a["axes"])) if "axes" in a else None)


@_kernel("fill")
def _fill(a: Arguments) -> Array:
    return np.full(_ints(a["shape"]), a.get("value", np.float32(0)))


@_kernel("fill_like")
def _fill_like(a: Arguments) -> Array:
    return np.full(a["ref_tensor"].shape, a.get("value", np.float32(0)))


@_kernel("shape")
def _shape(a: Arguments) -> Array:
    return np.array(a["x"].shape, np.int32)


@_kernel("range_1d")
def _range(a: Arguments) -> Array:
    return np.arange(_scalar(a["start"]), _scalar(a["end"]), _scalar(a["step"])).astype(
        np.asarray(a["start"]).dtype
    )


@_kernel("band_part")
def _band_part(a: Arguments) -> Array:
    x = a["x"]
    lower, upper = int(_scalar(a.get("lower", -1))), int(_scalar(a.get("upper", -1)))
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None]
    keep = ((lower < 0) | (rows - columns <= lower)) & ((upper < 0) | (columns - rows <= upper))
    return np.where(keep, x, 0)


@_kernel("pixel_shuffle")
def _pixel_shuffle(a: Arguments) -> Array:
    x, f = a["x"], int(_scalar(a["upscale_factor"]))
    b, c, h, w = x.shape
    out = x.reshape(b, c // (f * f), f, f, h, w).transpose(0, 1, 4, 2, 5, 3)
    return out.reshape(b, c // (f * f), h * f, w * f)


# --- picking and placing


def _inside(indices: Array, sizes: Any) -> Array:
    """Indices that are there: what others give is not defined.

    Raises:
        IndexError: one is negative or too large.
    """
    if indices.size and ((indices < 0).any() or (indices >= sizes).any()):
        raise IndexError(f"an index outside of {sizes}")
    return indices


@_kernel("select")
def _select(a: Arguments) -> Array:
    return np.where(a["cond"], a["a"], a["b"])


def _points(indices: Array, of: Array) -> tuple[Any, ...]:
    """Coordinates [..., K] as an index of the first K dimensions."""
    return tuple(np.moveaxis(_inside(indices, np.array(of.shape[: indices.shape[-1]])), -1, 0))


@_kernel("gather")
def _gather(a: Arguments) -> Array:
    if int(_scalar(a.get("batch_dims", 0))):
        raise NotImplementedError("gather with batch_dims")
    axis = int(_scalar(a.get("axis", 0)))
    return np.take(a["x"], _inside(a["indices"], a["x"].shape[axis]), axis)


@_kernel("gather_along_axis")
def _gather_along_axis(a: Arguments) -> Array:
    axis = int(_scalar(a.get("axis", 0)))
    return np.take_along_axis(a["x"], _inside(a["indices"], a["x"].shape[axis]), axis)


@_kernel("gather_nd")
def _gather_nd(a: Arguments) -> Array:
    if int(_scalar(a.get("batch_dims", 0))):
        raise NotImplementedError("gather_nd with batch_dims")
    return np.asarray(a["x"][_points(a["indices"], a["x"])])


_PLACE: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _placed(data: Array, index: tuple[Any, ...], updates: Array, mode: str) -> Array:
    out = data.copy()
    if mode == "update":
        out[index] = updates
    else:
        _PLACE[mode].at(out, index, updates)
    return out


@_kernel("scatter_along_axis")
def _scatter_along_axis(a: Arguments) -> Array:
    axis = int(_scalar(a.get("axis", 0)))
    where = _inside(a["indices"], a["data"].shape[axis])
    index = list(np.indices(where.shape))
    index[axis] = where
    return _placed(a["data"], tuple(index), a["updates"], a.get("mode", "add"))


@_kernel("scatter")
def _scatter(a: Arguments) -> Array:
    axis = int(_scalar(a.get("axis", 0)))
    where = _inside(a["indices"], a["data"].shape[axis])
    index: tuple[Any, ...] = (slice(None),) * (axis % a["data"].ndim) + (where,)
    return _placed(a["data"], index, a["updates"], a.get("mode", "add"))


@_kernel("scatter_nd")
def _scatter_nd(a: Arguments) -> Array:
    return _placed(a["data"], _points(a["indices"], a["data"]), a["updates"], a.get("mode", "add"))


@_kernel("one_hot")
def _one_hot(a: Arguments) -> Array:
    axis, size = int(_scalar(a.get("axis", -1))), int(_scalar(a["one_hot_vector_size"]))
    hot = np.moveaxis(np.asarray(a["indices"])[..., None] == np.arange(size), -1, axis)
    return np.where(hot, a.get("on_value", 1), a.get("off_value", 0))


@_kernel("topk")
def _topk(a: Arguments) -> list[Array]:
    x, k, axis = a["x"], int(_scalar(a.get("k", 1))), int(_scalar(a.get("axis", -1)))
    upward = _flag(a.get("ascending", False))
    # equal values keep their order
    order = np.argsort(x if upward else -x, axis, kind="stable").take(range(k), axis)
    return [np.take_along_axis(x, order, axis), order]


@_kernel("argsort")
def _argsort(a: Arguments) -> Array:
    axis = int(_scalar(a.get("axis", -1)))
    return np.argsort(a["x"] if _flag(a.get("ascending", False)) else -a["x"], axis, kind="stable")


@_kernel("constexpr_blockwise_shift_scale")
def _blockwise(a: Arguments) -> Any:
    """``scale * (data - offset)``, each of the two repeated along every axis to the length of the data."""
    data = a["data"].astype(np.float32)

    def whole(of_blocks: Array) -> Array:
        for axis, size in enumerate(data.shape):
            blocks = of_blocks.shape[axis]
            if size % blocks:
                raise ValueError(f"{blocks} blocks of {size} entries")
            of_blocks = np.repeat(of_blocks, size // blocks, axis)
        return of_blocks

    if a.get("offset") is not None:
        data = data - whole(a["offset"].astype(np.float32))
    return whole(a["scale"]) * data


@_kernel("constexpr_affine_dequantize")
def _affine(a: Arguments) -> Any:
    """``scale * (data - zero_point)`` with one scale and zero point, or one for each entry along an axis."""
    data = a["quantized_data"].astype(np.float32)

    def along(value: Any) -> Array:
        value = np.asarray(value, np.float32)
        shape = [1] * data.ndim
        shape[_scalar(a["axis"])] = -1
        return value.reshape(shape) if value.ndim else value

    return along(a["scale"]) * (data - along(a["zero_point"]))
