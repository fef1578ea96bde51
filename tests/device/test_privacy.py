"""What a device does to its update, and what it asks of a task, without believing the aggregator."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.device.privacy import protect
from pfl_mobile.privacy import l2_norm, private_update
from pfl_mobile.protocol.bodies import TaskPrivacy


class Ones:
    """Noise that is 1 everywhere, so that its scale can be read."""

    secure = False

    def begin(self, round):
        pass

    def normal(self, size):
        return np.ones(size)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e19, 1e38])
@pytest.mark.parametrize("clip_norm", [1e-9, 0.5, 1e3])
def test_an_update_of_any_size_is_clipped_as_everywhere(size, clip_norm):
    flat = np.array([1.0, -2.0, 0.5, 0.0, 3.0], np.float32) * np.float32(size)
    privacy = TaskPrivacy(mechanism="gaussian", clip_norm=clip_norm, noise_multiplier=1.0)
    found = protect(flat, privacy)
    np.testing.assert_array_equal(found.flat, private_update(flat, clip_norm, 0.0, Ones()))
    assert found.flat.dtype == np.float32
    assert found.clipped == (found.norm > clip_norm)
    sent = l2_norm(found.flat)
    assert sent <= clip_norm
    assert sent == pytest.approx(min(found.norm, clip_norm), rel=1e-5)  # the direction's length is not lost


def test_local_noise_is_added_after_clipping_and_relative_to_the_bound():
    privacy = TaskPrivacy(mechanism="local", clip_norm=0.5, noise_multiplier=0.0, local_noise_multiplier=4.0)
    found = protect(np.array([3.0, 4.0], np.float32), privacy, Ones())
    np.testing.assert_allclose(found.flat, [2.3, 2.4], rtol=1e-5)
    assert found.norm == 5.0
    assert found.clipped
