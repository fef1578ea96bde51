"""Gaussian noise: from a cryptographically secure source for real rounds, from a seed for simulations.

A guarantee of differential privacy assumes that nobody can predict the noise. A generator such as PCG64 or Mersenne
Twister is predictable from its outputs, so `SecureNoise` uses the keystream of ChaCha20 (RFC 8439) under a new key
of the operating system for every block, and keeps no state between blocks: nothing can leak later, and processes
that fork do not repeat each other's noise.

Floating-point numbers are a second leak: they have gaps, and which values a textbook Gaussian sampler can give
depends on what they are added to (Mironov, "On significance of the least significant bits for differential
privacy", CCS 2012; Jin et al., "Are we there yet? Timing and floating-point attacks on differential privacy
systems", S&P 2022). Here each value is the sum of four independent Gaussians over 2, of eight uniform numbers with
53 random bits each, which puts the search for preimages out of reach (Holohan and Braghin, "Secure random sampling
in differential privacy", ESORICS 2021); sums are taken in float64, and what is released is rounded to float32. This
is a defence, not a proof: the guarantees elsewhere are those of real numbers.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np

from pfl_mobile.errors import ConfigError

#: Gaussians that are added up for one value.
SUMMANDS = 4
#: Values that one key gives; so many that everything of a block stays in a core's own cache.
BLOCK = 1 << 13
_HALF = BLOCK // 2
#: Of x^2 in sin(x) / x and cos(x): the next terms are below 2^-54 up to pi / 4.
_SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(8))
_COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(9))
_ZEROS = bytes(2 * SUMMANDS * _HALF * 8)


class Noise(Protocol):
    """A source of standard Gaussian values."""

    @property
    def secure(self) -> bool:
        """Whether the noise is fit for real devices: unpredictable, and never repeated."""

    def begin(self, round: int) -> None:  # noqa: A002
        """Called before the first value of a round, so that a simulation that resumes draws what it would have."""

    def normal(self, size: int) -> np.ndarray:
        """Independent N(0, 1) values, float64 [size]."""


class SecureNoise:
    """N(0, 1) values that nobody can predict or repeat.

    Holds no state: it can be shared by threads and processes.
    """

    secure = True

    def begin(self, round: int) -> None:  # noqa: A002
        """Nothing: every value is new."""

    def normal(self, size: int) -> np.ndarray:
        """Independent N(0, 1) values, float64 [size].

        Args:
            size: how many, 0 or more.
        """
        out = np.empty(_checked(size), np.float64)
        words = np.empty((2, SUMMANDS, _HALF), np.uint64)
        for start in range(0, size, BLOCK):
            _keystream(words)
            values = _summed_box_muller(words)
            part = out[start : start + BLOCK]
            part[:] = values[: len(part)]
        return out


class SimulatedNoise:
    """N(0, 1) values that repeat with their seed: for tests and simulations, where there is no real device.

    Args:
        seed: of numpy's PCG64, 0 or more.
    """

    secure = False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.begin(0)

    def begin(self, round: int) -> None:  # noqa: A002
        """From here on the values are those of this seed and round, whatever was drawn before."""
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, round])))

    def normal(self, size: int) -> np.ndarray:
        """The next N(0, 1) values, float64 [size]."""
        return self._generator.standard_normal(_checked(size))


def require_secure(noise: Noise) -> None:
    """Refuse noise that can be predicted.

    Raises:
        ConfigError: the noise is a simulation's.
    """
    if noise.secure is not True:
        raise ConfigError(
            f"{type(noise).__name__} repeats with its seed, so noise of it hides nothing",
            mend="use SecureNoise() for rounds with real devices",
        )


def _checked(size: int) -> int:
    if size < 0:
        raise ConfigError(f"{size} values of noise", mend="give 0 or more")
    return size


def _keystream(words: np.ndarray) -> None:
    """Fill ``words`` with the first bytes of ChaCha20 under a fresh key."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    # a key is used once, so the nonce may be constant
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
    cipher.update_into(_ZEROS, words.data.cast("B"))


def _summed_box_muller(words: np.ndarray) -> np.ndarray:
    """Words of 64 random bits [2, SUMMANDS, h], which are overwritten, to N(0, 1) values [2 h].

    Box and Muller (1958): r cos(a) and r sin(a) are independent and Gaussian. The two of a pair go to different
    values, so that every value is a sum over ``SUMMANDS`` independent pairs. The angle is uniform in one quadrant,
    and two further bits are the signs.
    """
    cosine_sign = (words[1] & np.uint64(1)) << np.uint64(63)
    sine_sign = (words[1] & np.uint64(2)) << np.uint64(62)
    np.right_shift(words, 11, out=words)
    radius, angle = words.astype(np.float64)
    radius += 1.0  # in (0, 1], so that the logarithm is finite
    radius *= 2.0**-53
    np.log(radius, out=radius)
    radius *= -1.0
    np.sqrt(radius, out=radius)  # r / sqrt(2)
    angle *= math.pi / 2 * 2.0**-53
    cosine, sine = _quadrant(angle)
    for part, sign in ((cosine, cosine_sign), (sine, sine_sign)):
        part *= radius
        bits = part.view(np.uint64)
        bits ^= sign
    values = np.concatenate([cosine.sum(axis=0), sine.sum(axis=0)])
    values /= math.sqrt(SUMMANDS)
    return values


def _quadrant(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(2) times cosine and sine of angles from 0 to pi / 2, to 2^-51; ``angle`` is overwritten.

    By the series around pi / 4, several times as fast as numpy's functions, and in the same time for any angle.
    """
    angle -= math.pi / 4
    square = angle * angle
    odd = _polynomial(square, _SINE)
    odd *= angle
    even = _polynomial(square, _COSINE)
    np.subtract(even, odd, out=angle)
    even += odd
    return angle, even


def _polynomial(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """The lowest coefficient first."""
    out: np.ndarray = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        out += c
        out *= x
    out += coefficients[0]
    return out
