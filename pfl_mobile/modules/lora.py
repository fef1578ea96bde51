"""Low-rank adaptation of single layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.insertion import TransposedLinear
from pfl_mobile.modules.registry import ModuleConfig, patterns, positive, register

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfl_mobile.modules.insertion import Insertion


_LAYERS = (nn.Linear, TransposedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention, nn.RNNBase)
#: Weights of an ``nn.MultiheadAttention`` that LoRA is added to, and the layer that holds A and B of each.
_PACKED = {"in_proj_weight": "", "out_proj.weight": "out_proj"}


@register("lora")
@dataclass(frozen=True)
class LoRA(ModuleConfig):
    """Adds ``alpha / rank * B(A(x))`` to a layer's output (Hu 2021, arXiv 2106.09685).

    For ``nn.Linear``, ``nn.Embedding``, ``nn.Conv1d``, ``nn.Conv2d``, transformers' ``Conv1D``,
    ``nn.MultiheadAttention``, ``nn.GRU``, ``nn.LSTM`` and ``nn.RNN``. One of A and B starts at zero, so a fresh module
    changes nothing: B, except for Embedding, where it is A (as in the authors' code), so that only the rows of words
    that occur are ever trained. The weights are never merged, except in layers that do not use each weight once: in an
    attention, which reads its weights without calling a layer, ``W + scale * BA`` takes the place of the weights of its
    packed input projection and of its output projection, as in peft; in a recurrent layer, of each weight.

    Tensors of a layer, as Hugging Face peft keeps them (Embedding: A transposed):
        Linear ``lora_A`` [rank, in], ``lora_B`` [out, rank]; Embedding [words, rank], [width, rank];
        Conv [rank, in, *kernel], [out, rank / groups, 1...]; rank has to be a multiple of the groups.
        MultiheadAttention [rank, width], [3 * width, rank], and those of its ``out_proj``; a recurrent layer as Linear
        for each ``weight_<name>``, in ``<name>``: ``ih_l0.lora_A``, ``hh_l0.lora_A``.
        With ``dora``: ``lora_magnitude_vector`` [out], of an Embedding [width].

    Attributes:
        targets: patterns over layer paths, or ``all-linear`` for every linear layer that is called.
        rank: inner size, at least 1.
        alpha: scale numerator; None takes ``rank``, that is scale 1.
        dora: also train the length of each row of ``W + scale * BA`` (DoRA: Liu 2024, arXiv 2402.09353); of an
            embedding, of each column. The row's own length counts as a constant in the backward pass (section 4.3).
    """

    targets: str | Sequence[str] = ()
    rank: int = 8
    alpha: float | None = None
    dora: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("LoRA", self.targets))
        positive("LoRA", rank=self.rank, alpha=self.rank if self.alpha is None else self.alpha)
        if self.rank != int(self.rank):
            raise ConfigError(f"LoRA: rank={self.rank!r} is not whole", mend="give a whole number")
        if not isinstance(self.dora, bool):
            raise ConfigError(f"LoRA: dora={self.dora!r} is neither True nor False", mend="give one of them")

    @override
    def as_dict(self) -> dict[str, Any]:
        values = super().as_dict()
        if not self.dora:
            del values["dora"]  # a manifest without it is one that earlier readers take
        return values

    @property
    def scale(self) -> float:
        """The factor of B(A(x))."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @override
    def insert(self, site: Insertion) -> None:
        """Add A and B to every matched layer."""
        for path, layer in site.find(self.targets, _LAYERS):
            if isinstance(layer, nn.RNNBase):
                self._insert_recurrent(site, path, layer)
                continue
            if isinstance(layer, nn.MultiheadAttention):
                self._insert_packed(site, path, layer)
                continue
            shape_a, shape_b = self._shapes(path, layer)
            if isinstance(layer, nn.Embedding):
                site.add(path, "lora_A", torch.zeros(shape_a))
                b = torch.randn(shape_b, generator=site.generator(f"{path}.lora_B"))
                site.add(path, "lora_B", b)
            else:
                _add_neutral(site, path, shape_a, shape_b)
            if self.dora:
                if getattr(layer, "groups", 1) != 1:
                    raise ConfigError(
                        f"LoRA: layer {path!r} has groups, which DoRA is not defined for",
                        mend="leave this layer out, or use dora=False",
                    )
                if "weight" in layer.__dict__:  # made by a hook, at the next call
                    raise ConfigError(
                        f"LoRA: the weight of layer {path!r} is computed by torch.nn.utils.weight_norm or "
                        "spectral_norm, so that DoRA cannot start from its lengths",
                        mend="use torch.nn.utils.parametrizations.weight_norm or spectral_norm, or dora=False",
                    )
                site.add(path, "lora_magnitude_vector", _lengths(layer, self.scale))
            layer.register_forward_hook((DoRAHook if self.dora else LoRAHook)(self.scale))

    def _insert_packed(self, site: Insertion, path: str, layer: nn.MultiheadAttention) -> None:
        if layer.in_proj_weight is None:
            raise ConfigError(
                f"LoRA: the attention {path!r} has keys or values of another width than its queries, so its "
                "projections are not packed in one",
                mend=f"train it as a whole, Head({path!r}), or use an attention with separate q, k and v layers",
            )
        if self.dora:
            raise ConfigError(
                f"LoRA: the attention {path!r} has packed projections, which DoRA is not defined for",
                mend="use dora=False for it, or an attention with separate q, k and v layers",
            )
        self._insert_merged(site, path, layer, _PACKED)

    def _insert_recurrent(self, site: Insertion, path: str, layer: nn.RNNBase) -> None:
        if self.dora:
            raise ConfigError(
                f"LoRA: {path!r} is a recurrent layer, which DoRA is not defined for",
                mend="use dora=False for it",
            )
        names = [name for name in layer._flat_weights_names if name.startswith("weight_")]
        parts = {name: name.removeprefix("weight_") for name in names}
        for part in parts.values():
            if hasattr(layer, part):
                raise ConfigError(
                    f"LoRA: layer {path!r} has low-rank parts already",
                    mend="let one module only target this layer",
                )
            layer.add_module(part, nn.Module())
        self._insert_merged(site, path, layer, parts)

    def _insert_merged(self, site: Insertion, path: str, layer: nn.Module, parts: Mapping[str, str]) -> None:
        for weight, part in parts.items():
            out, size = _found(layer, weight).shape
            _add_neutral(site, f"{path}.{part}".rstrip("."), (self.rank, size), (out, self.rank))
        hooks = MergedLoRA(self.scale, parts)
        layer.register_forward_pre_hook(hooks.before)
        layer.register_forward_hook(hooks.after, always_call=True)

    def _shapes(self, path: str, layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if isinstance(layer, nn.Linear):
            return (self.rank, layer.in_features), (layer.out_features, self.rank)
        if isinstance(layer, TransposedLinear):
            return (self.rank, layer.weight.shape[0]), (layer.weight.shape[1], self.rank)
        if isinstance(layer, nn.Embedding):
            return (layer.num_embeddings, self.rank), (layer.embedding_dim, self.rank)
        if self.rank % layer.groups:
            raise ConfigError(
                f"LoRA: rank {self.rank} is no multiple of the {layer.groups} groups of layer {path!r}",
                mend=f"take a rank such as {layer.groups}, or leave this layer out",
            )
        ones = (1,) * len(layer.kernel_size)
        return (
            (self.rank, layer.in_channels, *layer.kernel_size),
            (layer.out_channels, self.rank // layer.groups, *ones),
        )


def _add_neutral(site: Insertion, path: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    """A random A, of PyTorch's own bound for a linear or convolution weight (kaiming with a = sqrt(5)), and B zero."""
    bound = 1.0 / math.sqrt(math.prod(shape_a[1:]))
    drawn = torch.empty(shape_a).uniform_(-bound, bound, generator=site.generator(f"{path}.lora_A"))
    site.add(path, "lora_A", drawn)
    site.add(path, "lora_B", torch.zeros(shape_b))


class LoRAHook:
    """Forward hook that adds the low-rank part to the layer's output."""

    def __init__(self, scale: float) -> None:
        """Hook with a fixed scale."""
        self.scale = scale

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Output of the layer plus ``scale * B(A(x))``."""
        return output + self.scaled(layer, inputs[0])

    def scaled(self, layer: Any, x: Tensor) -> Tensor:
        """``scale * B(A(x))``."""
        a, b = layer.lora_A, layer.lora_B
        if isinstance(layer, nn.Linear | TransposedLinear):
            delta = F.linear(F.linear(x, a), b)
        elif isinstance(layer, nn.Embedding):
            delta = F.linear(F.embedding(x, a), b)
        else:
            delta = _convolve(layer, x, a, b)
        return delta if self.scale == 1.0 else self.scale * delta


class DoRAHook(LoRAHook):
    """Forward hook that adds the low-rank part and gives each row of the sum of the weights its trained length."""

    @override
    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """``factor * (W x + scale * B(A(x))) + bias``, the factor being trained length over present length."""
        tail = (1,) * (output.dim() - 2) if isinstance(layer, nn.Conv1d | nn.Conv2d) else ()
        factor = (layer.lora_magnitude_vector / _lengths(layer, self.scale)).reshape(-1, *tail)
        bias = getattr(layer, "bias", None)
        plain = output if bias is None else output - bias.reshape(-1, *tail)
        # so that a fresh module changes nothing, to the last bit
        return output + (factor - 1.0) * plain + factor * self.scaled(layer, inputs[0])


class MergedLoRA:
    """Two hooks that put ``W + scale * BA`` in the place of weights, in a layer that reads them itself or often."""

    def __init__(self, scale: float, parts: Mapping[str, str]) -> None:
        """Hooks with a fixed scale.

        Args:
            scale: of the low-rank part.
            parts: for each path of a weight in the layer, that of the module that holds its A and B.
        """
        self.scale, self.parts = scale, dict(parts)

    def before(self, layer: nn.Module, _inputs: Any) -> None:
        """Hide the weights behind the sums: an attribute of a layer is found before its parameter."""
        merged = {}
        for weight, part in self.parts.items():
            holder: Any = layer.get_submodule(part)
            low_rank = holder.lora_B @ holder.lora_A
            merged[weight] = _found(layer, weight) + (
                low_rank if self.scale == 1.0 else self.scale * low_rank
            )
        for weight, value in merged.items():
            below, _, name = weight.rpartition(".")
            layer.get_submodule(below).__dict__[name] = value
        _list_weights(layer)

    def after(self, layer: nn.Module, _inputs: Any, _output: Any) -> None:
        """Show the weights again."""
        for weight in self.parts:
            below, _, name = weight.rpartition(".")
            layer.get_submodule(below).__dict__.pop(name, None)
        _list_weights(layer)


def _found(layer: nn.Module, weight: str) -> Tensor:
    below, _, name = weight.rpartition(".")
    value: Tensor = getattr(layer.get_submodule(below), name)
    return value


def _list_weights(layer: nn.Module) -> None:
    """Recurrent layers keep a list of their weights beside them."""
    if isinstance(layer, nn.RNNBase):
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _lengths(layer: Any, scale: float) -> Tensor:
    """Euclidean length of each row of ``W + scale * BA``, [out], a constant; of an embedding, of each column."""
    a, b = layer.lora_A.detach().flatten(1), layer.lora_B.detach().flatten(1)
    weight = layer.weight.detach()
    if isinstance(layer, nn.Embedding):
        rows = (weight + scale * F.linear(a, b)).T
    elif isinstance(layer, TransposedLinear):
        rows = weight.T + scale * b @ a
    else:
        rows = weight.flatten(1) + scale * b @ a
    # a row that is zero everywhere stays so
    return rows.square().sum(1).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)


def _convolve(layer: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    inner = convolve(x, a, None, layer.stride, padding, layer.dilation)
    return convolve(inner, b, None, groups=layer.groups)
