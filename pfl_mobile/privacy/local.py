"""Noise that a device adds to its own update, so that it need not trust the aggregator."""

from __future__ import annotations

import numpy as np

from pfl_mobile.privacy.clipping import clip_factor, l2_norm
from pfl_mobile.privacy.noise import Noise


def private_update(flat: np.ndarray, clip_norm: float, noise_multiplier: float, source: Noise) -> np.ndarray:
    """An update clipped to C with N(0, (z C)^2) on every value, float32 of the same shape.

    Args:
        flat: all tensors of the update together, float32 [P].
        clip_norm: C.
        noise_multiplier: z, the configuration's ``local_noise_multiplier``; 0 only clips.
        source: ``SecureNoise()`` on a real device.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    clipped = np.asarray(flat, np.float64) * clip_factor(l2_norm(flat), clip_norm)
    if noise_multiplier:
        clipped = clipped + (noise_multiplier * clip_norm * source.normal(clipped.size)).reshape(
            clipped.shape
        )
    return clipped.astype(np.float32)
