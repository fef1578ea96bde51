"""The models of ``bench/peers.py`` for any array library: shapes, values, one batch, and the loss in terms of ``Ops``.

Names are those of PyTorch's modules (``torch_models.py``), so one file of values serves every system. A library gives
its own way of an operation, the fused one where it has one. Only numpy is imported: peers have no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from llama import SMOLLM2_135M, Size

#: An array of the library, or one of numpy.
Array = Any
Values = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Ops(Protocol):
    """What a library must be able to do. Layouts are PyTorch's: pictures [B, C, H, W], weights [out, in]."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """[..., out] from x [..., in] and weight [out, in]."""

    def embedding(self, table: Array, ids: Array) -> Array:
        """[..., width] from table [words, width] and ids [...]."""

    def relu(self, x: Array) -> Array: ...

    def gelu(self, x: Array) -> Array:
        """With the error function, no approximation."""

    def silu(self, x: Array) -> Array: ...

    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        """Over the last axis, epsilon 1e-5."""

    def rms_norm(self, x: Array, weight: Array) -> Array:
        """Over the last axis, epsilon 1e-6."""

    def rotary(self, x: Array) -> Array:
        """Positions turned into x [B, heads, T, d]: halves are paired, base 10000 (Su 2021, arXiv 2104.09864)."""

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        """Causal; q [B, heads, T, d], k and v [B, fewer heads, T, d], each shared by neighbouring heads of q."""

    def split(self, x: Array, heads: int) -> Array:
        """[B, heads, T, d] from [B, T, heads * d]."""

    def merge(self, x: Array) -> Array:
        """[B, T, heads * d] from [B, heads, T, d]."""

    def conv3(self, x: Array, weight: Array, bias: Array) -> Array:
        """[B, out, H-2, W-2] from x [B, in, H, W] and weight [out, in, 3, 3]."""

    def pool2(self, x: Array) -> Array:
        """Largest of each two by two, [B, C, H/2, W/2]."""

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...

    def cross_entropy(self, logits: Array, labels: Array) -> Array:
        """Sum over rows, a scalar, from logits [N, classes] and labels [N]."""


@dataclass(frozen=True)
class Workload:
    """One model, its batch, and what of it is trained.

    Attributes:
        shapes: of all parameters, by PyTorch's name.
        trained: names of those whose gradients a step gives; the others are frozen.
        batch: by the name of an input: its shape, and how many classes or words its entries choose from (None for
            numbers). One is ``labels``, the other the model's input.
        loss: from ``Ops``, all parameters and the batch: the sum over all labels.
        sizes: what PyTorch's module of this model takes.
    """

    name: str
    label: str
    shapes: Shapes
    trained: tuple[str, ...]
    batch: Mapping[str, tuple[tuple[int, ...], int | None]]
    loss: Callable[[Ops, Values, Values], Array]
    sizes: Mapping[str, Any]

    @property
    def input(self) -> str:
        """Name of the model's input in the batch."""
        return next(name for name in self.batch if name != "labels")

    def draw(self) -> dict[str, np.ndarray]:
        """Values of all parameters, float32, the same at every call and in every version of numpy's generator."""
        rng = np.random.default_rng(7)
        found = {}
        for name, shape in self.shapes.items():
            noise = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) > 1:
                found[name] = noise * np.float32(np.prod(shape[1:]) ** -0.5)
            else:
                found[name] = noise * np.float32(0.1) + np.float32("norm" in name and name.endswith("weight"))
        return found

    def draw_batch(self) -> dict[str, np.ndarray]:
        """The batch, float32 and int64."""
        rng = np.random.default_rng(8)
        return {
            name: rng.standard_normal(shape, dtype=np.float32)
            if among is None
            else rng.integers(0, among, shape)
            for name, (shape, among) in self.batch.items()
        }


def _linear(o: Ops, w: Values, name: str, x: Array) -> Array:
    """A linear layer, with the LoRA that it may have: frozen part plus ``B(A(x))``."""
    y = o.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
    if f"{name}.lora_A" in w:
        y = y + o.linear(o.linear(x, w[f"{name}.lora_A"]), w[f"{name}.lora_B"])
    return y


def _linear_shapes(name: str, wide: int, out: int, *, bias: bool = True, rank: int = 0) -> Shapes:
    found: Shapes = {f"{name}.weight": (out, wide)}
    if bias:
        found[f"{name}.bias"] = (out,)
    if rank:
        found |= {f"{name}.lora_A": (rank, wide), f"{name}.lora_B": (out, rank)}
    return found


def _norm(o: Ops, w: Values, name: str, x: Array) -> Array:
    return o.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])


def mlp(inputs: int = 784, hidden: int = 200, rows: int = 32) -> Workload:
    """``sim.workloads.Mlp``, trained as a whole."""
    classes = 62
    shapes = _linear_shapes("hidden", inputs, hidden) | _linear_shapes("output", hidden, classes)

    def loss(o: Ops, w: Values, batch: Values) -> Array:
        hidden = o.relu(_linear(o, w, "hidden", batch["x"]))
        return o.cross_entropy(_linear(o, w, "output", hidden), batch["labels"])

    label = f"MLP {inputs}-{hidden}-{classes}, {rows} rows"
    batch: dict[str, Any] = {"x": ((rows, inputs), None), "labels": ((rows,), classes)}
    return Workload("mlp", label, shapes, tuple(shapes), batch, loss, {"inputs": inputs, "hidden": hidden})


def cnn(rows: int = 32) -> Workload:
    """``sim.workloads.Cnn``, trained as a whole."""
    shapes: Shapes = {"conv1.weight": (32, 1, 3, 3), "conv1.bias": (32,)}
    shapes |= {"conv2.weight": (64, 32, 3, 3), "conv2.bias": (64,)}
    shapes |= _linear_shapes("hidden", 64 * 12 * 12, 128) | _linear_shapes("output", 128, 62)

    def loss(o: Ops, w: Values, batch: Values) -> Array:
        x = o.reshape(batch["x"], (rows, 1, 28, 28))
        x = o.relu(o.conv3(x, w["conv1.weight"], w["conv1.bias"]))
        x = o.pool2(o.relu(o.conv3(x, w["conv2.weight"], w["conv2.bias"])))
        x = o.relu(_linear(o, w, "hidden", o.reshape(x, (rows, 64 * 12 * 12))))
        return o.cross_entropy(_linear(o, w, "output", x), batch["labels"])

    label = f"small CNN (1.2 million parameters), {rows} pictures of 28 x 28"
    batch: dict[str, Any] = {"x": ((rows, 784), None), "labels": ((rows,), 62)}
    return Workload("cnn", label, shapes, tuple(shapes), batch, loss, {})


def decoder(
    words: int = 8000, width: int = 256, layers: int = 4, heads: int = 4, rows: int = 16, length: int = 20
) -> Workload:
    """``gpt.Gpt`` with LoRA r=4 on q and v."""
    shapes: Shapes = {"embed.weight": (words, width), "positions.weight": (length, width)}
    norm: Shapes = {"weight": (width,), "bias": (width,)}
    for block in (f"blocks.{i}" for i in range(layers)):
        shapes |= {f"{block}.{n}.{leaf}": s for n in ("norm1", "norm2") for leaf, s in norm.items()}
        for name in "qkvo":
            shapes |= _linear_shapes(f"{block}.{name}", width, width, rank=4 if name in "qv" else 0)
        shapes |= _linear_shapes(f"{block}.up", width, 4 * width)
        shapes |= _linear_shapes(f"{block}.down", 4 * width, width)
    shapes |= {f"norm.{leaf}": s for leaf, s in norm.items()}
    shapes |= _linear_shapes("output", width, words, bias=False)

    def loss(o: Ops, w: Values, batch: Values) -> Array:
        x = o.embedding(w["embed.weight"], batch["tokens"]) + w["positions.weight"]
        for block in (f"blocks.{i}" for i in range(layers)):
            y = _norm(o, w, f"{block}.norm1", x)
            q, k, v = (o.split(_linear(o, w, f"{block}.{name}", y), heads) for name in "qkv")
            x = x + _linear(o, w, f"{block}.o", o.merge(o.attention(q, k, v)))
            y = o.gelu(_linear(o, w, f"{block}.up", _norm(o, w, f"{block}.norm2", x)))
            x = x + _linear(o, w, f"{block}.down", y)
        logits = _linear(o, w, "output", _norm(o, w, "norm", x))
        return _tokens_loss(o, logits, batch["labels"], (rows * length, words))

    label = (
        f"decoder (vocabulary {words}, width {width}, {layers} layers), {rows} x {length} tokens, LoRA r=4"
    )
    batch = dict.fromkeys(("tokens", "labels"), ((rows, length), words))
    sizes = {"vocabulary": words, "width": width, "layers": layers, "heads": heads, "length": length}
    return Workload("decoder", label, shapes, _lora(shapes), batch, loss, sizes)


def llama(size: Size = SMOLLM2_135M) -> Workload:
    """``LlamaForCausalLM`` of transformers with LoRA r=8 on q and v, one example."""
    head = size.width // size.heads
    shapes: Shapes = {"model.embed_tokens.weight": (size.words, size.width)}
    for block in (f"model.layers.{i}" for i in range(size.layers)):
        for name, out in (("q", size.width), ("k", head * size.key_heads), ("v", head * size.key_heads)):
            rank = 8 if name in "qv" else 0
            shapes |= _linear_shapes(f"{block}.self_attn.{name}_proj", size.width, out, bias=False, rank=rank)
        shapes |= _linear_shapes(f"{block}.self_attn.o_proj", size.width, size.width, bias=False)
        for name in ("gate", "up"):
            shapes |= _linear_shapes(f"{block}.mlp.{name}_proj", size.width, size.inner, bias=False)
        shapes |= _linear_shapes(f"{block}.mlp.down_proj", size.inner, size.width, bias=False)
        shapes |= {
            f"{block}.{n}.weight": (size.width,) for n in ("input_layernorm", "post_attention_layernorm")
        }
    shapes["model.norm.weight"] = (size.width,)

    def loss(o: Ops, w: Values, batch: Values) -> Array:
        x = o.embedding(w["model.embed_tokens.weight"], batch["tokens"])
        for block in (f"model.layers.{i}" for i in range(size.layers)):
            y = o.rms_norm(x, w[f"{block}.input_layernorm.weight"])
            own = f"{block}.self_attn"
            q, k, v = (_linear(o, w, f"{own}.{name}_proj", y) for name in "qkv")
            q, k, v = o.split(q, size.heads), o.split(k, size.key_heads), o.split(v, size.key_heads)
            x = x + _linear(o, w, f"{own}.o_proj", o.merge(o.attention(o.rotary(q), o.rotary(k), v)))
            y = o.rms_norm(x, w[f"{block}.post_attention_layernorm.weight"])
            gate, up = (_linear(o, w, f"{block}.mlp.{name}_proj", y) for name in ("gate", "up"))
            x = x + _linear(o, w, f"{block}.mlp.down_proj", o.silu(gate) * up)
        logits = o.linear(o.rms_norm(x, w["model.norm.weight"]), w["model.embed_tokens.weight"])
        return _tokens_loss(o, logits, batch["labels"], (size.length, size.words))

    label = f"SmolLM2-135M's shape, 1 x {size.length} tokens, LoRA r=8"
    batch = dict.fromkeys(("tokens", "labels"), ((1, size.length), size.words))
    return Workload("smollm2", label, shapes, _lora(shapes), batch, loss, {"size": size})


def _tokens_loss(o: Ops, logits: Array, labels: Array, shape: tuple[int, int]) -> Array:
    return o.cross_entropy(o.reshape(logits, shape), o.reshape(labels, shape[:1]))


def _lora(shapes: Shapes) -> tuple[str, ...]:
    return tuple(name for name in shapes if name.rpartition(".")[2].startswith("lora_"))


WORKLOADS = {workload.name: workload for workload in (mlp(), cnn(), decoder(), llama())}
