"""The privacy configuration: what fits together, and its file."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import (
    AdaptiveClipping,
    DeviceNoise,
    Fixed,
    Gaussian,
    Ledger,
    Matrix,
    Mechanism,
    NoNoise,
    Poisson,
    PrivacyConfig,
    Unsampled,
    checked_privacy,
    load_privacy,
)
from pfl_mobile.privacy.limits import rounded_up

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {"clip_norm": 0.5, "noise_multiplier": 1.0, "cohort": 100}
SILENT: dict[str, Any] = {"clip_norm": 0.5, "cohort": 100}
POISSON: dict[str, Any] = BASE | {"participation": Poisson(), "population": 10_000}
ADAPTIVE = AdaptiveClipping(noise_multiplier=5.0)


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        (Gaussian, BASE | {"noise_multiplier": 0}, "needs a noise_multiplier"),
        (Matrix, BASE | {"noise_multiplier": 0}, "needs a noise_multiplier"),
        (Matrix, POISSON, "uses none: set sampling"),
        (
            DeviceNoise,
            SILENT | {"local_noise_multiplier": 1.0, "participation": Fixed()},
            "uses none: set sampling",
        ),
        (Gaussian, POISSON | {"population": None}, "set population, or sampling to 'none'"),
        (Gaussian, POISSON | {"participation": Fixed(), "population": None}, "set population"),
        (Gaussian, POISSON | {"population": 50}, "larger than the population of 50; lower cohort"),
        (NoNoise, SILENT | {"population": 50}, "larger than the population"),
        (Gaussian, POISSON | {"delta": 1e-4}, "not well below 1 / population"),
        (
            Gaussian,
            POISSON | {"participation": {"sampling": "poisson", "min_separation": 5}},
            "min_separation",
        ),
        (
            Gaussian,
            POISSON | {"participation": {"sampling": "fixed", "max_participations": 5}},
            "max_participations",
        ),
        (Gaussian, POISSON | {"participation": {"sampling": "coins"}}, "coins"),
        (Matrix, BASE | {"adaptive": ADAPTIVE}, "adaptive"),
        (DeviceNoise, SILENT | {"local_noise_multiplier": 0}, "local_noise_multiplier above 0"),
        (DeviceNoise, SILENT, "local_noise_multiplier"),
        (DeviceNoise, BASE | {"local_noise_multiplier": 1}, "noise_multiplier"),
        (
            Gaussian,
            BASE | {"adaptive": ADAPTIVE, "local_noise_multiplier": 1.0},
            "set local_noise_multiplier to 0",
        ),
        (Gaussian, BASE | {"adaptive": {"noise_multiplier": 0.5}}, "above half"),
        (NoNoise, BASE, "noise_multiplier"),
        (NoNoise, SILENT | {"budget_epsilon": 1}, "budget_epsilon"),
        (Gaussian, BASE | {"band": 1}, "band"),
        (
            Matrix,
            BASE | {"participation": Unsampled(min_separation=4), "band": 5},
            "wider than min_separation",
        ),
        (Gaussian, POISSON | {"local_noise_multiplier": 1.0}, "would show it"),
        (Gaussian, BASE | {"clip_norm": 0}, "greater than"),
        (Gaussian, BASE | {"clip_norm": float("nan")}, "clip_norm"),
        (Gaussian, BASE | {"noise_multiplier": float("inf")}, "finite"),
        (Gaussian, BASE | {"clipnorm": 1}, "clipnorm"),
        (Gaussian, BASE | {"version": 1}, "version"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    kind: type[Mechanism], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        kind(**fields)
    with pytest.raises(ConfigError, match=says) as refused:
        kind.checked(**fields)
    assert refused.value.mend


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mechanism": "laplace"}, "'gaussian', 'matrix', 'local', 'none'"),
        ({"mechanism": "none", "noise_multiplier": 1.0}, "noise_multiplier, which belongs to gaussian and matrix"),
        ({"mechanism": "none", "delta": 1e-6}, "delta, which belongs to gaussian and matrix and local; remove"),
        ({"mechanism": "gaussian", "noise_multiplier": 1.0, "band": 2}, "band, which belongs to matrix; remove"),
        ({"mechanism": "matrix", "noise_multiplier": 1.0, "min_separation": 2}, "belongs to participation"),
        ({"mechanism": "matrix", "noise_multiplier": 1.0, "sampling": "poisson"}, "belongs to participation"),
        ({"mechanism": "none", "version": 3}, "its version is 3"),
    ],
)  # fmt: skip
def test_a_field_of_another_mechanism_is_refused_with_the_way_out(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        checked_privacy({"version": 2, **SILENT, **fields})


@pytest.mark.parametrize(
    "config",
    [
        Gaussian(**POISSON, rounds=10, budget_epsilon=2.0, example_cap=50, denominator=40.0),
        Gaussian(**BASE, adaptive=AdaptiveClipping(noise_multiplier=5.0)),
        Matrix(**BASE, band=5, participation=Unsampled(min_separation=7, max_participations=3)),
        DeviceNoise(clip_norm=1.0, cohort=3, local_noise_multiplier=4.0),
    ],
)
def test_a_file_gives_the_same_configuration(config: PrivacyConfig, tmp_path: Path) -> None:
    config.dump(tmp_path / "privacy.json")
    assert load_privacy(tmp_path / "privacy.json") == config


def test_an_invalid_file_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps({"clip_norm": -1, "cohort": 3}))
    with pytest.raises(ConfigError, match="clip_norm"):
        load_privacy(path)
    path.write_text("not json")
    with pytest.raises(ConfigError):
        load_privacy(path)
    with pytest.raises(ConfigError, match="absent"):
        load_privacy(tmp_path / "absent.json")


def test_weights_are_bounded_by_one() -> None:
    capped = Gaussian(**BASE, example_cap=10)
    assert capped.weights(np.array([0, 5, 10, 1_000_000])).tolist() == [0.0, 0.5, 1.0, 1.0]
    assert Gaussian(**BASE).weights(np.array([0, 5])).tolist() == [1.0, 1.0]


def test_noise_of_updates_and_count_together_is_the_configured_one() -> None:
    config = Gaussian(**BASE, adaptive=AdaptiveClipping(noise_multiplier=2.0))
    updates, count = config.update_noise_multiplier, 2 * 2.0
    assert (updates**-2 + count**-2) ** -0.5 == pytest.approx(1.0, rel=1e-12)
    assert Gaussian(**BASE).update_noise_multiplier == 1.0


def test_participations_follow_separation_and_limit() -> None:
    config = Matrix(**BASE, participation=Unsampled(min_separation=10, max_participations=3))
    assert [config.participations(n) for n in (0, 1, 10, 11, 21, 500)] == [0, 1, 1, 2, 3, 3]


def test_devices_clip_so_that_the_aggregator_still_sees_which_norms_are_above() -> None:
    assert Gaussian(**BASE).device_clip_norm() == 0.5
    adaptive = Gaussian(**BASE, adaptive=AdaptiveClipping(noise_multiplier=5.0))
    assert adaptive.device_clip_norm(2.0) == 8.0
    assert adaptive.accepted_norm(1000, 2.0) == 2.0


def test_a_statement_says_who_is_trusted_and_what_is_assumed() -> None:
    said = Ledger.after(Gaussian(**POISSON), 10).statement()
    assert said["private"]
    assert said["epsilon"] > 0
    assert said["unit"].startswith("device")
    assert "add-or-remove" in said["relation"]
    text = " ".join(said["assumptions"])
    assert "trusted" in text
    assert "0.01" in text
    assert any("evaluation reports" in s for s in said["not_covered"])
    local = Ledger.after(DeviceNoise(clip_norm=1.0, cohort=3, local_noise_multiplier=4.0), 2).statement()
    assert "Nobody is trusted" in local["assumptions"][0]
    assert local["local_epsilon"] == local["epsilon"]
    json.dumps([said, local], allow_nan=False)


def test_a_guarantee_is_never_rounded_to_a_better_one() -> None:
    assert rounded_up(2.00001) == pytest.approx(2.001)
    assert rounded_up(2.0) == 2.0
    assert rounded_up(0.00012341) == pytest.approx(0.0001235)
    assert rounded_up(123456.0) == pytest.approx(123500.0)
    assert rounded_up(0.0) == 0.0


def test_without_noise_the_statement_promises_nothing() -> None:
    said = Ledger.after(NoNoise(clip_norm=1.0, cohort=3), 2).statement()
    assert not said["private"]
    assert said["epsilon"] is None
    assert "no guarantee" in said["guarantee"]
    json.dumps(said, allow_nan=False)


def test_importing_it_needs_no_accountant_and_no_torch() -> None:
    code = "import sys, pfl_mobile.privacy; print({'torch', 'dp_accounting', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
