"""The toy model of README.md, and JSON of arrays. See generate.py."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.random import splitmix64

if TYPE_CHECKING:
    from collections.abc import Mapping


def f64(value: float) -> str:
    """The bits of a float64."""
    return struct.pack(">d", value).hex()


def array(value: np.ndarray) -> dict[str, Any]:
    """An array as JSON."""
    value = np.asarray(value)
    if value.dtype == np.float32:
        return {
            "shape": list(value.shape),
            "f32": " ".join(f"{x:08x}" for x in value.reshape(-1).view(np.uint32)),
        }
    return {"shape": list(value.shape), "i64": [int(x) for x in value.reshape(-1)]}


def arrays(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by name, in order of name."""
    return {name: array(values[name]) for name in sorted(values)}


def draw(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Float32 values in (-scale, scale) that are not round numbers, from our own generator."""
    values = [(splitmix64(seed, i) / 2.0**63 - 1.0) * scale for i in range(int(np.prod(shape)))]
    return np.array(values, dtype=np.float32).reshape(shape)


def tensor(name: str, role: str, shape: tuple[int, ...], **rest: Any) -> Any:
    """A row of a tensor table."""
    return SimpleNamespace(
        **{
            "name": name,
            "role": role,
            "shape": shape,
            "dtype": "float32",
            "update": "gradient",
            "module": "m",
            **rest,
        }
    )


class Toy:
    """The toy model of README.md."""

    def __init__(self) -> None:
        """Its two programs."""
        names = (("x", (4, 2)), ("y", (4, 3)), ("weight", (4,)), ("a", (2,)), ("b", (3,)))
        inputs = [SimpleNamespace(name=n, shape=s, dtype="float32") for n, s in names]
        self.programs = {name: SimpleNamespace(inputs=inputs) for name in ("gradients", "evaluate")}

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loss and gradients in float32, element by element."""
        loss = weight_sum = np.float32(0)
        grads = {n: np.zeros_like(inputs[n]) for n in ("a", "b")}
        for row, weight in enumerate(inputs["weight"]):
            weight_sum += weight
            for name, target in (("a", inputs["x"]), ("b", inputs["y"])):
                for i, theta in enumerate(inputs[name]):
                    d = theta - target[row, i]
                    t = weight * d
                    grads[name][i] += t
                    loss += np.float32(0.5) * (t * d)
        out = {"loss_sum": np.array([loss]), "weight_sum": np.array([weight_sum])}
        return out if program == "evaluate" else out | {f"grad.{n}": g for n, g in grads.items()}
