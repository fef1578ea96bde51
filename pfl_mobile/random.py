"""The random numbers behind every shuffle, specified so that each language draws the same ones.

They are the outputs of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
Output number i depends on the seed and i alone, so a whole array of them is drawn at once, and a shuffle sorts by
them. All arithmetic is on unsigned 64-bit integers that wrap around.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix64(z: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit integers."""
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
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


def outputs(seed: int, count: int) -> np.ndarray:
    """The first ``count`` outputs of SplitMix64 started at ``seed``, uint64 [count]."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed & _MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))


def permutation(seed: int, n: int) -> np.ndarray:
    """A random order of 0..n-1, int64 [n]: the indexes sorted by their ``outputs``.

    The outputs for one seed all differ, so no sort leaves a tie.
    """
    return np.argsort(outputs(seed, n), kind="stable").astype(np.int64)


def uniform(seed: int, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64: the upper 53 bits of each output / 2**53."""
    return (outputs(seed, count) >> np.uint64(11)).astype(np.float64) / 2.0**53
