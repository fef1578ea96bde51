"""Forward differences for the accountant of sampling without replacement, computed once for all its orders.

dp-accounting bounds the Rényi divergence of each order by the differences of one function (Theorem 27 of Wang, Balle
and Kasiviswanathan 2019), and computes them anew for each order, though those of a lower order are the first of those
of a higher one: two thirds of its time. Here a table is kept and continued, by dp-accounting's own arithmetic on the
same numbers in the same steps, so that results are the same to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Signed = tuple[bool, float]


class _Table(threading.local):
    """Differences of the last function that was asked for, one table for each thread."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget all."""
        self.values: list[float] = []
        #: The last value, the last difference, the last difference of differences, and so on: (positive, log of size).
        self.ends: list[Signed] = []
        #: The first difference, the first difference of differences, and so on.
        self.first: list[Signed] = []


_table = _Table()


def use(accountants: Any) -> None:
    """Have dp-accounting compute differences here.

    Args:
        accountants: its module ``rdp_privacy_accountant``.
    """

    def forward_differences(fun: Callable[[float], float], n: int) -> tuple[np.ndarray, np.ndarray]:
        """As dp-accounting's ``_get_forward_diffs``: logs of the sizes and signs of n + 2 differences at 0."""
        # it puts a 0 before the function's values
        values = [0.0, *(fun(1.0 * i) for i in range(n + 2))]
        known = min(len(values), len(_table.values))
        if _table.values[:known] != values[:known]:
            _table.begin()
        for value in values[len(_table.values) :]:
            ends: list[Signed] = [(True, value)]
            for before in _table.ends:
                ends.append(_difference(accountants, before, ends[-1]))
            _table.values.append(value)
            _table.ends = ends
            if len(ends) > 1:
                _table.first.append(ends[-1])
        chosen = _table.first[: n + 2]
        return np.array([size for _, size in chosen]), np.array([positive for positive, _ in chosen])

    accountants._get_forward_diffs = forward_differences


def _difference(accountants: Any, before: Signed, after: Signed) -> Signed:
    """``after - before``, both given by sign and logarithm."""
    (was, low), (positive, high) = before, after
    if was != positive:
        return positive, float(accountants._log_add(low, high))
    larger, size = accountants._log_sub_sign(high, low)
    return bool(larger) == positive, float(size)
