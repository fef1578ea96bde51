"""Everybody's n-grams for the keyboard's memory: counts of the backbone's text, discounted and cut to a few."""

from __future__ import annotations

import collections
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pfl_mobile.text import SPECIALS

if TYPE_CHECKING:
    from pfl_mobile.modules.shared_ngrams import SharedNgrams
    from pfl_mobile.text import Rows

#: Taken from every count for words that were not seen (absolute discounting, Ney and others 1994).
DISCOUNT = 0.75

#: Contexts of two tokens seen less often are left out.
LEAST = 2

_Counts = dict[tuple[int, ...], collections.Counter[int]]


@dataclass(frozen=True)
class NgramTable:
    """Values for the buffers of :class:`pfl_mobile.modules.shared_ngrams.SharedNgrams`.

    Attributes:
        words, parts, key: as there; the scores are fitted later.
        features: float32 [rows, 6], what the trust in a row depends on: one, log of how often the context was
            seen and log of how many words followed it, for contexts of one token, then the same for two tokens.
    """

    words: Tensor
    parts: Tensor
    key: Tensor
    features: Tensor

    def scores(self, weights: Tensor, empty: float) -> Tensor:
        """Trust in every row, from weights [6]; ``empty`` for a row without words."""
        used = self.parts.sum(-1) > 0
        return torch.where(used, self.features @ weights, torch.full_like(self.parts[:, 0], empty))


def build_table(rows: Rows, place: SharedNgrams) -> NgramTable:
    """Count encoded messages; deterministic.

    Args:
        rows: from the encoder; labels of weight 0 and special ones are left out.
        place: gives the sizes.
    """
    counts = _count(rows)
    table = NgramTable(
        torch.zeros_like(place.words),
        torch.zeros_like(place.parts),
        torch.full_like(place.key, -1),
        torch.zeros(len(place.words), 6),
    )
    size = place.words.shape[1]
    everything = sum(counts[()].values())
    frequent = {w: n / everything for w, n in counts[()].items()}
    seen = [torch.zeros(place.buckets)]
    for context in sorted(counts):
        total = sum(counts[context].values())
        if not context or (len(context) == 2 and total < LEAST):
            continue
        row = context[0]
        if len(context) == 2:
            bucket = int(place.bucket(torch.tensor(context[0]), torch.tensor(context[1])))
            if total <= seen[0][bucket]:  # the more frequent context keeps the bucket
                continue
            seen[0][bucket] = total
            table.key[bucket] = context[0] * place.vocabulary + context[1]
            row = place.vocabulary + bucket
        chances = _chances(counts, context, frequent)
        best = heapq.nsmallest(size, chances.items(), key=lambda item: (-item[1], item[0]))
        mass = sum(p for _, p in best)
        table.words[row], table.parts[row], table.features[row] = 0, 0.0, 0.0
        table.words[row, : len(best)] = torch.tensor([w for w, _ in best], dtype=torch.int32)
        table.parts[row, : len(best)] = torch.tensor([p / mass for _, p in best])
        about = torch.tensor([1.0, total, len(counts[context])])
        about[1:] = about[1:].log()
        table.features[row, 3 * len(context) - 3 : 3 * len(context)] = about
    return table


def _count(rows: Rows) -> _Counts:
    counts: _Counts = collections.defaultdict(collections.Counter)
    tokens, labels, weight = (rows[name].tolist() for name in ("tokens", "labels", "weight"))
    for before, after, counted in zip(tokens, labels, weight, strict=True):
        for t, word in enumerate(after):
            if counted[t] > 0 and word >= len(SPECIALS):
                counts[()][word] += 1
                counts[(before[t],)][word] += 1
                counts[(before[t - 1] if t else 0, before[t])][word] += 1
    return counts


def _chances(counts: _Counts, context: tuple[int, ...], frequent: dict[int, float]) -> dict[int, float]:
    """Probabilities of the words that followed the context or, for two tokens, its last one."""
    own = counts[context]
    total, left = sum(own.values()), DISCOUNT * len(own) / sum(own.values())
    if len(context) == 1:
        return {w: (n - DISCOUNT) / total + left * frequent[w] for w, n in own.items()}
    shorter = _chances(counts, context[1:], frequent)
    return {w: max(own[w] - DISCOUNT, 0.0) / total + left * p for w, p in shorter.items()}
