"""Clipping: never above C, whatever the values; and a clip norm that finds its quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pfl_mobile.errors import ConfigError, NonFiniteError
from pfl_mobile.privacy import AdaptiveClip, AdaptiveClipping, SimulatedNoise, clip_factor, l2_norm
from pfl_mobile.privacy.clipping import MARGIN, clip_factors

VALUES = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def exact_norm(values: np.ndarray) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values.astype(np.float64)))


@given(VALUES, st.floats(1e-12, 1e12))
def test_a_clipped_update_is_never_longer_than_the_clip_norm(values: np.ndarray, clip_norm: float) -> None:
    """Product rounded to float32; as a phone does it, the factor too, unless it is too small for float32."""
    factor = clip_factor(l2_norm(values), clip_norm)
    assert 0 <= factor <= 1
    if factor > 1e-37:
        assert exact_norm(np.float32(factor) * values) <= clip_norm
    assert exact_norm((factor * values.astype(np.float64)).astype(np.float32)) <= clip_norm


@given(VALUES, st.floats(1e-12, 1e12))
def test_clipping_takes_no_more_than_the_margin(values: np.ndarray, clip_norm: float) -> None:
    norm = l2_norm(values)
    factor = clip_factor(norm, clip_norm)
    if norm * (1 + MARGIN) <= clip_norm:
        assert factor == 1
    else:
        assert factor * norm >= clip_norm * (1 - 2 * MARGIN)


def test_norms_neither_overflow_nor_vanish() -> None:
    assert l2_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)
    tiny = np.float32(1e-44)
    assert l2_norm(np.full(4, tiny)) == 2 * float(tiny)
    assert l2_norm(np.zeros(0, np.float32)) == 0


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        l2_norm(np.array([1, np.nan], np.float32))
    with pytest.raises(NonFiniteError, match="number 1"):
        clip_factors(np.array([1.0, np.inf]), 1.0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            clip_factor(1.0, bad)


def test_the_clip_norm_moves_by_the_geometric_rule() -> None:
    clip = AdaptiveClip(AdaptiveClipping(quantile=0.5, rate=0.2, noise_multiplier=1.0), 100.0, 2.0)
    assert clip.after(0.5).clip_norm == 2.0
    assert clip.after(1.0).clip_norm == pytest.approx(2.0 * math.exp(-0.1))
    assert clip.after(0.0).clip_norm == pytest.approx(2.0 * math.exp(0.1))
    assert clip.after(1e300).clip_norm > 0
    assert math.isfinite(clip.after(-1e300).clip_norm)
    assert clip.restored(clip.after(0.0).state()) == clip.after(0.0)


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_norm_finds_the_quantile(start: float) -> None:
    rng, noise = np.random.default_rng(0), SimulatedNoise(1)
    clip = AdaptiveClip(AdaptiveClipping(quantile=0.8, rate=0.3, noise_multiplier=5.0), 200.0, start)
    for _ in range(150):
        norms = rng.lognormal(0.0, 0.5, rng.poisson(200))
        clip = clip.after(clip.noisy_share(norms, noise))
    assert clip.clip_norm == pytest.approx(math.exp(0.5 * 0.8416), rel=0.15)


@given(st.lists(st.floats(0, 10), max_size=8), st.floats(0, 10))
def test_one_device_moves_the_count_by_one_half(norms: list[float], more: float) -> None:
    class Silent:
        secure = False

        def begin(self, round: int) -> None: ...  # noqa: A002

        def normal(self, size: int) -> np.ndarray:
            return np.zeros(size)

    clip = AdaptiveClip(AdaptiveClipping(noise_multiplier=1.0), 1.0, 1.0)
    without = clip.noisy_share(np.array(norms), Silent())
    assert abs(clip.noisy_share(np.array([*norms, more]), Silent()) - without) == pytest.approx(0.5)
