"""The merge rule of a round with differential privacy: one noisy sum, and nothing else of the updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from pfl_mobile.privacy.config import PrivacyConfig
    from pfl_mobile.strategies.rows import Rows

#: What errors advise where a strategy reads more than a private merge lets out.
PRIVATE_MEND = "choose a strategy that `pfl strategies --json` shows as private, or run without privacy"


@dataclass(frozen=True)
class PrivateRule:
    """What ``Updates`` merge by where devices are protected.

        rounds = PrivateRounds(config, SecureNoise())
        strategy.merge(server, updates.under(PrivateRule(config, rounds.merge)))

    Attributes:
        config: clip norm, weights, denominator.
        merge: ``(rows, weights float64 [n])`` to the private mean, float32 [P]; asked once a round.
    """

    config: PrivacyConfig
    merge: Callable[[Rows, np.ndarray], np.ndarray]
