"""How much each device counts at the merge. Fairness is a weighting, so it goes with every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import PrivacyError
from pfl_mobile.hyperparameters import Param, check_ranges
from pfl_mobile.merge.private import PRIVATE_MEND
from pfl_mobile.plan.phases import MeasurePhase

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.plan.phases import Phase
    from pfl_mobile.strategies.state import RoundContext, Server

#: What a device counts by: its ``examples``, or all ``devices`` alike.
SummedBy = Literal["examples", "devices"]
#: Report of each device's mean training loss with the values that it was sent.
SENT_LOSS = "sent_loss"

LossCap = Annotated[
    float | None,
    Param("for private rounds: the loss from which on devices count alike", low=0.0, open=("low",)),
]


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weights of the devices of a round. Subclasses that need a loss ask for it through ``measures``."""

    #: Whether users must have groups.
    needs_groups: ClassVar[bool] = False
    #: Why private rounds cannot use it, in words; empty where no device's weight depends on others.
    why_not_private: ClassVar[str] = ""
    #: What a device's weight is, where it depends on nothing but its examples; None for other weights.
    summed_by: ClassVar[SummedBy | None] = None

    @override
    def __init_subclass__(cls, **arguments: Any) -> None:
        """A subclass with weights of its own has to say itself what they depend on."""
        super().__init_subclass__(**arguments)
        if "weights" in vars(cls):
            cls.summed_by = vars(cls).get("summed_by")

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside their range (ConfigError)."""
        check_ranges(type(self).__name__, type(self), vars(self))

    def check_private(self) -> None:
        """Refuse private rounds where they cannot use it (PrivacyError)."""
        if self.why_not_private:
            raise PrivacyError(
                f"{type(self).__name__} cannot be private: {self.why_not_private}", mend=PRIVATE_MEND
            )

    @property
    def is_fairness(self) -> bool:
        """Whether a device counts by more than its number of examples."""
        return self.summed_by is None

    def measures(self, at: RoundContext) -> tuple[Phase, ...]:
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

    summed_by: ClassVar[SummedBy | None] = "examples"

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        return weights_of(updates.examples, "examples")


@dataclass(frozen=True, kw_only=True)
class Equally(Weighting):
    """Every device counts the same."""

    summed_by: ClassVar[SummedBy | None] = "devices"

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        return weights_of(updates.examples, "devices")


def weights_of(examples: Sequence[int] | np.ndarray, by: SummedBy) -> np.ndarray:
    """The weights of devices with so many examples, float64 [n]."""
    return np.asarray(examples, np.float64) if by == "examples" else np.ones(len(examples))


@dataclass(frozen=True, kw_only=True)
class ByLoss(Weighting):
    """Base of the weightings by the loss that each device has with the values that it was sent."""

    why_not_private: ClassVar[str] = "a device's weight depends on the losses of others too"

    @override
    def measures(self, at: RoundContext) -> tuple[Phase, ...]:
        """The training loss before training, as the report ``sent_loss``."""
        return (MeasurePhase(report=SENT_LOSS),)


@dataclass(frozen=True, kw_only=True)
class ByOwnLoss(ByLoss):
    """Base of the weightings by loss that private rounds can use.

    There is a factor, the same for all devices of a round, that turns the weights of the others' losses into weights
    in 0..1 that each device has by itself. Where losses stay below ``loss_cap`` a private round makes the usual step
    times such a factor: shorter, as it divides by a number fixed in advance. The caps are public: fixed by somebody
    who did not look at devices' losses.
    """

    why_not_private: ClassVar[str] = ""
    #: Reports that ``own_weight`` reads.
    reads: ClassVar[tuple[str, ...]] = (SENT_LOSS,)

    def own_weight(self, losses: Mapping[str, float], examples: float) -> float:
        """A device's weight in a private round, in 0..1.

        Args:
            losses: what it reported, finite.
            examples: its weight by examples, in 0..1.
        """
        raise NotImplementedError

    def cohort_weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Weights of other rounds, float64 [n]."""
        raise NotImplementedError

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """``own_weight`` of each device in private rounds, else ``cohort_weights``."""
        if updates.private:
            return updates.own_weights(self.own_weight, self.reads)
        return self.cohort_weights(updates, server)


def needed_cap(weighting: Weighting, cap: float | None) -> float:
    """The bound on losses (PrivacyError: none is set, so rounds cannot be private)."""
    if cap is None:
        raise PrivacyError(
            f"{type(weighting).__name__} weighs devices by losses, and no bound on them is set",
            mend="set loss_cap, a loss from which on devices count alike; choose it without looking at their losses",
        )
    return cap


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
