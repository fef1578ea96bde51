"""The generator behind every shuffle, specified so that each language draws the same numbers.

* Seeding: four outputs of SplitMix64 started at the seed fill the state.
* Generator: xoshiro256** 1.0 (Blackman and Vigna 2018, "Scrambled linear pseudorandom number generators").
* Bounded integers: Lemire 2019 ("Fast random integer generation in an interval"), on the upper 32 bits.
* Shuffle: Fisher-Yates from the last index down to 1.

All arithmetic is on unsigned 64-bit integers that wrap around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(z: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def splitmix64(seed: int, index: int) -> int:
    """Output number ``index`` (from 0) of SplitMix64 started at ``seed``."""
    return mix64((seed + (index + 1) * _GOLDEN) & _MASK)


def derive(seed: int, *keys: int) -> int:
    """A seed of its own for each sequence of keys, for instance (phase, epoch).

    Starting at ``seed``, every key k replaces the seed by output number k of SplitMix64 started at it.
    """
    seed &= _MASK
    for key in keys:
        seed = splitmix64(seed, key)
    return seed


class Random:
    """xoshiro256** seeded through SplitMix64.

    Args:
        seed: 0 <= seed < 2**64.
    """

    def __init__(self, seed: int) -> None:
        """Fill the state from ``seed``."""
        self._s = [splitmix64(seed & _MASK, i) for i in range(4)]

    @classmethod
    def from_words(cls, words: Sequence[int]) -> Random:
        """A generator with the given state of four words (for checks against reference outputs)."""
        generator = cls(0)
        generator._s = [w & _MASK for w in words]
        return generator

    def next(self) -> int:
        """The next 64 random bits."""
        s = self._s
        x = (s[1] * 5) & _MASK
        result = (((x << 7) | (x >> 57)) * 9) & _MASK
        t = (s[1] << 17) & _MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = ((s[3] << 45) | (s[3] >> 19)) & _MASK
        return result

    def below(self, n: int) -> int:
        """An unbiased integer in [0, n), 1 <= n < 2**32.

        With x the upper 32 bits of ``next()`` and m = x * n the answer is m >> 32; draws whose lower 32 bits
        are under (2**32 - n) mod n are thrown away, which makes every answer equally likely.
        """
        if not 1 <= n < 1 << 32:
            raise ValueError(f"n = {n} is outside 1..2**32-1")
        m = (self.next() >> 32) * n
        if (m & 0xFFFFFFFF) < n:
            threshold = ((1 << 32) - n) % n
            while (m & 0xFFFFFFFF) < threshold:
                m = (self.next() >> 32) * n
        return m >> 32

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0..n-1, int64 [n]: for i = n-1 .. 1 swap items i and ``below(i + 1)``."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype=np.int64)
