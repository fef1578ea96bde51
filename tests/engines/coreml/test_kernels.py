"""Core ML's operators in NumPy, against PyTorch or what their documentation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.engines.coreml.kernels import KERNELS

X = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
T = torch.from_numpy(X)
ABOVE = np.abs(X) + np.float32(0.5)
IDS = np.array([[0, 2, 1, 0], [1, 1, 0, 2]])
FLAT = T.reshape(2, 12)


def run(kind, **arguments):
    return KERNELS[kind]({k: np.asarray(v) if isinstance(v, list) else v for k, v in arguments.items()})


def i32(*values):
    return np.array(values, np.int32)


#: Operator, arguments, and what comes out.
NUMBERS = np.array([[-8, 7, 0, 1, 2, 127], [3, -128, 5, -6, 7, -1]], np.int8)
SCALES = np.array([[0.5, 0.25], [2.0, 0.125]], np.float32)

CASES = {
    "abs": ({"x": X}, T.abs()),
    "acos": ({"x": X / 4}, (T / 4).acos()),
    "add": ({"x": X, "y": X[0]}, T + T[0]),
    "argsort": ({"x": X, "axis": 1, "ascending": True}, T.argsort(1)),
    "asin": ({"x": X / 4}, (T / 4).asin()),
    "atan": ({"x": X}, T.atan()),
    "atanh": ({"x": X / 4}, (T / 4).atanh()),
    "avg_pool": (
        {
            "x": X,
            "kernel_sizes": [2],
            "strides": [2],
            "pad_type": "custom",
            "pad": [1, 1],
            "exclude_padding_from_average": True,
        },
        F.avg_pool1d(T, 2, 2, 1, count_include_pad=False),
    ),
    "band_part": ({"x": X, "lower": -1, "upper": 0}, T.tril()),
    "batch_norm": (
        {"x": X, "mean": X[0, :, 0], "variance": ABOVE[0, :, 0], "gamma": X[1, :, 0], "beta": X[1, :, 1]},
        F.batch_norm(T, T[0, :, 0], torch.from_numpy(ABOVE[0, :, 0]), T[1, :, 0], T[1, :, 1]),
    ),
    "cast": ({"x": X, "dtype": "int32"}, T.int()),
    "ceil": ({"x": X}, T.ceil()),
    "clip": ({"x": X, "alpha": -1.0, "beta": 0.5}, T.clamp(-1, 0.5)),
    "concat": ({"values": [X, X], "axis": 1}, torch.cat([T, T], 1)),
    "cos": ({"x": X}, T.cos()),
    "cosh": ({"x": X}, T.cosh()),
    "crop": ({"x": X[None], "crop_height": [1, 1], "crop_width": [0, 2]}, T[None, :, 1:2, :2]),
    "cumsum": ({"x": X, "axis": 2, "exclusive": True, "reverse": True}, T.flip(2).cumsum(2).flip(2) - T),
    "einsum": ({"values": [X, X], "equation": "abc,adc->bd"}, torch.einsum("abc,adc->bd", T, T)),
    "elu": ({"x": X, "alpha": np.float32(0.7)}, F.elu(T, 0.7)),
    "equal": ({"x": IDS, "y": 1}, torch.from_numpy(IDS) == 1),
    "erf": ({"x": X}, T.erf()),
    "exp": ({"x": X}, T.exp()),
    "exp2": ({"x": X}, T.exp2()),
    "expand_dims": ({"x": X, "axes": [0, -1]}, T[None, ..., None]),
    "fill": ({"shape": [2, 3], "value": np.float32(7)}, torch.full((2, 3), 7.0)),
    "fill_like": ({"ref_tensor": X, "value": np.float32(7)}, torch.full_like(T, 7.0)),
    "floor": ({"x": X}, T.floor()),
    "floor_div": ({"x": X, "y": np.float32(0.7)}, torch.floor_divide(T, 0.7)),
    "gather": ({"x": X, "indices": IDS, "axis": 1}, T[:, torch.from_numpy(IDS)]),
    "gather_along_axis": (
        {"x": X, "indices": IDS[:, None, :] % 3, "axis": 1},
        T.gather(1, torch.from_numpy(IDS[:, None, :] % 3)),
    ),
    "gather_nd": ({"x": X, "indices": np.array([[0, 2], [1, 1]])}, T[[0, 1], [2, 1]]),
    "gelu": ({"x": X, "mode": "EXACT"}, F.gelu(T)),
    "greater": ({"x": X, "y": X[0]}, T[0] < T),
    "greater_equal": ({"x": X, "y": X[0]}, T[0] <= T),
    "identity": ({"x": X}, T),
    "inverse": ({"x": ABOVE, "epsilon": 0.0}, 1 / torch.from_numpy(ABOVE)),
    "layer_norm": (
        {"x": X, "axes": [-1], "gamma": X[0, 0], "beta": X[0, 1], "epsilon": 1e-5},
        F.layer_norm(T, [4], T[0, 0], T[0, 1]),
    ),
    "leaky_relu": ({"x": X, "alpha": np.float32(0.1)}, F.leaky_relu(T, 0.1)),
    "less": ({"x": X, "y": X[0]}, T[0] > T),
    "less_equal": ({"x": X, "y": X[0]}, T[0] >= T),
    "linear": ({"x": X, "weight": X[0], "bias": X[1, :, 0]}, F.linear(T, T[0], T[1, :, 0])),
    "linear_activation": ({"x": X, "alpha": np.float32(2), "beta": np.float32(1)}, T * 2 + 1),
    "log": ({"x": ABOVE}, torch.from_numpy(ABOVE).log()),
    "logical_and": ({"x": X > 0, "y": X < 1}, (T > 0) & (T < 1)),
    "logical_not": ({"x": X > 0}, ~(T > 0)),
    "logical_or": ({"x": X > 0, "y": X < -1}, (T > 0) | (T < -1)),
    "logical_xor": ({"x": X > 0, "y": X < 1}, (T > 0) ^ (T < 1)),
    "matmul": ({"x": X, "y": X, "transpose_x": True, "transpose_y": False}, T.mT @ T),
    "max_pool": (
        {"x": X, "kernel_sizes": [3], "strides": [2], "pad_type": "custom", "pad": [1, 1]},
        F.max_pool1d(T, 3, 2, 1),
    ),
    "maximum": ({"x": X, "y": X[0]}, torch.maximum(T, T[0])),
    "minimum": ({"x": X, "y": X[0]}, torch.minimum(T, T[0])),
    "mod": ({"x": X, "y": np.float32(0.7)}, torch.remainder(T, 0.7)),
    "mul": ({"x": X, "y": X[0]}, T * T[0]),
    "not_equal": ({"x": IDS, "y": 1}, torch.from_numpy(IDS) != 1),
    "one_hot": ({"indices": IDS, "one_hot_vector_size": 3}, F.one_hot(torch.from_numpy(IDS), 3)),
    "constexpr_blockwise_shift_scale": (
        {"data": NUMBERS, "scale": SCALES, "offset": np.ones((2, 2), np.int8)},
        (torch.from_numpy(NUMBERS).float() - 1) * torch.from_numpy(SCALES).repeat_interleave(3, 1),
    ),
    "constexpr_affine_dequantize": (
        {"quantized_data": NUMBERS, "scale": SCALES[:, 0], "zero_point": np.int8(-3), "axis": i32(0)[0]},
        (torch.from_numpy(NUMBERS).float() + 3) * torch.from_numpy(SCALES[:, :1]),
    ),
    "pad": (
        {"x": X, "pad": [0, 1, 2, 0], "mode": "constant", "constant_val": 5.0},
        F.pad(T, (2, 0, 0, 1), value=5),
    ),
    "pixel_shuffle": (
        {"x": X.reshape(1, 4, 2, 3), "upscale_factor": 2},
        F.pixel_shuffle(T.reshape(1, 4, 2, 3), 2),
    ),
    "pow": ({"x": ABOVE, "y": np.float32(1.5)}, torch.from_numpy(ABOVE).pow(1.5)),
    "range_1d": ({"start": i32(2)[0], "end": i32(9)[0], "step": i32(3)[0]}, torch.arange(2, 9, 3)),
    "real_div": ({"x": X, "y": ABOVE}, T / torch.from_numpy(ABOVE)),
    "reduce_argmax": ({"x": X, "axis": 1, "keep_dims": False}, T.argmax(1)),
    "reduce_argmin": ({"x": X, "axis": 1, "keep_dims": True}, T.argmin(1, keepdim=True)),
    "reduce_l1_norm": ({"x": X, "axes": [1], "keep_dims": False}, T.abs().sum(1)),
    "reduce_l2_norm": ({"x": X, "axes": [1], "keep_dims": False}, T.norm(dim=1)),
    "reduce_log_sum": ({"x": ABOVE, "axes": [1], "keep_dims": False}, torch.from_numpy(ABOVE).sum(1).log()),
    "reduce_log_sum_exp": ({"x": X * 99, "axes": [1, 2], "keep_dims": False}, (T * 99).logsumexp((1, 2))),
    "reduce_max": ({"x": X, "axes": [1, 2], "keep_dims": True}, T.amax((1, 2), keepdim=True)),
    "reduce_mean": ({"x": X, "axes": [0, 2], "keep_dims": False}, T.mean((0, 2))),
    "reduce_min": ({"x": X, "axes": [0], "keep_dims": False}, T.amin(0)),
    "reduce_prod": ({"x": X, "axes": [2], "keep_dims": False}, T.prod(2)),
    "reduce_sum": ({"x": X, "axes": [-1], "keep_dims": True}, T.sum(-1, keepdim=True)),
    "reduce_sum_square": ({"x": X, "axes": [1], "keep_dims": False}, (T * T).sum(1)),
    "relu": ({"x": X}, T.relu()),
    "relu6": ({"x": X * 4}, F.relu6(T * 4)),
    "reshape": ({"x": X, "shape": [0, -1]}, T.reshape(2, 12)),
    "reverse": ({"x": X, "axes": [0, 2]}, T.flip(0, 2)),
    "round": ({"x": X * 2}, (T * 2).round()),
    "rsqrt": ({"x": ABOVE}, torch.from_numpy(ABOVE).rsqrt()),
    "scaled_tanh": ({"x": X, "alpha": np.float32(2), "beta": np.float32(0.5)}, 2 * (T * 0.5).tanh()),
    "scatter": (
        {"data": X, "indices": np.array([1, 1]), "updates": X[:, :2], "axis": 1, "mode": "add"},
        T.index_add(1, torch.tensor([1, 1]), T[:, :2]),
    ),
    "scatter_along_axis": (
        {"data": X[:, 0], "indices": IDS, "updates": X[:, 1], "axis": 1, "mode": "add"},
        T[:, 0].scatter_add(1, torch.from_numpy(IDS), T[:, 1]),
    ),
    "scatter_nd": (
        {
            "data": X[0],
            "indices": np.array([[0, 1], [2, 3]]),
            "updates": np.float32([9, 8]),
            "mode": "update",
        },
        T[0].index_put((torch.tensor([0, 2]), torch.tensor([1, 3])), torch.tensor([9.0, 8.0])),
    ),
    "select": ({"cond": X > 0, "a": X, "b": np.float32(7)}, torch.where(T > 0, T, torch.tensor(7.0))),
    "shape": ({"x": X}, torch.tensor([2, 3, 4])),
    "sigmoid": ({"x": X * 40}, (T * 40).sigmoid()),
    "sigmoid_hard": (
        {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.5)},
        (T * 0.2 + 0.5).clamp(0, 1),
    ),
    "sign": ({"x": X}, T.sign()),
    "silu": ({"x": X}, F.silu(T)),
    "sin": ({"x": X}, T.sin()),
    "sinh": ({"x": X}, T.sinh()),
    "slice_by_index": (
        {
            "x": X,
            "begin": [0, 1, 3],
            "end": [0, 3, 0],
            "stride": [1, 1, 2],
            "begin_mask": [True, False, True],
            "end_mask": [True, False, True],
            "squeeze_mask": [False] * 3,
        },
        T[:, 1:3, ::2],
    ),
    "slice_by_size": ({"x": X, "begin": [0, 1, 1], "size": [2, 2, -1]}, T[:, 1:3, 1:]),
    "slice_update": (
        {"x": X, "update": X[:, :1], "begin": [0, 1, 0], "end": [2, 2, 4]},
        torch.cat([T[:, :1], T[:, :1], T[:, 2:]], 1),
    ),
    "softmax": ({"x": X * 99, "axis": 1}, (T * 99).softmax(1)),
    "softplus": ({"x": X * 40}, F.softplus(T * 40)),
    "softsign": ({"x": X}, F.softsign(T)),
    "split": ({"x": X, "axis": 2, "split_sizes": [1, 3]}, T.split([1, 3], 2)),
    "sqrt": ({"x": ABOVE}, torch.from_numpy(ABOVE).sqrt()),
    "square": ({"x": X}, T * T),
    "squeeze": ({"x": X[:, :1], "axes": [1]}, T[:, 0]),
    "stack": ({"values": [X, X], "axis": 1}, torch.stack([T, T], 1)),
    "sub": ({"x": X, "y": X[0]}, T - T[0]),
    "tan": ({"x": X / 4}, (T / 4).tan()),
    "tanh": ({"x": X}, T.tanh()),
    "thresholded_relu": ({"x": X, "alpha": np.float32(1)}, torch.where(T >= 1, T, torch.tensor(0.0))),
    "tile": ({"x": X, "reps": [1, 2, 1]}, T.repeat(1, 2, 1)),
    "topk": ({"x": X, "k": 2, "axis": 1}, T.topk(2, 1)),
    "transpose": ({"x": X, "perm": [2, 0, 1]}, T.permute(2, 0, 1)),
}


@pytest.mark.parametrize("kind", CASES)
def test_an_operator_is_pytorchs(kind):
    arguments, want = CASES[kind]
    got = run(kind, **arguments)
    pairs = zip(got, want, strict=True) if isinstance(got, list) else [(got, want)]
    for one, other in pairs:
        np.testing.assert_allclose(one, np.asarray(other), rtol=2e-6, atol=2e-6)


def test_every_operator_is_tested():
    assert set(CASES) | {"conv", "conv_transpose"} == set(KERNELS)


def test_blocks_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="4 blocks of 6"):
        run("constexpr_blockwise_shift_scale", data=NUMBERS, scale=np.ones((2, 4), np.float32))


@pytest.mark.parametrize("mode", ["TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_the_other_gelus(mode):
    want = F.gelu(T, approximate="tanh") if mode.startswith("TANH") else T * (1.702 * T).sigmoid()
    np.testing.assert_allclose(run("gelu", x=X, mode=mode), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("what", [{"interleave": True, "axis": 0, "values": [X]}])
def test_an_option_that_is_not_computed_is_no_silent_mistake(what):
    with pytest.raises(NotImplementedError, match="interleave"):
        KERNELS["concat"](what)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_convolutions_are_pytorchs(data):
    space = data.draw(st.integers(1, 2))

    def each(least, most):
        return data.draw(st.lists(st.integers(least, most), min_size=space, max_size=space))

    kernel, strides, pads, dilations, size = each(1, 3), each(1, 3), each(0, 2), each(1, 2), each(5, 8)
    groups, transposed = data.draw(st.integers(1, 2)), data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 2 * groups, *size, generator=generator)
    shape = (2 * groups, 3) if transposed else (3 * groups, 2)
    weight = torch.randn(*shape, *kernel, generator=generator)
    bias = torch.randn(3 * groups, generator=generator)
    more = [data.draw(st.integers(0, s - 1)) if transposed else 0 for s in strides]
    want = torch.ops.aten.convolution.default(
        x, weight, bias, strides, pads, dilations, transposed, more, groups
    )
    arguments = {
        "x": x.numpy(),
        "weight": weight.numpy(),
        "bias": bias.numpy(),
        "strides": strides,
        "pad_type": "custom",
        "pad": [p for pad in pads for p in (pad, pad)],
        "dilations": dilations,
        "groups": groups,
    }
    if transposed:
        arguments["output_shape"] = list(want.shape)
    got = run("conv_transpose" if transposed else "conv", **arguments)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_same_padding_is_tensorflows():
    x, weight = np.ones((1, 1, 5), np.float32), np.ones((1, 1, 2), np.float32)
    got = run("conv", x=x, weight=weight, pad_type="same", strides=[1])
    assert got.ravel().tolist() == [2, 2, 2, 2, 1]
    got = run("conv", x=x, weight=weight, pad_type="same_lower", strides=[1])
    assert got.ravel().tolist() == [1, 2, 2, 2, 2]


PICKING = ["gather", "gather_along_axis", "gather_nd", "scatter", "scatter_along_axis", "scatter_nd"]


@pytest.mark.parametrize("kind", PICKING)
@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_that_is_not_there_is_an_error(kind, index):
    where = np.array([[index]]) if kind.endswith(("nd", "axis")) else np.array([index])
    axis = 0 if kind.endswith("nd") else 1
    with pytest.raises(IndexError, match="outside"):
        run(kind, x=X[:1, 0], data=X[:1, 0], indices=where, updates=X[:1, 0, :1], axis=axis)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("conv", {"strides": [0]}), ("conv", {"dilations": [-500]}), ("max_pool", {"kernel_sizes": [9]})],
)
def test_a_window_that_looks_outside_is_an_error(kind, wrong):
    with pytest.raises(ValueError, match="window"):
        run(kind, x=X, weight=np.ones((1, 3, 2), np.float32), pad_type="valid", **wrong)
