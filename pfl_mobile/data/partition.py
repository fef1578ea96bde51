"""Sharing examples out to users that have different classes."""

from __future__ import annotations

import numpy as np

from pfl_mobile.errors import ConfigError

_ATTEMPTS = 100


def dirichlet(labels: np.ndarray, users: int, alpha: float, seed: int, least: int = 10) -> list[np.ndarray]:
    """Give every example to exactly one user, so that users differ in classes and size.

    Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019: the examples of each
    class are shared out in proportions drawn from a Dirichlet distribution with all parameters ``alpha``. Small
    alpha: a user has few classes; large alpha: all users have the same mixture. Drawn anew until every user has
    at least ``least`` examples.

    Args:
        labels: class of each example, int64 [N].
        users: how many, 2 or more.
        alpha: above 0.
        seed: of all draws.
        least: examples that every user has at least.

    Returns:
        for each user the indexes of its examples, in random order.

    Raises:
        ConfigError: an impossible value, or no draw of a hundred gave every user enough examples.
    """
    if users < 2 or not 0 < alpha < np.inf or least < 1 or users * least > len(labels):
        raise ConfigError(
            f"users={users}, alpha={alpha}, least={least} for {len(labels)} examples",
            mend="give 2 users or more, an alpha above 0, and no more users than there are examples for",
        )
    draw = np.random.RandomState(seed)
    classes = [draw.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    for _ in range(_ATTEMPTS):
        owned: list[list[np.ndarray]] = [[] for _ in range(users)]
        for members in classes:
            shares = draw.dirichlet(np.full(users, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for own, part in zip(owned, np.split(members, cuts), strict=True):
                own.append(part)
        parts = [np.concatenate(own) for own in owned]
        if min(len(part) for part in parts) >= least:
            return [draw.permutation(part) for part in parts]
    raise ConfigError(
        f"with alpha={alpha}, {users} users and {len(labels)} examples some user always has fewer than {least}",
        mend="take fewer users, a larger alpha or a smaller least",
    )
