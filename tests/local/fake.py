"""Small numpy models behind the Session protocol, with exact gradients."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.plan.schema import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Tensor:
    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    update: str = "gradient"
    module: str | None = "head"


def spec(name: str, shape: tuple[int, ...], dtype: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, dtype=dtype)


class Linear:
    """softmax(x W^T + b): tensors head.weight (shared) and head.bias (personal)."""

    name = "fake"
    tensors = (Tensor("head.weight", "shared", (3, 4)), Tensor("head.bias", "personal", (3,)))

    def __init__(self, batch: int = 8) -> None:
        inputs = [
            spec("x", (batch, 4), "float32"),
            spec("labels", (batch,), "int64"),
            spec("weight", (batch,), "float32"),
        ]
        inputs += [spec(t.name, t.shape, t.dtype) for t in self.tensors]
        self.programs = {name: SimpleNamespace(inputs=inputs) for name in ("gradients", "evaluate")}
        self.calls = 0
        self.poison_at: int | None = None

    def initial(self) -> dict[str, np.ndarray]:
        return {"head.weight": np.zeros((3, 4), np.float32), "head.bias": np.zeros(3, np.float32)}

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(inputs) == {i.name for i in self.programs[program].inputs}
        for i in self.programs[program].inputs:
            assert (inputs[i.name].shape, inputs[i.name].dtype.name) == (i.shape, i.dtype)
        x, labels, weight = (inputs[k].astype(np.float64) for k in ("x", "labels", "weight"))
        w, b = inputs["head.weight"].astype(np.float64), inputs["head.bias"].astype(np.float64)
        logits = x @ w.T + b
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        hot = np.eye(3)[labels.astype(int)]
        loss = -(weight * np.log(np.maximum((p * hot).sum(axis=1), 1e-300))).sum()
        out = {
            "loss_sum": loss,
            "weight_sum": weight.sum(),
            "top1_sum": (weight * (p.argmax(axis=1) == labels)).sum(),
        }
        if program == "gradients":
            d = weight[:, None] * (p - hot)
            out |= {"grad.head.weight": d.T @ x, "grad.head.bias": d.sum(axis=0)}
            self.calls += 1
            if self.calls == self.poison_at:
                out["grad.head.weight"] = out["grad.head.weight"] * np.nan
        return {k: np.atleast_1d(np.asarray(v, dtype=np.float32)) for k, v in out.items()}

    def close(self) -> None:
        pass


def linear_rows(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Learnable rows: the label is the largest of the first three features, mostly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return {"x": x, "labels": x[:, :3].argmax(axis=1).astype(np.int64), "weight": np.ones(n, np.float32)}


class Unigram:
    """Predicts every token alike, from learned logits, the active slots and the memory's counts."""

    name = "fake"
    V, S, N, T = 8, 3, 16, 6

    def __init__(self, batch: int = 4) -> None:
        total = self.V + self.S
        self.tensors = (
            Tensor("out.bias", "personal", (total,)),
            Tensor("slots.active", "personal", (self.S,), update="assign", module="slots"),
            Tensor("memory.next", "personal", (self.N,), "int64", "memorize", "memory"),
            Tensor("memory.context", "personal", (self.N, 2), "int64", "memorize", "memory"),
        )
        batch_inputs = [
            spec("tokens", (batch, self.T), "int64"),
            spec("labels", (batch, self.T), "int64"),
            spec("weight", (batch, self.T), "float32"),
        ]
        table = [spec(t.name, t.shape, t.dtype) for t in self.tensors]
        self.programs = {
            "gradients": SimpleNamespace(inputs=[*batch_inputs, table[0]]),
            "evaluate": SimpleNamespace(inputs=[*batch_inputs, *table]),
        }

    def initial(self) -> dict[str, np.ndarray]:
        return {t.name: np.zeros(t.shape, t.dtype) for t in self.tensors}

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        labels, weight = inputs["labels"], inputs["weight"].astype(np.float64)
        logits = inputs["out.bias"].astype(np.float64).copy()
        if program == "evaluate":
            logits[self.V :] += (inputs["slots.active"].astype(np.float64) - 1) * 1e9
        p = np.exp(logits - logits.max())
        p /= p.sum()
        if program == "evaluate" and (inputs["memory.next"] > 0).any():
            seen = inputs["memory.next"][inputs["memory.next"] > 0]
            p = 0.5 * p + 0.5 * np.bincount(seen, minlength=len(p)) / len(seen)
        out = {
            "loss_sum": -(weight * np.log(np.maximum(p, 1e-30))[labels]).sum(),
            "weight_sum": weight.sum(),
            "top1_sum": (weight * (labels == p.argmax()) * (labels != 2)).sum(),
        }
        if program == "gradients":
            out["grad.out.bias"] = weight.sum() * p - np.bincount(labels.ravel(), weight.ravel(), len(p))
        return {k: np.atleast_1d(np.asarray(v, dtype=np.float32)) for k, v in out.items()}


class Words:
    """A tiny encoder with the protocol of ``pfl_mobile.text.encoder.TextEncoder``."""

    known = ("<pad>", "<s>", "<unk>", "</s>", "a", "b", "c", "d")
    unknown = 2

    def __init__(self, words: tuple[str, ...] = (), blocked: object = ()) -> None:
        self.words, self.blocked = words, blocked

    def with_words(self, words: object) -> Words:
        return Words(tuple(words), self.blocked)  # type: ignore[call-overload]

    def with_blocked(self, blocked: object) -> Words:
        return Words(self.words, blocked)

    def choose_words(self, texts: object, min_count: int = 2) -> list[str]:
        all_words = [w for t in texts for w in t.split()]  # type: ignore[attr-defined]
        new = {
            w: all_words.count(w)
            for w in all_words
            if w not in (*self.known, *self.words) and w not in self.blocked
        }  # type: ignore[operator]
        return [*self.words, *sorted((w for w in new if new[w] >= min_count), key=lambda w: -new[w])][:3]

    def encode(self, texts: object, *, drop_unknown: bool = False) -> dict[str, np.ndarray]:
        texts = list(texts)  # type: ignore[call-overload]
        out = {k: np.zeros((len(texts), 6), np.int64) for k in ("tokens", "labels")}
        out["weight"] = np.zeros((len(texts), 6), np.float32)
        ids = {w: i for i, w in enumerate((*self.known, *self.words))}
        for row, text in enumerate(texts):
            sequence = [1, *(ids.get(w, 2) for w in text.split())]
            n = len(sequence) - 1
            out["tokens"][row, :n], out["labels"][row, :n] = sequence[:-1], sequence[1:]
            out["weight"][row, :n] = 1
        if drop_unknown:
            out["weight"][out["labels"] == 2] = 0
        return out


def plan(*phases: dict[str, object], **rest: object) -> Plan:
    return Plan.model_validate({"phases": list(phases), **rest})


def sgd(lr: float = 0.5, steps: int | None = 10, **rest: object) -> dict[str, object]:
    return {"kind": "train", "steps": steps, "optimizer": {"kind": "sgd", "lr": lr}, **rest}
