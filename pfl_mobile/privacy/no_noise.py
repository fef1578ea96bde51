"""No noise: updates are clipped and weighted, and nothing is guaranteed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from typing_extensions import override

from pfl_mobile.privacy.gaussian import IndependentNoise
from pfl_mobile.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from pfl_mobile.privacy.accounting_events import Event, Relation
    from pfl_mobile.privacy.noise import Noise


class NoNoise(Mechanism):
    """Updates are clipped and weighted as with noise, and nothing else protects them.

    Who takes part may still be drawn, so that the effect of noise alone can be told from it.
    """

    mechanism: Literal["none"] = "none"

    @classmethod
    def like(cls, other: Mechanism) -> Self:
        """The rounds of another mechanism, clipped, weighted and drawn alike, without its noise."""
        shared = Mechanism.model_fields.keys() - {"version", "mechanism"}
        return cls.checked(**{name: getattr(other, name) for name in shared})

    @property
    def noise_multiplier(self) -> float:
        """Of the aggregator's noise: none."""
        return 0.0

    @property
    def local_noise_multiplier(self) -> float:
        """Of devices' noise: none."""
        return 0.0

    @property
    def adaptive(self) -> None:
        """The clip norm is fixed."""
        return

    @property
    def delta(self) -> float:
        """A guarantee that may fail with probability 1 is none."""
        return 1.0

    @property
    def budget_epsilon(self) -> None:
        """There is none: epsilon is infinite."""
        return

    @property
    @override
    def guarantees(self) -> bool:
        return False

    @property
    @override
    def trusts_aggregator(self) -> bool:
        return True

    @property
    @override
    def rests_on_sampling(self) -> bool:
        return False

    @override
    def exposed(self, rounds: int) -> int:
        return rounds

    @property
    @override
    def relation(self) -> Relation:
        return self.participation.relation

    @override
    def round_event(self) -> Event:
        return {"class": "NonPrivateDpEvent"}

    @property
    @override
    def counted_noise(self) -> float:
        return 0.0

    @override
    def round_noise(self, source: Noise) -> IndependentNoise:
        return IndependentNoise(0.0, source)

    @property
    @override
    def title(self) -> str:
        return "none"

    @property
    @override
    def alike(self) -> str | None:
        return None

    @override
    def assumptions(self, known: float | None) -> list[str]:
        return []
