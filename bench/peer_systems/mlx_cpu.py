"""MLX on the processor: ``value_and_grad`` of a compiled function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from peer_systems import given
from peer_systems.models import Workload
from peer_systems.running import Running

PACKAGES = ("mlx", "mlx-cpu")


def runtime() -> None:
    """MLX; how many threads its BLAS takes is read from the environment, where it has some."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import mlx.core as mx
    import mlx.nn  # noqa: F401

    mx.set_default_device(mx.cpu)


def files(_: Workload, folder: Path) -> list[Path]:
    """The values are all there is; the program is code of the app."""
    return [given.values_file(folder)]


class MlxOps:
    """``Ops`` in MLX's own functions."""

    def __init__(self) -> None:
        """Import what :func:`runtime` loaded."""
        import mlx.core as mx
        import mlx.nn as nn

        self.mx, self.nn = mx, nn
        self.relu, self.gelu, self.silu = nn.relu, nn.gelu, nn.silu
        self.reshape = mx.reshape

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return x @ weight.T if bias is None else self.mx.addmm(bias, x, weight.T)

    def embedding(self, table: Any, ids: Any) -> Any:
        return table[ids]

    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.mx.fast.layer_norm(x, weight, bias, 1e-5)

    def rms_norm(self, x: Any, weight: Any) -> Any:
        return self.mx.fast.rms_norm(x, weight, 1e-6)

    def rotary(self, x: Any) -> Any:
        return self.mx.fast.rope(x, x.shape[-1], traditional=False, base=10000.0, scale=1.0, offset=0)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        return self.mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")

    def split(self, x: Any, heads: int) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def merge(self, x: Any) -> Any:
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    def conv3(self, x: Any, weight: Any, bias: Any) -> Any:
        y = self.mx.conv2d(x.transpose(0, 2, 3, 1), weight.transpose(0, 2, 3, 1)) + bias
        return y.transpose(0, 3, 1, 2)

    def pool2(self, x: Any) -> Any:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        return self.nn.losses.cross_entropy(logits, labels, reduction="sum")


def load(workload: Workload, folder: Path) -> Running:
    """The values, read by MLX itself, and the compiled function."""
    import mlx.core as mx

    values = mx.load(str(given.values_file(folder)))
    trained = {name: values.pop(name) for name in workload.trained}
    kept = [mx.array(v.astype(np.int32) if v.dtype == np.int64 else v) for v in given.batch(folder).values()]
    batch = dict(zip(given.batch(folder), kept, strict=True))
    ops = MlxOps()

    def loss(own: dict[str, Any], frozen: dict[str, Any], rows: dict[str, Any]) -> Any:
        return workload.loss(ops, {**frozen, **own}, rows)

    # the frozen values are an argument: those that a compiled function closes over are copied into it
    step_of = mx.compile(mx.value_and_grad(loss))

    def step() -> tuple[Any, dict[str, Any]]:
        out = step_of(trained, values, batch)
        mx.eval(out)
        return out

    def gradients() -> dict[str, np.ndarray]:
        return {name: np.array(value) for name, value in step()[1].items()}

    return Running(step, gradients)
