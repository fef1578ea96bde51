"""Which devices take part in a round: drawn without replacement, in time that does not grow with the population."""

from __future__ import annotations

import numpy as np

from pfl_mobile.local.random import outputs, permutation


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
