"""The optimizer that the server applies to the merged change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_mobile.hyperparameters import check_ranges
from pfl_mobile.strategies.state import Server, Values


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """theta <- theta + lr * (mean change), plain averaging at lr = 1; subclasses are in ``fedopt.py``."""

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside their range (ConfigError)."""
        check_ranges(type(self).__name__, type(self), vars(self))

    def apply(self, server: Server, key: str, values: dict[str, np.ndarray], change: Values) -> None:
        """Replace ``values`` by new ones.

        Args:
            server: where an optimizer keeps its momenta, in ``sets``.
            key: prefix for those, one for each set of values that is optimized.
            values: float32 tensors by name.
            change: their mean change.
        """
        for name, delta in change.items():
            values[name] = values[name] + delta
