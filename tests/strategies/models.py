"""Convex numpy models behind the Session protocol, and data of users who differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.modules.roles import DeviceTensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfl_mobile.rows import Rows


def info(name: str, role: str, shape: tuple[int, ...]) -> DeviceTensorInfo:
    group = "default" if role == "group" else None
    return DeviceTensorInfo(name, role, group, shape, "float32", "gradient", name.split(".")[0])


def _spec(name: str, shape: tuple[int, ...], dtype: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, dtype=dtype)


class Model:
    """Base: inputs, programs, and sums in float64 that leave as float32."""

    def __init__(
        self, tensors: list[DeviceTensorInfo], rows: dict[str, tuple[tuple[int, ...], str]], batch: int
    ) -> None:
        self.tensors = tensors
        inputs = [_spec(n, (batch, *shape), dtype) for n, (shape, dtype) in rows.items()]
        inputs += [_spec(t.name, t.shape, t.dtype) for t in tensors]
        self.programs = {name: SimpleNamespace(inputs=inputs) for name in ("gradients", "evaluate")}

    def initial(self) -> dict[str, np.ndarray]:
        return {t.name: np.zeros(t.shape, np.float32) for t in self.tensors}

    def losses(
        self, x: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Loss of each row, gradient sums by tensor, further metrics of each row; everything float64."""
        raise NotImplementedError

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = {name: value.astype(np.float64) for name, value in inputs.items()}
        loss, gradients, metrics = self.losses(x)
        out = {"loss_sum": (x["weight"] * loss).sum(), "weight_sum": x["weight"].sum()}
        out |= {f"{name}_sum": (x["weight"] * value).sum() for name, value in metrics.items()}
        if program == "gradients":
            out |= {f"grad.{name}": value for name, value in gradients.items()}
        return {k: np.atleast_1d(np.asarray(v, np.float32)) for k, v in out.items()}


class Softmax(Model):
    """Three classes, ``argmax softmax(W x + b)``: shared weights, and a bias that may be personal."""

    def __init__(self, personal: bool = False, batch: int = 8, role: str = "shared") -> None:
        bias = "personal" if personal else role
        tensors = [info("body.weight", role, (3, 4)), info("head.bias", bias, (3,))]
        rows = {"x": ((4,), "float32"), "labels": ((), "int64"), "weight": ((), "float32")}
        super().__init__(tensors, rows, batch)

    def losses(
        self, x: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        logits = x["x"] @ x["body.weight"].T + x["head.bias"]
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        hot = np.eye(3)[x["labels"].astype(int)]
        d = x["weight"][:, None] * (p - hot)
        loss = -np.log(np.maximum((p * hot).sum(axis=1), 1e-300))
        right = (p.argmax(axis=1) == x["labels"]).astype(float)
        return loss, {"body.weight": d.T @ x["x"], "head.bias": d.sum(axis=0)}, {"top1": right}


class LeastSquares(Model):
    """y = x . w + b with the loss (y - prediction)^2 / 2; ``b`` may be personal."""

    def __init__(self, size: int = 3, personal: bool = False, batch: int = 8) -> None:
        tensors = [info("w", "shared", (size,)), info("b", "personal" if personal else "shared", (1,))]
        rows = {"x": ((size,), "float32"), "y": ((), "float32"), "weight": ((), "float32")}
        super().__init__(tensors, rows, batch)

    def losses(
        self, x: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        residual = x["x"] @ x["w"] + x["b"] - x["y"]
        d = x["weight"] * residual
        return residual**2 / 2, {"w": d @ x["x"], "b": d.sum(keepdims=True)}, {}


class Location(Model):
    """A point w with the loss |x - w|^2 / 2, so one full step of rate 1 reaches the mean of the rows."""

    def __init__(self, size: int, batch: int) -> None:
        rows = {"x": ((size,), "float32"), "weight": ((), "float32")}
        super().__init__([info("w", "shared", (size,))], rows, batch)

    def losses(
        self, x: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        gap = x["w"] - x["x"]
        return (gap**2).sum(axis=1) / 2, {"w": x["weight"] @ gap}, {}


def classes(users: int, n: int = 14, spread: float = 1.0, seed: int = 0) -> list[Rows]:
    """Rows for ``Softmax``: one rule for all, and for each user a bias of its own and another number of rows."""
    rng = np.random.default_rng(seed)
    rule = 2 * rng.normal(size=(3, 4))
    out = []
    for user in range(users):
        x = rng.normal(size=(n + user, 4))
        labels = (x @ rule.T + spread * rng.normal(size=3)).argmax(axis=1)
        out.append(rows_of(x=x, labels=labels.astype(np.int64)))
    return out


def lines(users: int, n: int = 8, size: int = 3, spread: float = 1.0, seed: int = 0) -> list[Rows]:
    """Rows for ``LeastSquares``: weights, bias and scale of the inputs differ by user."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(users):
        x = rng.normal(size=(n, size)) * rng.uniform(0.5, 1.5, size=size)
        y = x @ (1 + spread * rng.normal(size=size)) + spread * rng.normal() + 0.1 * rng.normal(size=n)
        out.append(rows_of(x=x, y=y))
    return out


def rows_of(**arrays: np.ndarray) -> Rows:
    """Rows of weight 1; floating arrays become float32."""
    rows = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in arrays.items()}
    return rows | {"weight": np.ones(len(next(iter(rows.values()))), np.float32)}


def quadratic(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """H and g with gradient H z - g of the mean loss of ``LeastSquares``, z = (w, b), float64."""
    x = np.concatenate([rows["x"], np.ones((len(rows["x"]), 1))], axis=1).astype(np.float64)
    return x.T @ x / len(x), x.T @ rows["y"].astype(np.float64) / len(x)


def flat(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """z = (w, b) of ``LeastSquares``."""
    return np.concatenate([tensors["w"], tensors["b"]]).astype(np.float64)
