"""Rounds from opening to a new version."""

from __future__ import annotations

import numpy as np

from tests.server.federation import federation_config, small


def test_a_round_of_updates_becomes_a_version(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as f:
        before = f.model()
        for device, value, examples in zip(f.devices, (0.1, 0.2, 0.4), (10, 20, 10), strict=True):
            f.send(device, value, examples=examples)
        f.step()
        after, version = f.model(), f.version()
        assert (version.number, version.round, version.parent) == (1, 0, 0)
        for name in ("a", "b"):
            np.testing.assert_allclose(after.values[name] - before.values[name], 0.225, rtol=1e-5)
        assert np.array_equal(after.values["p"], before.values["p"])
        assert after.round == 1
        merged = f.round(0)
        assert (merged.state, merged.result) == ("merged", 1)
        assert f.round().number == 1
        assert list(f.services.blobs.keys("updates/")) == []
