"""Images of 28 x 28 pixels in ten classes that nobody owns, shared out to users.

They are shared out by class (:func:`pfl_mobile.data.partition.dirichlet`), so users differ in which classes they have
and in size, not in how an image of a class looks. There is no time either: the order of a user's images is random, and
the last of them are the test.

Rows: ``x`` float32 [R, 784], pixels row by row, 0 to 1; ``labels`` int64 [R] in 0..9; ``weight`` float32 [R] of ones.
"""

from __future__ import annotations

import numpy as np

from pfl_mobile.data.partition import dirichlet
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import Table
from pfl_mobile.data.tables import check_fraction
from pfl_mobile.errors import ConfigError

PIXELS, CLASSES = 784, 10


def build(
    name: str,
    table: Table,
    *,
    users: int = 100,
    alpha: float = 0.3,
    examples: int | None = None,
    least: int = 10,
    test: float = 0.2,
    seed: int = 0,
) -> ArrayPopulation:
    """Share the images out.

    Args:
        name: of the dataset.
        table: ``x`` uint8 [N, 784] and ``labels`` [N].
        users: how many.
        alpha: of the Dirichlet distribution; small: few classes a user.
        examples: take so many images only, chosen at random; None for all.
        least: images that every user has at least.
        test: fraction of a user's images that are tested.
        seed: of all draws.

    Raises:
        ConfigError: an impossible value, or users that cannot all have ``least`` images.
    """
    check_fraction(test)
    total = len(table["labels"])
    chosen = np.arange(total)
    if examples is not None:
        if not 1 <= examples <= total:
            raise ConfigError(f"examples={examples}", mend=f"give 1 to {total}")
        chosen = np.sort(np.random.RandomState(seed).permutation(total)[:examples])
    labels = table["labels"][chosen].astype(np.int64)
    rows = {}
    for user, part in enumerate(dirichlet(labels, users, alpha, seed, least)):
        rows[f"user-{user:03d}"] = {
            "x": table["x"][chosen[part]].astype(np.float32) / 255,
            "labels": labels[part],
            "weight": np.ones(len(part), np.float32),
        }
    return ArrayPopulation.of(name, rows, test)
