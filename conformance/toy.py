"""The toy models of README.md, and JSON of arrays. See generate.py."""

from __future__ import annotations

import struct
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.random import splitmix64

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


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


#: Words of the word toy, whose ids begin at 4; two slots follow them.
KNOWN = ("see", "you", "home")
FIRST, SLOTS, LENGTH = 4, 2, 3
WORD_TABLE = (
    tensor("e", "shared", (FIRST + len(KNOWN) + SLOTS,)),
    tensor("memory.context", "personal", (5, 2), dtype="int64", update="memorize", module="memory"),
    tensor("memory.next", "personal", (5,), dtype="int64", update="memorize", module="memory"),
    tensor("slots.active", "personal", (SLOTS,), update="assign", module="slots"),
)


class WordEncoder:
    """The encoder of the word toy."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        """With these words in the slots."""
        self.words = tuple(words)

    def with_words(self, words: Sequence[str]) -> WordEncoder:
        """The encoder with other words."""
        return WordEncoder(words)

    def with_blocked(self, blocked: Any) -> WordEncoder:
        """No word is blocked in the vectors."""
        return self

    def choose_words(self, texts: Iterable[str], min_count: int = 2) -> list[str]:
        """Those that have a slot, then unknown ones: the more frequent first, then the earlier in the alphabet."""
        counts = Counter(word for text in texts for word in text.split(" "))
        new = [w for w in counts if counts[w] >= min_count and w not in KNOWN and w not in self.words]
        return [*self.words, *sorted(new, key=lambda w: (-counts[w], w))][:SLOTS]

    def encode(self, texts: Iterable[str], *, drop_unknown: bool = False) -> dict[str, np.ndarray]:
        """A row for each text: 1, its words and 3, as far as there is room."""
        ids = {word: FIRST + i for i, word in enumerate((*KNOWN, *self.words))}
        rows: dict[str, list[list[float]]] = {"tokens": [], "labels": [], "weight": []}
        for text in texts:
            row = [1, *(ids.get(word, 2) for word in text.split(" ")), 3][: LENGTH + 1]
            labels = row[1:] + [0] * (LENGTH + 1 - len(row))
            rows["tokens"].append(row[:-1] + [0] * (LENGTH + 1 - len(row)))
            rows["labels"].append(labels)
            rows["weight"].append([float(x > 0 and not (drop_unknown and x == 2)) for x in labels])
        types = {"tokens": np.int64, "labels": np.int64, "weight": np.float32}
        return {n: np.array(v, types[n]).reshape(len(v), LENGTH) for n, v in rows.items()}


class WordToy:
    """The word toy of README.md."""

    def __init__(self) -> None:
        """Its two programs."""
        batch = [
            ("tokens", (4, LENGTH), "int64"),
            ("labels", (4, LENGTH), "int64"),
            ("weight", (4, LENGTH), "float32"),
        ]
        inputs = [
            SimpleNamespace(name=n, shape=s, dtype=d)
            for n, s, d in (*batch, *((t.name, t.shape, t.dtype) for t in WORD_TABLE))
        ]
        self.programs = {name: SimpleNamespace(inputs=inputs) for name in ("gradients", "evaluate")}

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loss, top1 and gradients in float32, label by label."""
        e = inputs["e"]
        memory = set(
            zip(inputs["memory.next"].tolist(), inputs["memory.context"][:, 0].tolist(), strict=True)
        )
        loss = weight_sum = top1 = np.float32(0)
        grad = np.zeros_like(e)
        for place in np.ndindex(inputs["weight"].shape):
            label, w = int(inputs["labels"][place]), inputs["weight"][place]
            d = e[label] - np.float32(1)
            if (label, int(inputs["tokens"][place])) in memory:
                d = np.float32(0.5) * d
            t = w * d
            grad[label] += t
            loss += np.float32(0.5) * (t * d)
            weight_sum += w
            top1 += w if label != 2 and e[label] > 0 else np.float32(0)
        out = {
            "loss_sum": np.array([loss]),
            "weight_sum": np.array([weight_sum]),
            "top1_sum": np.array([top1]),
        }
        return out if program == "evaluate" else out | {"grad.e": grad}
