"""Studies that merge by a robust rule or under differential privacy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, OtherSettingsError, PrivacyError, UnknownNameError
from pfl_mobile.merge.robust import Median, TrimmedMean
from pfl_mobile.privacy import Gaussian, PrivacyConfig
from pfl_mobile.study import Machine
from tests.study.small import study


def config(**changes: Any) -> PrivacyConfig:
    fixed: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 0.5, "cohort": 4, "delta": 1e-3}
    return Gaussian(**(fixed | changes))


def test_a_robust_rule_goes_by_name_or_as_an_object():
    assert study(robust="median").robust == Median()
    assert study(robust=TrimmedMean(attackers=0.2)).robust == TrimmedMean(attackers=0.2)
    plain, robust = study().run(rounds=2), study(robust="median").run(rounds=2)
    assert any(not np.array_equal(plain.values[n], robust.values[n]) for n in plain.values)
    assert plain.privacy is None


def test_wrong_rules_are_refused_before_anything_runs():
    with pytest.raises(UnknownNameError, match="medain"):
        study(robust="medain")
    with pytest.raises(ConfigError, match="robust"):
        study(robust=3)
    with pytest.raises(ConfigError, match="MultiTask"):
        study("multitask", robust="median")
    with pytest.raises(ConfigError, match="a full round of 4 updates is too small"):
        study(robust=TrimmedMean(attackers=0.3))


def test_wrong_privacy_is_refused_before_anything_runs():
    pytest.importorskip("dp_accounting")
    with pytest.raises(ConfigError, match="privacy"):
        study(privacy={"clip_norm": 1})
    with pytest.raises(PrivacyError, match="Tilted"):
        study(fairness="term", privacy=config())
    with pytest.raises(PrivacyError, match="Median"):
        study(robust="median", privacy=config())
    with pytest.raises(ConfigError, match="cohort of 5"):
        study(privacy=config(cohort=5))


def test_a_private_study_tells_what_it_cost_and_repeats(tmp_path):
    pytest.importorskip("dp_accounting")
    with study(privacy=config(), folder=tmp_path / "one").run(rounds=3) as one:
        assert one.privacy is not None
        assert one.privacy["epsilon"] == one.history[-1].epsilon
        assert one.privacy["assumptions"]
        saved = json.loads(one.save(tmp_path / "one").read_text())
    assert saved["privacy"]["epsilon"] == one.history[-1].epsilon
    assert saved["history"][0]["epsilon"] < saved["history"][2]["epsilon"]
    assert saved["study"]["privacy"]["noise_multiplier"] == 0.5
    with study(privacy=config(), machine=Machine(processes=2, lanes=2)).run(rounds=3) as two:
        assert all(np.array_equal(one.values[n], two.values[n]) for n in one.values)
    with study(privacy=config(), folder=tmp_path / "one").result() as again:
        assert again.privacy == one.privacy
    with pytest.raises(OtherSettingsError, match="privacy"):
        study(folder=tmp_path / "one").run(rounds=3, resume=True)


def test_more_noise_is_a_worse_model():
    pytest.importorskip("dp_accounting")

    def accuracy(noise: float) -> float:
        with study(privacy=config(noise_multiplier=noise)).run(rounds=15) as result:
            return result.evaluate().global_acc

    assert accuracy(0.01) > accuracy(20.0) + 10
