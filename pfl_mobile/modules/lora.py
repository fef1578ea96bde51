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
    from collections.abc import Sequence

    from pfl_mobile.modules.insertion import Insertion


_LAYERS = (nn.Linear, TransposedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.RNNBase)


@register("lora")
@dataclass(frozen=True)
class LoRA(ModuleConfig):
    """Adds ``alpha / rank * B(A(x))`` to a layer's output (Hu 2021, arXiv 2106.09685).

    For ``nn.Linear``, ``nn.Embedding``, ``nn.Conv1d``, ``nn.Conv2d`` and transformers' ``Conv1D``; for ``nn.GRU``,
    ``nn.LSTM`` and ``nn.RNN`` it is added to each weight, as they use one at every step. One of A and B
    starts at zero, so a fresh module changes nothing: B, except for Embedding, where it is A (as in the authors'
    code), so that only the rows of words that occur are ever trained. The weights are never merged.

    Tensors of a layer, as Hugging Face peft keeps them (Embedding: A transposed):
        Linear ``lora_A`` [rank, in], ``lora_B`` [out, rank]; Embedding [words, rank], [width, rank];
        Conv [rank, in, *kernel], [out, rank / groups, 1...]; rank has to be a multiple of the groups; a recurrent
        layer as Linear for each ``weight_<name>``, in ``<name>``: ``ih_l0.lora_A``, ``hh_l0.lora_A``.

    Attributes:
        targets: patterns over layer paths, or ``all-linear`` for every linear layer that is called.
        rank: inner size, at least 1.
        alpha: scale numerator; None takes ``rank``, that is scale 1.
    """

    targets: str | Sequence[str] = ()
    rank: int = 8
    alpha: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", patterns("LoRA", self.targets))
        positive("LoRA", rank=self.rank, alpha=self.rank if self.alpha is None else self.alpha)
        if self.rank != int(self.rank):
            raise ConfigError(f"LoRA: rank={self.rank!r} is not whole", mend="give a whole number")

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
            shape_a, shape_b = self._shapes(path, layer)
            if isinstance(layer, nn.Embedding):
                site.add(path, "lora_A", torch.zeros(shape_a))
                site.add(path, "lora_B", torch.randn(shape_b, generator=site.generator(f"{path}.lora_B")))
            else:
                _add_neutral(site, path, shape_a, shape_b)
            layer.register_forward_hook(LoRAHook(self.scale))

    def _insert_recurrent(self, site: Insertion, path: str, layer: nn.RNNBase) -> None:
        for name in [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")]:
            out, size = getattr(layer, name).shape
            part = name.removeprefix("weight_")
            if hasattr(layer, part):
                raise ConfigError(
                    f"LoRA: layer {path!r} has low-rank parts already",
                    mend="let one module only target this layer",
                )
            layer.add_module(part, nn.Module())
            _add_neutral(site, f"{path}.{part}", (self.rank, size), (out, self.rank))
        hook = RecurrentHook(self.scale)
        layer.register_forward_pre_hook(hook.before)
        layer.register_forward_hook(hook.after, always_call=True)

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
        x, a, b = inputs[0], layer.lora_A, layer.lora_B
        if isinstance(layer, nn.Linear | TransposedLinear):
            delta = F.linear(F.linear(x, a), b)
        elif isinstance(layer, nn.Embedding):
            delta = F.linear(F.embedding(x, a), b)
        else:
            delta = _convolve(layer, x, a, b)
        return output + delta if self.scale == 1.0 else output + self.scale * delta


class RecurrentHook:
    """Hooks between which a recurrent layer's weights have their low-rank parts."""

    def __init__(self, scale: float) -> None:
        """Hooks with a fixed scale."""
        self.scale = scale

    def before(self, layer: nn.RNNBase, _inputs: Any) -> None:
        """Add ``scale * B A`` to each weight."""
        weights: list[Tensor] = []
        for name in layer._flat_weights_names:
            weight, part = getattr(layer, name), layer._modules.get(name.removeprefix("weight_"))
            weights.append(weight if part is None else weight + self.scale * (part.lora_B @ part.lora_A))
        layer._flat_weights = weights

    def after(self, layer: nn.RNNBase, _inputs: Any, _output: Any) -> None:
        """Put the layer's own weights back."""
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _convolve(layer: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    inner = convolve(x, a, None, layer.stride, padding, layer.dilation)
    return convolve(inner, b, None, groups=layer.groups)
