"""The merge rule of a round with differential privacy: one noisy sum, and nothing else of the updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from pfl_mobile.merge.update_rows import UpdateRows

#: A device's weight, of its own reports by name and its weight by examples in 0..1.
OwnWeight = Callable[[Mapping[str, float], float], float]

#: What errors advise where a strategy reads more than a private merge lets out.
PRIVATE_MEND = "choose a strategy that `pfl strategies --json` shows as private, or run without privacy"


class NoisyBounds(Protocol):
    """What a private merge asks of the federation's privacy; ``PrivacyConfig`` is one."""

    @property
    def cohort(self) -> int:
        """Devices that a round is expected to have."""
        ...

    def weights(self, examples: np.ndarray) -> np.ndarray:
        """Weights of devices with so many examples, float64 [n] in 0..1."""
        ...


@dataclass(frozen=True)
class PrivateRule:
    """What ``Updates`` merge by where devices are protected.

        rounds = PrivateRounds(config, SecureNoise())
        strategy.merge(server, updates.under(PrivateRule(config, rounds.merge)))

    Attributes:
        config: clip norm, weights, denominator.
        merge: ``(rows, weights float64 [n])`` to the private mean, float32 [P]; asked once a round.
    """

    config: NoisyBounds
    merge: Callable[[UpdateRows, np.ndarray], np.ndarray]

    def own_weights(
        self, weight: OwnWeight, reports: Mapping[str, np.ndarray], examples: np.ndarray
    ) -> np.ndarray:
        """Weights that devices have by their own reports, float64 [n] in 0..1.

        ``weight`` sees one device at a time. So a device more or less changes no other's weight, and moves the sum by
        the clip norm at most, whatever it reports. What is not finite counts 0: an error would tell of one device.

        Args:
            weight: fixed before the round; what it returns is clamped to 0..1.
            reports: what it may read, by name, float64 [n].
            examples: of each device, [n].
        """
        found = np.zeros(len(examples))
        for i, most in enumerate(self.config.weights(examples)):
            own = {name: float(values[i]) for name, values in reports.items()}
            if np.isfinite(list(own.values())).all():
                found[i] = weight(own, float(most))
        return np.clip(np.where(np.isfinite(found), found, 0.0), 0.0, 1.0)
