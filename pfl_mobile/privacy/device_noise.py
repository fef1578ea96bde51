"""Noise that each device adds to its own update before it sends it, so that it need not trust the aggregator."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from pfl_mobile.privacy.accounting_events import gaussian
from pfl_mobile.privacy.gaussian import IndependentNoise
from pfl_mobile.privacy.mechanism import NoiseMultiplier, Noisy
from pfl_mobile.privacy.participation import OnlyUnsampled, Unsampled

if TYPE_CHECKING:
    from pfl_mobile.privacy.accounting_events import Event, Relation
    from pfl_mobile.privacy.noise import Noise


class DeviceNoise(Noisy):
    """Each device adds noise itself, and the aggregator, which adds none, need not be trusted.

    Sampling does not help: the aggregator sees who takes part.

    Attributes:
        local_noise_multiplier: z, the standard deviation of that noise over C.
    """

    noise_field: ClassVar[str] = "local_noise_multiplier"

    mechanism: Literal["local"] = "local"
    participation: OnlyUnsampled = Unsampled()
    local_noise_multiplier: NoiseMultiplier

    @override
    def _problems(self) -> list[str]:
        needed = ""
        if self.local_noise_multiplier == 0:
            needed = (
                "the mechanism 'local' needs local_noise_multiplier above 0; without any noise, say so: mechanism "
                "'none'"
            )
        return [needed, *super()._problems()]

    @property
    def noise_multiplier(self) -> float:
        """Of the aggregator's noise: none."""
        return 0.0

    @property
    def adaptive(self) -> None:
        """The clip norm is fixed: devices cannot add noise relative to one that they learn from their norms."""
        return

    @property
    @override
    def trusts_aggregator(self) -> bool:
        return False

    @property
    @override
    def relation(self) -> Relation:
        return "replace_one"

    @override
    def round_event(self) -> Event:
        return gaussian(self.local_noise_multiplier / 2)

    @property
    @override
    def counted_noise(self) -> float:
        return self.local_noise_multiplier

    @override
    def round_noise(self, source: Noise) -> IndependentNoise:
        return IndependentNoise(0.0, source)

    @property
    @override
    def title(self) -> str:
        return "local: every device adds Gaussian noise to its clipped update"

    @override
    def assumptions(self, known: float | None) -> list[str]:
        return [
            "Nobody is trusted but the device itself, which clips and adds noise before anything leaves it.",
            "A device sends at most one update for a task. Every round that gave out tasks is counted, also one that "
            "was not merged, as the aggregator saw what was sent.",
            *self.participation.assumptions(self.cohort, self.devices, known),
        ]
