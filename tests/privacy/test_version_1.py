"""Privacy configurations of version 1: what was accepted means the same, what was refused is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.privacy import (
    DeviceNoise,
    Fixed,
    Gaussian,
    Ledger,
    Matrix,
    NoNoise,
    Poisson,
    PrivacyConfig,
    PrivateRounds,
    SimulatedNoise,
    Unsampled,
    checked_privacy,
    load_privacy,
    parse_privacy,
    required_noise,
)
from pfl_mobile.privacy.limits import delta_problem
from pfl_mobile.privacy.matrix import prefix_noise

#: What the code that wrote version 1 said of configurations of every kind, and computed from them.
RECORDED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("recorded.json").read_text())
TYPES = {"gaussian": Gaussian, "matrix": Matrix, "local": DeviceNoise, "none": NoNoise}
SAMPLINGS = {"poisson": Poisson, "fixed": Fixed, "none": Unsampled}
ROUNDS = 12


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@pytest.mark.parametrize("name", RECORDED)
def test_results_are_those_of_the_code_that_wrote_version_1(name: str) -> None:
    was = RECORDED[name]
    config = checked_privacy(was["version_1"])
    ledger = Ledger.after(config, ROUNDS)
    assert config.relation == was["relation"]
    assert config.round_event() == was["event"]
    assert (finite(ledger.epsilon()), ledger.bound().accountant) == (was["epsilon"], was["accountant"])
    assert finite(ledger.epsilon(1e-5)) == was["epsilon_at_1e-5"]
    assert finite(ledger.epsilon_after(3)) == was["epsilon_after"]
    said = ledger.statement()
    assert len(said.pop("not_covered")) == was["covers"]
    assert said == was["statement"]
    numbers = ("sampling_rate", "update_noise_multiplier", "noise_band", "expected_weight")
    assert [getattr(config, n) for n in numbers] == [was[n] for n in numbers]
    assert (config.sensitivity(), config.noise_std()) == (was["sensitivity"], was["noise_std"])
    assert (config.device_clip_norm(), config.accepted_norm(1000)) == (
        was["device_clip_norm"],
        was["accepted_norm"],
    )
    assert config.weights(np.array([0, 3, 10, 1000])).tolist() == was["weights"]
    assert [config.participations(n) for n in (0, 1, ROUNDS, 500)] == was["participations"]
    if was["prefix_noise"] is not None:
        assert prefix_noise(config, 8).tolist() == was["prefix_noise"]


@pytest.mark.parametrize("name", [n for n, was in RECORDED.items() if was["required_noise"] is not None])
def test_a_budget_needs_the_same_noise(name: str) -> None:
    was = RECORDED[name]
    assert required_noise(checked_privacy(was["version_1"]), 4.0) == was["required_noise"]


@pytest.mark.parametrize("name", RECORDED)
def test_noise_is_the_same_to_the_bit(name: str) -> None:
    was = RECORDED[name]
    config = checked_privacy(was["version_1"] | {"budget_epsilon": None})
    rounds = PrivateRounds(config, SimulatedNoise(3))
    rows = np.random.default_rng(7).standard_normal((6, 5)).astype(np.float32)
    weights = np.array([1, 0.5, 1, 1, 0, 2.0])
    means = [rounds.merge(MatrixRows(rows), weights).tolist() for _ in range(6)]
    assert [means[0], means[-1]] == was["means"]
    state = {name: np.asarray(value, np.float64).ravel().tolist() for name, value in rounds.state().items()}
    assert state == was["state"]


@pytest.mark.parametrize("name", RECORDED)
def test_a_file_of_version_1_becomes_the_type_and_a_file_of_version_2(name: str, tmp_path: Path) -> None:
    flat = RECORDED[name]["version_1"]
    (tmp_path / "privacy.json").write_text(json.dumps(flat))
    config = load_privacy(tmp_path / "privacy.json")
    assert type(config) is TYPES[flat["mechanism"]]
    assert type(config.participation) is SAMPLINGS[flat["sampling"]]
    for field in flat.keys() - {"version", "delta"}:
        assert held(config, field) == flat[field], field
    assert config.delta == (flat["delta"] if config.guarantees else 1.0)
    written = json.loads(config.to_json())
    assert (written["version"], written["mechanism"]) == (2, flat["mechanism"])
    assert parse_privacy(config.to_json()) == config


@pytest.mark.parametrize("name", RECORDED)
def test_a_ledger_of_version_1_is_read(name: str) -> None:
    was = RECORDED[name]
    text = {"version": 1, "config": was["version_1"], "entries": [{"event": was["event"], "count": ROUNDS}]}
    ledger = Ledger.from_json(json.dumps(text))
    assert finite(ledger.epsilon()) == was["epsilon"]
    assert Ledger.from_json(ledger.to_json()).entries == ledger.entries
    assert Ledger.from_json(ledger.to_json()).config == ledger.config


def test_what_was_left_out_was_the_default() -> None:
    text = (
        '{"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling": "poisson", "population": 1000, "cohort": 10}'
    )
    assert parse_privacy(text) == Gaussian(
        clip_norm=1.0, noise_multiplier=1.0, population=1000, cohort=10, participation=Poisson()
    )
    assert parse_privacy('{"mechanism": "none", "clip_norm": 1.0, "cohort": 3}') == NoNoise(
        clip_norm=1.0, cohort=3
    )


def held(config: PrivacyConfig, field: str) -> Any:
    """What a configuration has in place of a flat field; its default where the mechanism has nothing of the kind."""
    value = getattr(config, field, DEFAULTS.get(field))
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def was_refused(flat: dict[str, Any]) -> bool:
    """The rules between fields as version 1 had them, in the order of its fields; ranges are not among them."""
    f = DEFAULTS | flat
    mechanism, sampling, noisy = f["mechanism"], f["sampling"], f["mechanism"] != "none"
    central, local = f["noise_multiplier"] > 0, f["local_noise_multiplier"] > 0
    unsampled = f["min_separation"] == 1 and f["max_participations"] is None
    adaptive = f["adaptive"]
    devices = f["cohort"] if f["population"] is None else f["population"]
    return any(
        (
            mechanism in ("gaussian", "matrix") and not central,
            mechanism == "local" and (central or not local),
            not noisy and (central or local or f["budget_epsilon"] is not None),
            local and sampling == "poisson",
            f["band"] is not None and (mechanism != "matrix" or f["band"] > f["min_separation"]),
            f["population"] is not None and f["cohort"] > f["population"],
            sampling != "none"
            and (mechanism in ("matrix", "local") or f["population"] is None or not unsampled),
            noisy and bool(delta_problem(f["delta"], devices)),
            adaptive is not None
            and (
                mechanism != "gaussian" or local or f["noise_multiplier"] >= 2 * adaptive["noise_multiplier"]
            ),
        )
    )


DEFAULTS: dict[str, Any] = {
    "mechanism": "gaussian",
    "noise_multiplier": 0.0,
    "adaptive": None,
    "sampling": "none",
    "population": None,
    "rounds": None,
    "min_separation": 1,
    "band": None,
    "max_participations": None,
    "delta": 1e-6,
    "budget_epsilon": None,
    "example_cap": None,
    "denominator": None,
    "local_noise_multiplier": 0.0,
}
FLAT = st.fixed_dictionaries(
    {"clip_norm": st.sampled_from([0.5, 3.0]), "cohort": st.sampled_from([10, 200])},
    optional={
        "version": st.just(1),
        "mechanism": st.sampled_from(list(TYPES)),
        "noise_multiplier": st.sampled_from([0.0, 1.0, 4.0]),
        "adaptive": st.sampled_from(
            [None, {"noise_multiplier": 1.5}, {"quantile": 0.4, "noise_multiplier": 9.0}]
        ),
        "sampling": st.sampled_from(list(SAMPLINGS)),
        "population": st.sampled_from([None, 100, 5000]),
        "rounds": st.sampled_from([None, 7]),
        "min_separation": st.sampled_from([1, 4]),
        "band": st.sampled_from([None, 1, 3, 5]),
        "max_participations": st.sampled_from([None, 2]),
        "delta": st.sampled_from([1e-6, 1e-4, 0.5]),
        "budget_epsilon": st.sampled_from([None, 8.0]),
        "example_cap": st.sampled_from([None, 20]),
        "denominator": st.sampled_from([None, 8.5]),
        "local_noise_multiplier": st.sampled_from([0.0, 2.0]),
    },
)
#: Flat fields that a refusal is about.
FIELDS = ("noise_multiplier", "budget_epsilon", "sampling", "band", "cohort", "population", "delta", "adaptive",
          "min_separation", "max_participations", "count")  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(FLAT)
def test_nothing_is_accepted_that_was_refused_and_nothing_refused_that_was_accepted(
    flat: dict[str, Any],
) -> None:
    if was_refused(flat):
        with pytest.raises(ConfigError) as refused:
            checked_privacy(flat)
        assert any(field in refused.value.message for field in FIELDS), refused.value.message
        assert any(
            word in refused.value.message
            for word in ("set ", "remove", "lower", "raise", "say so", "must lie between")
        )
        assert refused.value.mend
    else:
        config = checked_privacy(flat)
        assert parse_privacy(config.to_json()) == config
        again: PrivacyConfig = type(config).model_validate(config.model_dump())
        assert again == config
        for field, value in (DEFAULTS | flat).items():
            if field not in ("version", "delta") or (field == "delta" and config.guarantees):
                found = held(config, field)
                assert found == value or (isinstance(found, dict) and found.items() >= value.items()), field


@pytest.mark.parametrize(
    ("field", "value"),
    [("noise_multiplier", -1.0), ("delta", 2.0), ("band", 0), ("clip_norm", math.nan), ("sampling", "coins"),
     ("mechanism", "laplace"), ("clipnorm", 1.0), ("version", 3), ("max_participations", 0), ("adaptive", {})],
)  # fmt: skip
@pytest.mark.parametrize("mechanism", TYPES)
def test_a_value_out_of_range_is_refused_also_where_it_would_be_left_out(
    mechanism: str, field: str, value: object
) -> None:
    flat = next(was["version_1"] for was in RECORDED.values() if was["version_1"]["mechanism"] == mechanism)
    with pytest.raises(ConfigError, match=field):
        checked_privacy(flat | {field: value})
