"""Generated rows of FEMNIST's shape (784 features, 62 classes) for any number of users: for speed and scale.

FEMNIST itself (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018) is handwriting of 3,550 people; it
cannot be had from a package registry. **These rows are generated: accuracy on them says nothing about handwriting.**

Shared by all users: one prototype for each class. Different: the size (lognormal with mean ``mean``, at least 10); the
mixture of classes (weights drawn from a Dirichlet distribution with parameters ``alpha``); the style, an image added to
all of a user's rows, and their contrast. A row is signal * contrast * prototype + style + noise.

A user is made from the seed and its index alone when it is asked for, so a million users take no memory. Noise is
a random stretch of one long strip of normal numbers, so that making a user costs less than training on it.

Rows: ``x`` float32 [R, 784], about normal; ``labels`` int64 [R] in 0..61; ``weight`` float32 [R] of ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pfl_mobile.data.generated import check, of_all, of_user, parted
from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.data.registry import Generator, register
from pfl_mobile.rows import Rows

FEATURES, CLASSES = 784, 62
_STRIP = 1 << 18
_SPREAD = 0.5  # of the logarithm of the sizes
_LEAST = 10


@dataclass(frozen=True)
class Writer:
    """Makes the rows of a user; see the module.

    Args:
        mean: examples of a user, on average.
        alpha: of the mixture of classes.
        signal: size of the prototypes; noise has 1.
        test: fraction of a user's rows.
        seed: of everything.
    """

    mean: float
    alpha: float
    signal: float
    test: float
    seed: int

    def __call__(self, index: int) -> tuple[Rows, Rows]:
        """(train, test) of one user."""
        prototypes, strip = _shared(self.seed)
        draw = of_user(self.seed, index)
        size = max(int(draw.lognormal(np.log(self.mean) - _SPREAD**2 / 2, _SPREAD)), _LEAST)
        labels = draw.choice(CLASSES, size, p=draw.dirichlet(np.full(CLASSES, self.alpha)))
        contrast = np.float32(self.signal * draw.uniform(0.7, 1.3))
        style = draw.standard_normal(FEATURES, dtype=np.float32) * np.float32(0.3)
        x = (contrast * prototypes + style)[labels]
        for row, start in zip(x, draw.integers(0, _STRIP - FEATURES, size), strict=True):
            row += strip[start : start + FEATURES]
        return parted({"x": x, "labels": labels.astype(np.int64)}, self.test)


@lru_cache(maxsize=4)
def _shared(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes [62, 784] and the strip of noise, float32, made once a process."""
    draw = of_all(seed)
    prototypes = draw.standard_normal((CLASSES, FEATURES), dtype=np.float32)
    return prototypes, draw.standard_normal(_STRIP, dtype=np.float32)


def build(
    *,
    users: int = 1000,
    mean: float = 100.0,
    alpha: float = 0.3,
    signal: float = 0.12,
    test: float = 0.2,
    seed: int = 0,
) -> GeneratedPopulation:
    """The users.

    Args:
        users: how many; user i is the same whatever their number is.
        mean: examples of a user, on average.
        alpha: small: a user has few classes.
        signal: standard deviation of the prototypes' pixels; that of the noise is 1. Small: classes overlap.
        test: fraction of a user's rows.
        seed: of everything.

    Raises:
        ConfigError: fewer than 2 users, or a number that is not above 0.
    """
    check(users, test, mean=mean, alpha=alpha, signal=signal)
    return GeneratedPopulation("femnist-like", users, Writer(mean, alpha, signal, test, seed))


DATASET = register(
    Generator(
        name="femnist-like",
        summary="generated: 784 features, 62 classes, any number of users, for speed and scale",
        build=build,
    )
)
