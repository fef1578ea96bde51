"""Independent Gaussian noise on each round's sum (Dwork and Roth 2014; DP-FedAvg, McMahan et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import StateError
from pfl_mobile.fields import Frozen, Positive
from pfl_mobile.privacy.mechanism import Central, Inside
from pfl_mobile.privacy.participation import Poisson

if TYPE_CHECKING:
    from typing import Self

    from pfl_mobile.privacy.noise import Noise

#: Where the clip norm adapts, devices clip to so many times it.
HEADROOM = 4.0


class AdaptiveClipping(Frozen):
    """A clip norm that follows a quantile of the norms (Andrew, Thakkar, McMahan, Ramaswamy, NeurIPS 2021).

    After each round C <- C exp(-rate (b - quantile)), where b is the noisy share of updates with a norm of at most
    C. The count costs privacy: the noise of the updates grows so that both together cost what the noise
    multiplier of the configuration says.

    Attributes:
        quantile: share of the updates that shall stay unclipped.
        rate: how fast C moves, eta_C of the paper.
        noise_multiplier: standard deviation of the noise on the count, sigma_b of the paper; a twentieth of the
            cohort is a good start.
    """

    quantile: Inside = 0.5
    rate: Positive = 0.2
    noise_multiplier: Positive


class Gaussian(Central):
    """Independent noise on each round's sum; the only mechanism that sampling makes cheaper.

        Gaussian(clip_norm=0.5, noise_multiplier=1.1, cohort=1_000, population=100_000, participation=Poisson())

    Attributes:
        adaptive: how the clip norm adapts; None: it is fixed.
    """

    mechanism: Literal["gaussian"] = "gaussian"
    adaptive: AdaptiveClipping | None = None

    @override
    def _problems(self) -> list[str]:
        return [*super()._problems(), self._own_noise_problem(), self._adaptive_problem()]

    def _own_noise_problem(self) -> str:
        if self.local_noise_multiplier and isinstance(self.participation, Poisson):
            return (
                "with Poisson sampling it is hidden who takes part, but noise that devices add themselves would "
                "show it; set local_noise_multiplier to 0, or sampling to 'fixed' or 'none'"
            )
        return ""

    def _adaptive_problem(self) -> str:
        if self.adaptive is None:
            return ""
        if self.local_noise_multiplier:
            return (
                "devices cannot add noise relative to a clip norm that they learn from their norms; set "
                "local_noise_multiplier to 0, or remove adaptive"
            )
        if not self.noise_multiplier < 2 * self.adaptive.noise_multiplier:
            return (
                f"the count's noise {self.adaptive.noise_multiplier:g} must be above half the noise_multiplier "
                f"{self.noise_multiplier:g}, or the count alone costs more than both may; raise "
                "adaptive.noise_multiplier"
            )
        return ""

    @property
    @override
    def update_noise_multiplier(self) -> float:
        """z of the noise on the updates alone: above ``noise_multiplier`` where a count is released too.

        (z^-2 - (2 sigma_b)^-2)^(-1/2), as the count of half-bits has the sensitivity 1/2 (Andrew et al., Theorem 1).
        An adaptive clip norm's count and the updates are two Gaussian releases on the same sample, which together are
        one of noise multiplier z, which is what a round is accounted by.
        """
        z = self.noise_multiplier
        if self.adaptive is None:
            return z
        return 1 / math.sqrt(z**-2 - (2 * self.adaptive.noise_multiplier) ** -2)

    @override
    def device_clip_norm(self, clip_norm: float | None = None) -> float:
        """What a device clips its update to before it sends it.

        Where clipping is adaptive it is ``HEADROOM`` times C: the aggregator must see which norms are above C, and
        clips to C itself.
        """
        bound = super().device_clip_norm(clip_norm)
        return bound if self.adaptive is None else HEADROOM * bound

    @override
    def fixed_clipping(self) -> Self:
        return self.model_copy(update={"adaptive": None})

    @override
    def round_noise(self, source: Noise) -> IndependentNoise:
        return IndependentNoise(self.update_noise_multiplier, source)

    @property
    @override
    def title(self) -> str:
        adaptive = "" if self.adaptive is None else ", with a private adaptive clip norm"
        return f"gaussian: independent noise on the sum of each round{adaptive}"

    @property
    @override
    def alike(self) -> str | None:
        """The relation in words.

        An update of zeros is below any clip norm, so it would be counted, and the count moves by 1 and not by the 1/2
        that is accounted for. What is guaranteed with an adaptive clip norm is that a device is there or left out.
        """
        if self.relation == "zero_out" and self.adaptive is not None:
            return "zero-out: a device's updates are in all sums and counts or in none; all other devices are unchanged"
        return super().alike


class IndependentNoise:
    """N(0, (z * sensitivity)^2), drawn anew in every round.

    Args:
        noise_multiplier: z; 0 gives no noise.
        source: of standard Gaussian values.
    """

    def __init__(self, noise_multiplier: float, source: Noise) -> None:
        self.noise_multiplier, self.source = noise_multiplier, source

    def noise(self, size: int, sensitivity: float) -> np.ndarray:
        """Noise of the next round, float64 [size]."""
        if self.noise_multiplier == 0:
            return np.zeros(size)
        values = self.source.normal(size)
        values *= self.noise_multiplier * sensitivity
        return values

    def state(self) -> dict[str, np.ndarray]:
        """Nothing: rounds are independent."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Refuse a state that is not of this mechanism (StateError)."""
        if state:
            raise StateError(
                f"independent noise has no state, but {sorted(state)} was saved",
                mend="go on with the privacy configuration that the state was saved with",
            )
