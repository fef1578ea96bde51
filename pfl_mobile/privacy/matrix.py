"""Noise that is correlated over the rounds, so that it largely cancels in their sum: the matrix mechanism.

It factors the lower-triangular matrix of ones, which turns the rounds' sums into the model, into B C, and releases
C^-1 Z as noise, so that the noise of the model is B Z (DP-FTRL, Kairouz et al. 2021; Denisov et al. 2022; banded:
Choquette-Choo et al., "(Amplified) banded matrix factorization", 2023). C is the banded Toeplitz square root of
Kalinin and Lampert, "Banded square root matrix factorization for differentially private model training", 2024: the
first b coefficients of 1 / sqrt(1 - x), scaled to columns of norm 1. Columns b apart have no row in common, so a device
that takes part at most k times, always b rounds apart, moves C x by at most sqrt(k) times the clip norm: no sampling
is assumed, only the separation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError, StateError
from pfl_mobile.fields import Whole
from pfl_mobile.privacy.mechanism import Central, Mechanism
from pfl_mobile.privacy.noise import BLOCK
from pfl_mobile.privacy.participation import OnlyUnsampled, Unsampled

if TYPE_CHECKING:
    from pfl_mobile.privacy.noise import Noise


class Matrix(Central):
    """Noise correlated over the rounds; needs no sampling, only rounds between two participations of a device.

        Matrix(clip_norm=0.5, noise_multiplier=4.0, cohort=1_000, participation=Unsampled(min_separation=20))

    Attributes:
        band: rounds over which the noise is correlated, at most ``participation.min_separation``; None: just that.
            The aggregator keeps band - 1 vectors of noise.
    """

    mechanism: Literal["matrix"] = "matrix"
    participation: OnlyUnsampled = Unsampled()
    band: Whole | None = None

    @override
    def _problems(self) -> list[str]:
        wide = ""
        if self.band is not None and self.band > self.min_separation:
            wide = (
                f"the band of {self.band} rounds is wider than min_separation {self.min_separation}: noise would be "
                "correlated between two participations of a device; lower band, or raise min_separation"
            )
        return [*super()._problems(), wide]

    @property
    def adaptive(self) -> None:
        """The clip norm is one for all rounds, as they share their noise."""
        return

    @property
    @override
    def noise_band(self) -> int:
        return self.min_separation if self.band is None else self.band

    @property
    @override
    def correlation(self) -> tuple[int, int] | None:
        return self.min_separation, self.noise_band

    @override
    def round_noise(self, source: Noise) -> CorrelatedNoise:
        return CorrelatedNoise(self.noise_multiplier, self.noise_band, source)

    @property
    @override
    def title(self) -> str:
        return f"matrix: noise correlated over {self.noise_band} rounds (banded square root)"


class CorrelatedNoise:
    """Noise C^-1 Z: y_t = (z * sensitivity * N_t - sum_j c_j y_(t-j)) / c_0, j from 1 to b - 1.

    Needs memory for b - 1 vectors of noise in float64.

    Args:
        noise_multiplier: z, relative to the sensitivity with one participation.
        band: b, at most the separation of two participations; 1 gives independent noise.
        source: of standard Gaussian values.
    """

    def __init__(self, noise_multiplier: float, band: int, source: Noise) -> None:
        if band < 1:
            raise ConfigError(f"the band is {band}", mend="give a separation of 1 round or more")
        self.noise_multiplier, self.band, self.source = noise_multiplier, band, source
        self.coefficients = root_coefficients(band)
        self._past = np.empty((0, 0))  # [at most b - 1, P], a ring
        self._rounds = 0
        self._scale = 0.0

    def noise(self, size: int, sensitivity: float) -> np.ndarray:
        """Noise of the next round, float64 [size].

        Raises:
            ConfigError: size or sensitivity are not those of the rounds before.
        """
        scale = self.noise_multiplier * sensitivity
        kept = self.band - 1
        if self._rounds == 0:
            self._past, self._scale = np.zeros((kept, size)), scale
        if self._past.shape[1] != size or self._scale != scale:
            raise ConfigError(
                f"the matrix mechanism began with {self._past.shape[1]} values and noise of {self._scale:g}, "
                f"and shall go on with {size} values and {scale:g}",
                mend="keep the model's shape and the clip norm for all rounds, or begin anew",
            )
        c = self.coefficients
        out = np.empty(size)
        for start in range(0, size, BLOCK):  # pieces that stay in the cache
            part = out[start : start + BLOCK]
            np.multiply(self.source.normal(len(part)), scale / c[0], out=part)
            for j in range(1, min(self.band, self._rounds + 1)):
                part -= self._past[(self._rounds - j) % kept, start : start + BLOCK] * (c[j] / c[0])
        if kept:
            self._past[self._rounds % kept] = out
        self._rounds += 1
        return out

    def state(self) -> dict[str, np.ndarray]:
        """What the next rounds depend on.

        ``noise`` float64 [at most b - 1, P]: the last vectors, the oldest first; ``size``, ``rounds``, ``scale`` [1].
        """
        kept = min(self.band - 1, self._rounds)
        order = [(self._rounds - j) % (self.band - 1) for j in range(kept, 0, -1)]
        return {
            "noise": self._past[order],
            "size": np.array([self._past.shape[1]], np.int64),
            "rounds": np.array([self._rounds], np.int64),
            "scale": np.array([self._scale]),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            StateError: something is missing, or it is of another band or noise.
        """
        try:
            noise, size = state["noise"], int(state["size"][0])
            rounds, scale = int(state["rounds"][0]), float(state["scale"][0])
        except (KeyError, IndexError) as error:
            raise StateError(
                f"the saved noise lacks {error}", mend="restore it from the state saved with the model"
            ) from error
        kept = min(self.band - 1, rounds)
        whole = noise.dtype == np.float64 and (noise.shape == (kept, size) or kept == len(noise) == 0)
        if not (whole and np.isfinite(noise).all() and rounds >= 0 and math.isfinite(scale)):
            raise StateError(
                f"the saved noise is {noise.dtype} {list(noise.shape)} after {rounds} rounds; a band of {self.band} "
                f"with {size} values keeps float64 {[kept, size]}",
                mend="go on with the privacy configuration that the state was saved with",
            )
        self._rounds, self._scale = rounds, scale
        self._past = np.zeros((self.band - 1, size))
        for j in range(1, kept + 1):
            self._past[(rounds - j) % (self.band - 1)] = noise[kept - j]


def root_coefficients(band: int) -> np.ndarray:
    """The first ``band`` coefficients of 1 / sqrt(1 - x), scaled to norm 1, float64 [band].

    They are the first column of the banded matrix C, which is lower triangular and Toeplitz.
    """
    c = np.ones(band)
    for j in range(1, band):
        c[j] = c[j - 1] * (2 * j - 1) / (2 * j)
    return c / math.sqrt(float(np.einsum("p,p->", c, c)))


def prefix_noise(config: Mechanism, rounds: int) -> np.ndarray:
    """How much noise is in the model after each round, float64 [rounds].

    The standard deviation of each coordinate of the sum of the rounds' means so far, over the clip norm: what
    mechanisms can be compared by, as correlated noise cancels in it. Devices' own noise is left out.

    Args:
        config: of the federation, with a fixed clip norm.
        rounds: how many.
    """
    band = min(config.noise_band, rounds)
    c = root_coefficients(config.noise_band)[:band]
    inverse = np.zeros(rounds)  # the first column of C^-1, which is Toeplitz too
    inverse[0] = 1 / c[0]
    for t in range(1, rounds):
        back = min(band - 1, t)
        inverse[t] = -float((c[1 : back + 1] * inverse[t - back : t][::-1]).sum()) / c[0]
    spread = np.sqrt(np.cumsum(np.cumsum(inverse) ** 2))
    return config.noise_std(1.0) * spread
