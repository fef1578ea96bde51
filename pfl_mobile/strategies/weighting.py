"""How much each device counts at the merge. Fairness is a weighting, so it goes with every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pfl_mobile.local.plan import MeasurePhase
from pfl_mobile.strategies.registry import check_ranges

if TYPE_CHECKING:
    from pfl_mobile.local.plan import Phase
    from pfl_mobile.strategies.strategy import Context, Server
    from pfl_mobile.strategies.updates import Updates

#: Report of each device's mean training loss with the values that it was sent.
SENT_LOSS = "sent_loss"


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weights of the devices of a round. Subclasses that need a loss ask for it through ``measures``."""

    #: Whether users must have groups.
    needs_groups: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside their range (ConfigError)."""
        check_ranges(type(self).__name__, type(self), vars(self))

    def measures(self, at: Context) -> tuple[Phase, ...]:
        """What each device measures before it trains, with the values that it was sent."""
        return ()

    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Not negative, float64 [n]; the merge divides by their sum.

        May keep what it learns over the rounds in ``server.sets`` and ``server.numbers``.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ByExamples(Weighting):
    """A device counts by its number of examples (McMahan 2017)."""

    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """The numbers of examples."""
        return updates.examples.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Equally(Weighting):
    """Every device counts the same."""

    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Ones."""
        return np.ones(len(updates))


@dataclass(frozen=True, kw_only=True)
class ByLoss(Weighting):
    """Base of the weightings by the loss that each device has with the values that it was sent."""

    def measures(self, at: Context) -> tuple[Phase, ...]:
        """The training loss before training, as the report ``sent_loss``."""
        return (MeasurePhase(report=SENT_LOSS),)


def group_losses(
    names: Sequence[str], losses: np.ndarray, examples: np.ndarray
) -> tuple[dict[str, float], dict[str, int]]:
    """Mean loss over the examples of each group, and how many they are.

    Args:
        names: group of each device.
        losses: mean loss of each device, [n].
        examples: of each device, [n].
    """
    of = np.asarray(names)
    groups = sorted(set(names))
    sizes = {g: int(examples[of == g].sum()) for g in groups}
    means = {g: float((losses * examples)[of == g].sum() / sizes[g]) for g in groups}
    return means, sizes
