"""Interpolated trigram with a personal part: the figure that a neural keyboard has to beat.

p(w | u v) is a sum of six maximum-likelihood estimates, the orders 1 to 3 of everybody's text (global)
and of the user's own history (personal). The weights depend on how often the contexts were seen, as in
Jelinek and Mercer, "Interpolated estimation of Markov source parameters from sparse data" (1980), and are
fitted by expectation maximization on training users that the global counts leave out. Likelihood and recall
do not agree on how far to trust the personal part, so its weights are then multiplied by the factor that
gives the best top-1 recall on the same users. The personal part has an open vocabulary: it suggests every
word the user has written.
"""

from __future__ import annotations

import collections
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

START = "<s>"

#: Weights of the orders 1, 2, 3 of the global counts, then of the personal ones.
Weights = tuple[float, float, float, float, float, float]

_Key = tuple[int, int, int, int, int]
_CANDIDATES = 100
_FOLDS = 4
_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
# Messages of a user on which the factors are compared.
_COMPARED = 10


def _bucket(count: int) -> int:
    """0 for none, then 1, 2-3, 4-7, ... up to 64 and more."""
    return min(count.bit_length(), 7)


@dataclass
class NgramCounts:
    """Counts of words after contexts of 0, 1 and 2 words."""

    #: By order, then context: how often each word followed.
    next: tuple[dict[tuple[str, ...], collections.Counter[str]], ...] = field(
        default_factory=lambda: tuple(collections.defaultdict(collections.Counter) for _ in range(3))
    )
    #: By order, then context: the sum of the counts.
    total: tuple[collections.Counter[tuple[str, ...]], ...] = field(
        default_factory=lambda: tuple(collections.Counter() for _ in range(3))
    )
    _top: dict[str, list[str]] = field(default_factory=dict)

    def add(self, words: Sequence[str]) -> None:
        """Count one message, given as its words."""
        self._top.clear()
        for u, v, w in _trigrams(words):
            for order, context in enumerate(((), (v,), (u, v))):
                self.next[order][context][w] += 1
                self.total[order][context] += 1

    def following(self, order: int, context: tuple[str, ...]) -> collections.Counter[str]:
        """What followed a context; empty where it was never seen."""
        return self.next[order].get(context) or collections.Counter()

    def frequent(self, prefix: str) -> list[str]:
        """The most frequent words that start with ``prefix``."""
        if prefix not in self._top:
            words = self.following(0, ())
            able = words if not prefix else [w for w in words if w.startswith(prefix)]
            self._top[prefix] = heapq.nsmallest(_CANDIDATES, able, key=lambda w: (-words[w], w))
        return self._top[prefix]


def _trigrams(words: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    padded = [START, START, *words]
    return zip(padded, padded[1:], words, strict=False)


def count(messages: Iterable[Sequence[str]]) -> NgramCounts:
    """Counts of messages given as words."""
    counts = NgramCounts()
    for words in messages:
        counts.add(words)
    return counts


@dataclass(frozen=True)
class Trigram:
    """Global counts, fitted weights, and one user's own counts (none: the global model).

    Make one with :func:`fit`, then one a user with :meth:`personal`.
    """

    world: NgramCounts
    weights: dict[_Key, Weights]
    fallback: Weights
    own: NgramCounts = field(default_factory=NgramCounts)

    def personal(self, history: Iterable[Sequence[str]]) -> Trigram:
        """The same model with this user's history as its personal part."""
        return Trigram(self.world, self.weights, self.fallback, count(history))

    def suggest(self, context: Sequence[str], prefix: str = "", k: int = 3) -> list[str]:
        """The ``k`` likeliest next words that start with ``prefix``, best first (ties by code point)."""
        u, v = [START, START, *context][-2:]
        weights = self.weights.get(_key(self.world, self.own, u, v), self.fallback)
        scores: collections.defaultdict[str, float] = collections.defaultdict(float)
        for part, counts in enumerate((self.world, self.own)):
            for order, seen in enumerate(((), (v,), (u, v))):
                total = counts.total[order][seen]
                weight = weights[3 * part + order]
                if not total or not weight:
                    continue
                after = counts.following(order, seen)
                # Words that no context offers and that are not frequent cannot be among the best.
                words: Iterable[str] = (
                    after if order else set(self.world.frequent(prefix) + self.own.frequent(prefix))
                )
                for w in words:
                    if w.startswith(prefix):
                        scores[w] += weight * after[w] / total
        return heapq.nsmallest(k, scores, key=lambda w: (-scores[w], w))


def _key(world: NgramCounts, own: NgramCounts, u: str, v: str) -> _Key:
    return (
        _bucket(world.total[1][(v,)]) // 2,
        _bucket(world.total[2][(u, v)]),
        min(_bucket(own.total[0][()]), 1),
        _bucket(own.total[1][(v,)]) // 2,
        min(_bucket(own.total[2][(u, v)]), 4),
    )


def _estimates(world: NgramCounts, own: NgramCounts, u: str, v: str, w: str) -> list[float]:
    found = []
    for counts in (world, own):
        for order, context in enumerate(((), (v,), (u, v))):
            total = counts.total[order][context]
            found.append(counts.following(order, context)[w] / total if total else 0.0)
    return found


def fit(users: dict[str, list[list[str]]], *, min_messages: int = 20, rounds: int = 15) -> Trigram:
    """Count all users' messages and fit the weights among them.

    Args:
        users: messages as words, in time order, by training user.
        min_messages: users with fewer are counted but not used to fit weights.
        rounds: of expectation maximization.
    """
    names = sorted(users)
    apart: list[tuple[NgramCounts, list[list[str]], list[list[str]]]] = []
    for fold in range(_FOLDS):
        left_out = {n for i, n in enumerate(names) if i % _FOLDS == fold}
        world = count(m for n in names if n not in left_out for m in users[n])
        for messages in (users[n] for n in sorted(left_out)):
            if len(messages) >= min_messages:
                cut = math.floor(0.8 * len(messages))
                apart.append((world, messages[:cut], messages[cut:]))
    samples: dict[_Key, list[list[float]]] = collections.defaultdict(list)
    for world, history, rest in apart:
        for own in (count(history), NgramCounts()):
            for u, v, w in (t for words in rest for t in _trigrams(words)):
                row = _estimates(world, own, u, v, w)
                if any(row):
                    samples[_key(world, own, u, v)].append(row)
    start: Weights = (1 / 6,) * 6
    fallback = _maximize([row for rows in samples.values() for row in rows], start, rounds)
    # A bucket with few samples stays near the weights of all.
    weights = {key: _maximize(rows, fallback, rounds, prior=20.0) for key, rows in samples.items()}
    found = [(_hits(apart, weights, fallback, factor), -factor) for factor in _FACTORS]
    factor = -max(found)[1]
    world = count(m for n in names for m in users[n])
    return Trigram(world, {k: _trust(w, factor) for k, w in weights.items()}, _trust(fallback, factor))


def _trust(weights: Weights, factor: float) -> Weights:
    a, b, c, d, e, f = weights
    total = a + b + c + factor * (d + e + f)
    return a / total, b / total, c / total, factor * d / total, factor * e / total, factor * f / total


def _hits(
    apart: list[tuple[NgramCounts, list[list[str]], list[list[str]]]],
    weights: dict[_Key, Weights],
    fallback: Weights,
    factor: float,
) -> int:
    """Words guessed right at once on the rest of the users who were left out."""
    hits = 0
    trusted = {k: _trust(w, factor) for k, w in weights.items()}
    for world, history, rest in apart:
        model = Trigram(world, trusted, _trust(fallback, factor)).personal(history)
        for words in rest[:_COMPARED]:
            hits += sum(model.suggest(words[:i], k=1) == [w] for i, w in enumerate(words))
    return hits


def _maximize(rows: list[list[float]], start: Weights, rounds: int, prior: float = 0.0) -> Weights:
    weights: list[float] = list(start)
    for _ in range(rounds if rows else 0):
        shares = [prior * s for s in start]
        for row in rows:
            mixed = sum(a * b for a, b in zip(weights, row, strict=True))
            if mixed > 0.0:
                for i in range(6):
                    shares[i] += weights[i] * row[i] / mixed
        total = sum(shares)
        if total == 0.0:
            break
        weights = [s / total for s in shares]
    a, b, c, d, e, f = weights
    return a, b, c, d, e, f
