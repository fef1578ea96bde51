"""Everybody's n-grams for the keyboard's memory: counts of what several users wrote, discounted and cut to a few."""

from __future__ import annotations

import collections
import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.vocabulary import MIN_USERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.modules.shared_ngrams import SharedNgrams
    from pfl_mobile.text.encoder import Rows

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


def build_table(users: Sequence[Rows], place: SharedNgrams, *, min_users: int = MIN_USERS) -> NgramTable:
    """Count encoded messages; deterministic.

    The table ships to everybody, so a word after a context is only in it where several users wrote it there.

    Args:
        users: rows of each user from the encoder; labels of weight 0 and special ones are left out.
        place: gives the sizes.
        min_users: different users that an n-gram needs.
    """
    counts = _count(users, min_users)
    table = NgramTable(
        torch.zeros_like(place.words),
        torch.zeros_like(place.parts),
        torch.full_like(place.key, -1),
        torch.zeros(len(place.words), 6),
    )
    size = place.words.shape[1]
    everything = sum(counts[()].values())
    frequent = {w: n / everything for w, n in counts[()].items()}
    single = {c[0]: _one(counts[c], frequent) for c in counts if len(c) == 1}
    likeliest = {v: _best(chances, size) for v, chances in single.items()}
    for (v,), about in ((c, counts[c]) for c in counts if len(c) == 1):
        _fill(table, v, likeliest[v], about, 0)
    seen: dict[int, int] = {}
    for context in sorted(c for c in counts if len(c) == 2):
        about, (u, v) = counts[context], context
        total = sum(about.values())
        bucket = int(place.bucket(torch.tensor(u), torch.tensor(v)))
        if total < max(LEAST, seen.get(bucket, 0) + 1):  # the more frequent context keeps the bucket
            continue
        seen[bucket] = total
        table.key[bucket] = u * place.vocabulary + v
        # of the words that only the shorter context knows, no others can be among the best
        words = {*about, *(w for w, _ in likeliest[v])}
        left = DISCOUNT * len(about) / total
        chances = {w: max(about[w] - DISCOUNT, 0.0) / total + left * single[v][w] for w in words}
        _fill(table, place.vocabulary + bucket, _best(chances, size), about, 3)
    return table


def _count(users: Sequence[Rows], min_users: int) -> _Counts:
    """How often which word followed each context, of those that ``min_users`` users wrote."""
    totals: collections.Counter[tuple[tuple[int, ...], int]] = collections.Counter()
    spread: collections.Counter[tuple[tuple[int, ...], int]] = collections.Counter()
    for rows in users:
        own: collections.Counter[tuple[tuple[int, ...], int]] = collections.Counter()
        tokens, labels, weight = (rows[name].tolist() for name in ("tokens", "labels", "weight"))
        for before, after, counted in zip(tokens, labels, weight, strict=True):
            for t, word in enumerate(after):
                if counted[t] > 0 and word >= len(SPECIALS):
                    two = (before[t - 1] if t else 0, before[t])
                    own.update({((), word): 1, (two[1:], word): 1, (two, word): 1})
        totals.update(own)
        spread.update(own.keys())
    counts: _Counts = collections.defaultdict(collections.Counter)
    for (context, word), total in totals.items():
        if spread[context, word] >= min_users:
            counts[context][word] = total
    return counts


def _one(after: collections.Counter[int], frequent: dict[int, float]) -> dict[int, float]:
    """Probabilities of the words that followed one token."""
    total = sum(after.values())
    left = DISCOUNT * len(after) / total
    return {w: (n - DISCOUNT) / total + left * frequent[w] for w, n in after.items()}


def _best(chances: dict[int, float], size: int) -> list[tuple[int, float]]:
    """The ``size`` likeliest words, scaled to a sum of 1; ties by id."""
    best = heapq.nsmallest(size, chances.items(), key=lambda item: (-item[1], item[0]))
    mass = sum(p for _, p in best)
    return [(w, p / mass) for w, p in best]


def _fill(
    table: NgramTable, row: int, best: list[tuple[int, float]], about: collections.Counter[int], at: int
) -> None:
    """Write one row; its features begin at ``at``."""
    table.words[row], table.parts[row], table.features[row] = 0, 0.0, 0.0
    table.words[row, : len(best)] = torch.tensor([w for w, _ in best], dtype=torch.int32)
    table.parts[row, : len(best)] = torch.tensor([p for _, p in best])
    facts = [1.0, math.log(sum(about.values())), math.log(len(about))]
    table.features[row, at : at + 3] = torch.tensor(facts)
