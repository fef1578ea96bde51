"""Clipping to an L2 norm that holds for the float32 values too, and a clip norm that follows a quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfl_mobile.errors import ConfigError, NonFiniteError
from pfl_mobile.privacy.gaussian import AdaptiveClipping
from pfl_mobile.privacy.noise import Noise

#: Clipped norms stay this share below C: far more than all roundings of float32 and float64 together can add
#: (2^-24 for each of factor, product and weight, and some P * 2^-53 for the norm), far less than anybody notices.
MARGIN = 2.0**-20
#: An adaptive clip norm stays in this range, whatever the noise.
SMALLEST, LARGEST = 1e-12, 1e12


def l2_norm(flat: np.ndarray) -> float:
    """L2 norm of all values together, in float64: squares of float32 overflow at 1e19 and vanish at 1e-23.

    Args:
        flat: float32 or float64, any shape.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    wide = np.asarray(flat, np.float64).reshape(-1)
    norm = math.sqrt(float(np.einsum("p,p->", wide, wide)))
    _check(np.array([norm]))
    return norm


def clip_factor(norm: float, clip_norm: float) -> float:
    """What an update of this norm is multiplied by, in 0..1; see ``clip_factors``."""
    return float(clip_factors(np.array([norm]), clip_norm)[0])


def clip_factors(norms: np.ndarray, clip_norm: float) -> np.ndarray:
    """min(1, C / norm), float64 [n], rounded down so that the clipped norm is never above C.

    This holds where the product is rounded to float32, and where the factor is too if it is above 1e-37 (below,
    rounding to float32 is not relative).

    Args:
        norms: float64 [n].
        clip_norm: C > 0.

    Raises:
        NonFiniteError: a norm is NaN or infinite.
        ConfigError: C is not a positive number.
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ConfigError(f"the clip norm is {clip_norm}", mend="give a positive number")
    _check(norms)
    padded = np.asarray(norms, np.float64) * (1.0 + MARGIN)
    return np.where(padded > clip_norm, clip_norm / np.maximum(padded, clip_norm), 1.0)


def _check(norms: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise NonFiniteError(
            f"{len(bad)} of {len(norms)} updates have a norm that is NaN or infinite, the first is number {bad[0]}",
            mend="refuse such updates before they are clipped: there is no clip factor for them",
        )


@dataclass(frozen=True)
class AdaptiveClip:
    """The clip norm of a round, and how it moves to the next. Immutable: keep what ``after`` returns.

    Attributes:
        config: how it moves.
        cohort: expected devices in a round, m; the count is divided by it and not by the real number, which
            would depend on who takes part.
        clip_norm: C of the coming round.
    """

    config: AdaptiveClipping
    cohort: float
    clip_norm: float

    def noisy_share(self, norms: np.ndarray, noise: Noise) -> float:
        """Share of updates with a norm of at most C, with noise; may lie outside of 0..1.

        1/2 + (sum of (bit - 1/2) + N(0, sigma_b^2)) / m: bits less one half, so that a device moves the sum by 1/2
        whether it is above or below.

        Args:
            norms: float64 [n], before clipping.
            noise: as secure as that of the updates.
        """
        count = float((np.asarray(norms) <= self.clip_norm).sum()) - len(norms) / 2
        count += self.config.noise_multiplier * float(noise.normal(1)[0])
        return 0.5 + count / self.cohort

    def after(self, share: float) -> AdaptiveClip:
        """The state for the next round: C <- C exp(-rate (share - quantile)).

        Args:
            share: from ``noisy_share``.
        """
        step = -self.config.rate * (share - self.config.quantile)
        # what is released has noise already, so limits cost nothing
        moved = self.clip_norm * math.exp(min(max(step, -30.0), 30.0))
        return replace(self, clip_norm=min(max(moved, SMALLEST), LARGEST))

    def state(self) -> dict[str, Any]:
        """What to save, as JSON values."""
        return {"clip_norm": self.clip_norm}

    def restored(self, state: dict[str, Any]) -> AdaptiveClip:
        """The state that was saved."""
        return replace(self, clip_norm=float(state["clip_norm"]))
