"""Noise that a device adds to its own update, so that it need not trust the aggregator, and what that guarantees."""

from __future__ import annotations

import math

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


def local_epsilon(inverse_squares: float, delta: float) -> float:
    """Exact epsilon against those who receive a device's updates (Balle and Wang 2018, Theorem 8).

    As one device's data replaced by any other moves a clipped update by 2 C, updates with z_1, z_2, ... are together
    one Gaussian release with mu = 2 (sum z_i^-2)^(1/2). Computed here, so that a device needs no other package; the
    same as ``accounting.Ledger.local_epsilon``, never below the true value by more than roundings.

    Args:
        inverse_squares: sum over the updates of z^-2; 0 where nothing was sent.
        delta: between 0 and 1.
    """
    return release_epsilon(2 * math.sqrt(inverse_squares), delta)


def release_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of one Gaussian release (Balle and Wang 2018, Theorem 8).

    Args:
        mu: how far one device moves it, in standard deviations of the noise.
        delta: between 0 and 1.
    """
    if mu == 0 or math.isinf(mu):
        return mu
    rho = mu * mu / 2
    low, high = 0.0, rho + 2 * math.sqrt(rho * math.log(1 / delta))  # by zCDP (Bun and Steinke 2016)
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    while True:
        middle = (low + high) / 2
        if high - low <= 1e-12 * high or not low < middle < high:
            return high
        if _gaussian_delta(middle, mu) <= delta:
            high = middle
        else:
            low = middle


def sampled_epsilon(mu: float, rate: float, delta: float) -> float:
    """Exact epsilon of one release that a device is in by a secret coin, when it is then left out.

    So no number of rounds costs less. delta(log(1 + q (e^x - 1))) = q delta_0(x), with delta_0 of the release itself
    (Balle, Barthe, Gaboardi 2018, Theorem 8).

    Args:
        mu: as in `release_epsilon`.
        rate: q, the probability of the coin, above 0.
        delta: between 0 and 1.
    """
    if rate >= 1:
        return release_epsilon(mu, delta)
    if delta >= rate:
        return 0.0
    whole = release_epsilon(mu, delta / rate)
    return math.log1p(rate * math.expm1(whole)) if whole < 500 else whole + math.log(rate)


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), which decreases with epsilon."""
    a, b = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)  # e^epsilon times that at b, without overflow
    return math.erfc(-a / math.sqrt(2)) / 2 - density * _mills(b)


def _mills(x: float) -> float:
    """Phi(-x) / phi(x) for x >= 0; of large x a lower bound, exact to 1e-9."""
    if x < 25:
        return math.sqrt(math.pi / 2) * math.erfc(x / math.sqrt(2)) * math.exp(x * x / 2)
    y = x**-2
    return (1 - y * (1 - 3 * y * (1 - 5 * y))) / x
