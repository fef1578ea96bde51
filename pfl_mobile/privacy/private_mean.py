"""The private mean of a round: clipped, weighted, summed, with noise, over a denominator fixed in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError, NonFiniteError
from pfl_mobile.merge.update_rows import COLUMNS, GROUP, norms
from pfl_mobile.privacy.clipping import clip_factors
from pfl_mobile.privacy.mechanism import MAX_WEIGHT

if TYPE_CHECKING:
    from pfl_mobile.merge.update_rows import UpdateRows
    from pfl_mobile.privacy.mechanism import Mechanism, RoundNoise


class PrivateMean:
    """sum_i w_i clip(change_i, C) / denominator + noise (DP-FedAvg, McMahan et al. 2018, with fixed denominator).

    One device moves the sum by at most C * 1, whatever it sends: weights are clamped to 0..1, changes clipped to C.
    (Devices that add noise themselves have clipped to C before it; see ``Mechanism.accepted_norm``.)

    The denominator does not depend on who takes part, as that would depend on the device too. Where fewer devices
    answer than were expected the mean is smaller, and with none at all it is noise.

    Args:
        config: clip norm, weights and denominator.
        noise: asked once for each mean.
        clip_norm: C of this round; by default the configuration's.
    """

    def __init__(self, config: Mechanism, noise: RoundNoise, clip_norm: float | None = None) -> None:
        self.config, self.noise = config, noise
        self.clip_norm = config.clip_norm if clip_norm is None else clip_norm

    def mean(
        self, rows: UpdateRows, weights: np.ndarray, *, row_norms: np.ndarray | None = None
    ) -> np.ndarray:
        """The private mean, float32 [P].

        Args:
            rows: the devices' changes, n of P values each, read twice from beginning to end.
            weights: of the devices, float [n]; see ``Mechanism.weights``.
            row_norms: L2 norms of the rows, float64 [n], where they are known already; then rows are read once.

        Raises:
            NonFiniteError: a row or a weight is NaN or infinite. Nothing is released then, and no noise is drawn.
            ConfigError: not one weight for each row.
        """
        total = self.exact_sum(rows, weights, row_norms=row_norms)
        total += self.noise.noise(rows.width, self.config.sensitivity(self.clip_norm))
        total /= self.config.expected_weight
        return total.astype(np.float32)

    def exact_sum(
        self, rows: UpdateRows, weights: np.ndarray, *, row_norms: np.ndarray | None = None
    ) -> np.ndarray:
        """sum_i w_i clip(change_i, C) without noise, float64 [P]: not to be released.

        Arguments and errors are those of ``mean``.
        """
        used = bounded_weights(weights, len(rows))
        found = norms(rows) if row_norms is None else np.asarray(row_norms, np.float64)
        if found.shape != used.shape:
            raise ConfigError(
                f"{len(found)} norms for {len(used)} updates", mend="give one norm for each update"
            )
        limit = self.config.accepted_norm(rows.width, self.clip_norm)
        return float64_sum(rows, used * clip_factors(found, limit))


def bounded_weights(weights: np.ndarray, count: int) -> np.ndarray:
    """Weights clamped to 0..1, float64 [n].

    Raises:
        ConfigError: not one weight for each row.
        NonFiniteError: a weight is NaN or infinite.
    """
    found = np.asarray(weights, np.float64)
    if found.shape != (count,):
        raise ConfigError(
            f"{found.shape} weights for {count} updates", mend="give one weight for each update"
        )
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"{int((~np.isfinite(found)).sum())} of {count} weights are NaN or infinite",
            mend="refuse such updates before the merge",
        )
    return np.clip(found, 0.0, MAX_WEIGHT)


def float64_sum(rows: UpdateRows, factors: np.ndarray) -> np.ndarray:
    """sum_i factors_i * row_i with all sums in float64, [P]; the rows are read once, in their order.

    ``rows.weighted_sum`` is faster, as it adds a few rows in float32 first; but then one row more or less changes
    how all others are rounded, which sensitivity does not allow for. Here that is some n * 2^-53 of the norms, far
    inside the margin of ``clip_factors``.

    Args:
        rows: n of P values each.
        factors: float64 [n].
    """
    total = np.zeros(rows.width)
    wide = np.empty((GROUP, COLUMNS))
    for first in range(0, len(rows), GROUP):
        last = min(first + GROUP, len(rows))
        column = factors[first:last, None]
        for start in range(0, rows.width, COLUMNS):
            block = rows.block(first, last, slice(start, min(start + COLUMNS, rows.width)))
            part = wide[: block.shape[0], : block.shape[1]]
            part[:] = block
            part *= column
            total[start : start + COLUMNS] += part.sum(axis=0)
    return total
