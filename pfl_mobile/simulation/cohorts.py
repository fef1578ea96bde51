"""Which devices take part in a round: drawn without replacement, in time that does not grow with the population."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfl_mobile.random import outputs, permutation


def sample(seed: int, count: int, size: int) -> np.ndarray:
    """``size`` different indexes of 0..count - 1 in random order, int64 [size].

    The first ``size`` different ones in SplitMix64's outputs modulo ``count``; where more than half are wanted,
    the beginning of a permutation. (Modulo prefers some indexes by at most count / 2**64.)
    """
    if 2 * size > count:
        return permutation(seed, count)[:size]
    drawn = size
    while True:
        drawn += drawn // 2 + 16
        values = outputs(seed, drawn) % np.uint64(count)
        _, first = np.unique(values, return_index=True)
        if len(first) >= size:
            return values[np.sort(first)[:size]].astype(np.int64)


def balanced(clients: Sequence[int], sizes: Sequence[int], piece: int) -> list[int]:
    """The clients in an order in which pieces of equal length have about equally many examples.

    The largest client left goes to the piece with the fewest examples that has room (Graham 1969, longest processing
    time first).

    Args:
        clients: of a cohort.
        sizes: how many examples each has.
        piece: clients in a piece; the last one may have fewer.
    """
    room = [min(piece, len(clients) - first) for first in range(0, len(clients), piece)]
    pieces: list[list[int]] = [[] for _ in room]
    load = [0] * len(room)
    for k in sorted(range(len(clients)), key=lambda k: (-sizes[k], k)):
        into = min((i for i in range(len(room)) if len(pieces[i]) < room[i]), key=lambda i: (load[i], i))
        pieces[into].append(clients[k])
        load[into] += sizes[k]
    return [client for one in pieces for client in one]
