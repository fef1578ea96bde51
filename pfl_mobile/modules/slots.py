"""Vocabulary slots: spare rows of embedding and output for the user's own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.registry import ModuleConfig, positive, register

if TYPE_CHECKING:
    from pfl_mobile.modules.insertion import Insertion

#: Logit of a slot that no word is assigned to; its probability is exactly zero in float32.
UNASSIGNED = -1e9


@register("slots")
@dataclass(frozen=True)
class VocabularySlots(ModuleConfig):
    """Reserves ``count`` token ids V..V+count-1 behind the base vocabulary of V words.

    The device assigns a slot to a word it meets often; its embedding and output row then train. Logits grow
    from [..., V] to [..., V + count]; the first V stay exactly the backbone's. A slot starts as the unknown
    word: its embedding row, output row and output bias. When the output weight is the embedding weight, one
    row serves both, as in the backbone. Slots mean another word for every user, so all tensors are personal.

    Tensors: ``<embedding>.slot_rows`` [count, width]; ``<output>.slot_rows`` [count, width] unless tied;
    ``slots.bias`` [count]; ``slots.active`` [count], 1 for an assigned slot (update ``assign``).

    Attributes:
        embedding: path of the ``nn.Embedding`` over V words.
        output: path of the ``nn.Linear`` that gives V logits.
        count: number of slots.
        unk: id of the unknown word.
        bias: added to the unknown word's output bias at the start.
    """

    embedding: str = ""
    output: str = ""
    count: int = 32
    unk: int = 2
    bias: float = 0.0

    position = 20

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("embedding", "output"):
            if not getattr(self, key):
                raise ConfigError(f"VocabularySlots: {key} is empty", mend=f"name the {key} layer")
        positive("VocabularySlots", count=self.count)
        if self.unk < 0:
            raise ConfigError(f"VocabularySlots: unk={self.unk} is below zero", mend="give a token id")

    @override
    def insert(self, site: Insertion) -> None:
        """Add the rows to the embedding and the output layer."""
        into, embedding = site.one(self.embedding, (nn.Embedding,))
        out, output = site.one(self.output, (nn.Linear,))
        words = embedding.num_embeddings
        if output.out_features != words:
            raise ConfigError(
                f"{site.name}: {into!r} knows {words} words but {out!r} gives {output.out_features} logits",
                mend="name the embedding and the output of the same vocabulary",
            )
        if self.unk >= words:
            raise ConfigError(
                f"{site.name}: unk={self.unk} is outside of the {words} words",
                mend="give the unknown word's id",
            )
        ids = torch.tensor([self.unk], device=embedding.weight.device)
        with torch.no_grad():
            row = embedding(ids)
        tied = output.weight is embedding.weight and torch.equal(row[0], output.weight[self.unk])
        site.add(into, "slot_rows", row.repeat(self.count, 1), private=True)
        if not tied:
            site.add(out, "slot_rows", output.weight[self.unk].repeat(self.count, 1), private=True)
        start = self.bias + (0.0 if output.bias is None else float(output.bias[self.unk]))
        own = nn.Module()
        site.extra(own)
        site.add(site.name, "bias", torch.full((self.count,), start), private=True)
        site.add(site.name, "active", torch.zeros(self.count), update="assign", private=True)
        lookup = SlotLookup(words, self.count, self.unk)
        embedding.register_forward_pre_hook(lookup.before)
        embedding.register_forward_hook(lookup.after)
        output.register_forward_hook(SlotLogits(embedding if tied else output, own))


class SlotLookup:
    """Pair of hooks that let an embedding of V words look up slot ids as well."""

    def __init__(self, words: int, count: int, unk: int) -> None:
        """Hooks for ids below ``words + count``."""
        self.words, self.count, self.unk = words, count, unk
        self._ids: Tensor | None = None

    def before(self, _layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Replace slot ids by the unknown word, which the base table knows."""
        self._ids = inputs[0]
        safe = torch.where(inputs[0] >= self.words, torch.full_like(inputs[0], self.unk), inputs[0])
        return (safe, *inputs[1:])

    def after(self, layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """Put the slots' rows where the ids were slots."""
        ids, self._ids = self._ids, None
        if ids is None:
            raise ConfigError("the embedding was called without its pre-hook", mend="call the module itself")
        ids = ids.unsqueeze(-1)
        # a one-hot product over the few slots: its backward is a small matrix product, not a scatter
        slots = torch.arange(self.words, self.words + self.count, device=ids.device)
        rows = torch.matmul((ids == slots).to(output.dtype), layer.slot_rows)
        return torch.where(ids >= self.words, rows, output)


class SlotLogits:
    """Forward hook that appends the slots' logits to those of the base words."""

    def __init__(self, rows: Any, own: Any) -> None:
        """Hook with the layer that holds ``slot_rows`` and the module that holds ``bias`` and ``active``."""
        self.rows, self.own = rows, own

    def __call__(self, _layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Logits [..., V + count] from [..., V]."""
        logits = F.linear(inputs[0], self.rows.slot_rows, self.own.bias)
        blocked = torch.full_like(logits, UNASSIGNED)
        return torch.cat([output, torch.where(self.own.active > 0.5, logits, blocked)], dim=-1)
