"""What the generated datasets share: draws that depend on the seed and the user alone.

The streams are those of numpy's ``Generator``, the same on every machine; numpy may change them between
versions, and the data then changes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.random import derive, splitmix64, uniform
from pfl_mobile.rows import Rows, split_rows

#: Keys of what is drawn from a seed.
_KINDS, _USERS, _SHARED = 0, 1, 2


def kinds(seed: int, count: int, shares: Sequence[float]) -> np.ndarray:
    """The kind of each of ``count`` users, int64 [count]; kind k has about ``shares[k]`` of them.

    The kind of a user does not depend on ``count``.
    """
    edges = np.cumsum(shares)[:-1]
    return np.searchsorted(edges, uniform(derive(seed, _KINDS), count), side="right").astype(np.int64)


def kind_of(seed: int, index: int, shares: Sequence[float]) -> int:
    """The kind of one user, as in :func:`kinds`."""
    share = (splitmix64(derive(seed, _KINDS), index) >> 11) / 2.0**53
    return int(np.searchsorted(np.cumsum(shares)[:-1], share, side="right"))


def groups_of(kind: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Groups from the kind of each user; kinds that nobody is of have none."""
    found = {name: np.flatnonzero(kind == k) for k, name in enumerate(names)}
    return {name: members for name, members in found.items() if members.size}


def of_user(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one user."""
    return np.random.Generator(np.random.SFC64([derive(seed, _USERS, index)]))


def of_all(seed: int) -> np.random.Generator:
    """The random numbers of what all users share."""
    return np.random.Generator(np.random.SFC64([derive(seed, _SHARED)]))


def parted(rows: Mapping[str, np.ndarray], test: float) -> tuple[Rows, Rows]:
    """Rows with weights of 1, parted into older and newest."""
    size = len(next(iter(rows.values())))
    return split_rows({**rows, "weight": np.ones(size, np.float32)}, test)


def check(users: int, test: float, **positive: float) -> None:
    """Refuse fewer than two users, a fraction outside (0, 1) and what is not above 0 (``ConfigError``)."""
    wrong = {name: value for name, value in positive.items() if not 0 < value < np.inf}
    if users < 2 or not 0 < test < 1 or wrong:
        said = ", ".join(f"{n}={v}" for n, v in {"users": users, "test": test, **positive}.items())
        raise ConfigError(said, mend="give 2 users or more, test between 0 and 1, and numbers above 0")
