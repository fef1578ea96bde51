"""Without noise, too, one device counts no more than is said."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_server.federation.config import FederationConfig
from pfl_server.summary import summary
from tests.server.testbed import federation_config, small

MOST = 2**31 - 1


def flat(values):
    return np.concatenate([values[name].reshape(-1) for name in ("a", "b")])


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.3),
        ({"rounds": {"max_examples": 1}}, 0.1),
        ({"privacy": {"example_cap": 20}}, 0.2 / 1.1),
        ({"rounds": {"max_part": 1.0}}, 0.1),
        ({"rounds": {"mode": "buffered"}}, 0.3),
        ({"privacy": {"mechanism": "local", "local_noise_multiplier": 9.0}}, 0.3),
        ({"strategy": {"name": "fedper"}}, 0.3),
        ({"strategy": {"name": "term", "parameters": {"t": 5.0}}}, 0.3),
        ({"strategy": {"name": "afl"}}, 0.3),
        ({"strategy": {"name": "qffl"}}, 0.3),
    ],
)
def test_a_device_that_names_many_examples_and_a_huge_loss_owns_no_mean(tmp_path, changes, share):
    config = federation_config(
        **{**changes, "rounds": {"cohort": 10, "minimum": 5} | changes.get("rounds", {})}
    )
    with small(tmp_path, config, devices=10) as f:
        before = flat(f.model().values)
        reports = dict.fromkeys(f.task(f.devices[0])["reports"], 1.0)
        for device in f.devices[:-1]:
            f.send(device, 0.0, examples=10, reports=reports)
        lie = dict.fromkeys(reports, 1e30)
        f.send(f.devices[-1], 1.0, examples=MOST, reports=lie)
        f.step()
        assert f.round(0).state == "merged", f.round(0).error
        moved = np.abs(flat(f.model().values) - before).max()
        assert 0 < moved <= share + 1e-5
        assert f.round(0).summary["largest_part"] <= share + 1e-5


def test_the_start_and_the_configuration_say_how_much_a_device_counts(tmp_path):
    config = federation_config(rounds={"max_examples": 70})
    with small(tmp_path, config) as f:
        said = summary(f.services, "http://x")["weights"]
    assert "70 examples" in said
    assert "3 equal shares" in said
    assert FederationConfig.load(config.dump()).rounds.max_examples == 70
