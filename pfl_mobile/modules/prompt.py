"""Soft prompts: trained vectors before the embedded input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.registry import ModuleConfig, choice, positive, register

if TYPE_CHECKING:
    from pfl_mobile.modules.insertion import Insertion


@register("prompt")
@dataclass(frozen=True)
class SoftPrompt(ModuleConfig):
    """Prepends ``length`` trained vectors to an embedding's output (Lester 2021, arXiv 2104.08691).

    The output [B, length + T, ...] of the model loses its first ``length`` positions again. Limits, checked
    when ``personalize`` gets an example: the backbone takes its length from the embedding's output, not from
    the tokens; a learned position table has room for ``length`` more; masks are built from that length.
    A prompt always changes the output: it is not neutral.

    Tensors: ``prompt`` [length, width] on the embedding.

    Attributes:
        target: path of the embedding (or any layer with output [B, T, width]).
        length: number of vectors, at least 1.
        init: ``vocabulary`` (copies of embedding rows drawn with the seed, as the paper advises) or
            ``normal`` (standard deviation 0.02).
        strip: False when the output has no sequence dimension, as for a classifier that pools.
        width: size of a vector; needed only for a layer of an unknown type without an example input.
    """

    target: str = ""
    length: int = 8
    init: str = "vocabulary"
    strip: bool = True
    width: int | None = None

    position = 30

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target:
            raise ConfigError(
                "SoftPrompt: target is empty", mend='name the embedding, such as target="embed"'
            )
        positive("SoftPrompt", length=self.length, width=1 if self.width is None else self.width)
        choice("SoftPrompt", "init", self.init, ("vocabulary", "normal"))

    @property
    @override
    def neutral(self) -> bool:
        """False: attention sees the prompt."""
        return False

    @override
    def insert(self, site: Insertion) -> None:
        """Add the prompt to the embedding."""
        path, layer = site.one(self.target)
        shape = (site.shapes or {}).get(path)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)) or (shape is not None and len(shape) != 3):
            raise ConfigError(
                f"{site.name}: the output of layer {path!r} is not [batch, length, width]",
                mend="target the token embedding",
            )
        width, _ = site.features(path, layer, self.width)
        generator = site.generator(f"{path}.prompt")
        if self.init == "vocabulary" and isinstance(layer, nn.Embedding):
            rows = torch.randint(0, layer.num_embeddings, (self.length,), generator=generator)
            value = layer.weight.detach()[rows.to(layer.weight.device)]
        else:
            value = 0.02 * torch.randn(self.length, width, generator=generator)
        site.add(path, "prompt", value)
        layer.register_forward_hook(PromptHook())
        if self.strip:
            site.prefix += self.length


class PromptHook:
    """Forward hook that puts the prompt before the embedded input."""

    def __call__(self, layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """Embeddings [B, P + T, width] from [B, T, width]."""
        prompt = layer.prompt
        return torch.cat([prompt.expand(output.shape[0], *prompt.shape), output], dim=1)
