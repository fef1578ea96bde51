"""The ledger against dp-accounting called by hand, and against what is published."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import dp_accounting as dp
import pytest
from scipy import stats

from pfl_mobile.errors import ConfigError, LedgerError, PrivacyBudgetError
from pfl_mobile.privacy import (
    AdaptiveClipping,
    DeviceNoise,
    Fixed,
    Gaussian,
    Ledger,
    Matrix,
    NoNoise,
    Poisson,
    PrivacyConfig,
    Unsampled,
    required_noise,
    with_noise,
)
from pfl_mobile.privacy.limits import LEAST_DELTA, LEAST_EPSILON, MOST_EPSILON

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.0, "cohort": 100, "delta": 1e-5}
POISSON = Gaussian(**BASE, population=10_000, participation=Poisson())
FIXED = Gaussian(**BASE | {"noise_multiplier": 4.0}, population=10_000, participation=Fixed())
NONE = Gaussian(**BASE | {"noise_multiplier": 20.0})
MATRIX = Matrix(**BASE | {"noise_multiplier": 5.0}, participation=Unsampled(min_separation=20))
LOCAL = DeviceNoise(clip_norm=1.0, cohort=100, local_noise_multiplier=30.0, delta=1e-5)
ALL = {"poisson": POISSON, "fixed": FIXED, "none": NONE, "matrix": MATRIX, "local": LOCAL}


def ledger(config: PrivacyConfig, rounds: int) -> Ledger:
    return Ledger.after(config, rounds)


def hockey_stick(epsilon: float, sigma: float) -> float:
    """delta of one Gaussian release, by the formula of Balle and Wang (2018)."""
    cdf = stats.norm.cdf
    return float(cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * cdf(-0.5 / sigma - epsilon * sigma))


def test_poisson_rounds_cost_what_the_pld_accountant_says() -> None:
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 200)
    by_hand = dp.pld.PLDAccountant().compose(event).get_epsilon(1e-5)
    found = ledger(POISSON, 200).bound()
    assert found.accountant == "dp-accounting PLD"
    assert found.epsilon == pytest.approx(by_hand, rel=1e-9)
    assert found.epsilon <= dp.rdp.RdpAccountant().compose(event).get_epsilon(1e-5)


def test_fixed_cohorts_cost_what_the_rdp_accountant_says_at_twice_the_sensitivity() -> None:
    event = dp.SampledWithoutReplacementDpEvent(10_000, 100, dp.GaussianDpEvent(4.0 / 2))
    accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    by_hand = accountant.compose(event, 200).get_epsilon(1e-5)
    found = ledger(FIXED, 200).bound()
    assert found.accountant == "dp-accounting RDP"
    assert found.epsilon == pytest.approx(by_hand, rel=1e-9)


def test_rounds_without_sampling_cost_the_exact_gaussian() -> None:
    found = ledger(NONE, 50).epsilon()
    assert hockey_stick(found, 20 / math.sqrt(50)) == pytest.approx(1e-5, rel=1e-6)
    by_hand = dp.pld.PLDAccountant().compose(dp.GaussianDpEvent(20.0), 50).get_epsilon(1e-5)
    assert found == pytest.approx(by_hand, rel=1e-3)
    assert found <= by_hand


def test_replacing_a_device_costs_twice_the_sensitivity_of_leaving_it_out() -> None:
    """The PLD accountant doubles it itself under this relation, the RDP accountant does not."""
    by_hand = dp.pld.PLDAccountant(dp.NeighboringRelation.REPLACE_ONE).compose(dp.GaussianDpEvent(30.0), 7)
    assert ledger(LOCAL, 7).epsilon() == pytest.approx(by_hand.get_epsilon(1e-5), rel=1e-3)
    assert hockey_stick(ledger(LOCAL, 7).epsilon(), 30 / 2 / math.sqrt(7)) == pytest.approx(1e-5, rel=1e-6)


def test_a_matrix_mechanism_costs_one_gaussian_for_all_participations() -> None:
    assert ledger(MATRIX, 20).epsilon() == ledger(MATRIX, 1).epsilon()
    assert ledger(MATRIX, 21).epsilon() > ledger(MATRIX, 20).epsilon()
    assert hockey_stick(ledger(MATRIX, 80).epsilon(), 5 / math.sqrt(4)) == pytest.approx(1e-5, rel=1e-6)
    limited = MATRIX.replaced(participation=Unsampled(min_separation=20, max_participations=2))
    assert ledger(limited, 500).epsilon() == ledger(MATRIX, 40).epsilon()


def test_published_values_are_met() -> None:
    # Abadi et al. 2016, section 5: q = 0.01, sigma = 4, 10 000 steps, delta = 1e-5: 1.26 by the moments accountant
    abadi = POISSON.model_copy(update={"noise_multiplier": 4.0})
    assert 0.8 < ledger(abadi, 10_000).epsilon() <= 1.26
    # Balle and Wang 2018: sigma of the analytic Gaussian for (1, 1e-5), below the classical 4.84
    assert required_noise(Gaussian(**BASE, rounds=1), 1.0) == pytest.approx(3.7306, abs=1e-4)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_epsilon_grows_with_rounds_and_shrinks_with_delta(config: PrivacyConfig) -> None:
    assert ledger(config, 0).epsilon() == 0
    values = [ledger(config, n).epsilon() for n in (1, 10, 100)]
    assert 0 < values[0] <= values[1] < values[2] < math.inf
    assert ledger(config, 10).epsilon(1e-3) < values[1] < ledger(config, 10).epsilon(1e-8)
    counted = ledger(config, 9)
    assert counted.epsilon_after() == values[1]
    assert counted.rounds == 9


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_the_event_of_the_most_exposed_device_is_what_was_accounted(config: PrivacyConfig) -> None:
    made = ledger(config, 60)
    if isinstance(config.participation, Poisson):
        accountant = dp.pld.PLDAccountant()
    elif isinstance(config.participation, Fixed):
        accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    else:
        accountant = dp.pld.PLDAccountant()  # multipliers are relative to the relation's sensitivity already
    assert made.epsilon() == pytest.approx(accountant.compose(made.dp_event()).get_epsilon(1e-5), rel=1e-3)


def test_mixed_rounds_add_up() -> None:
    made = ledger(POISSON, 50)
    noisier = POISSON.model_copy(update={"noise_multiplier": 2.0})
    made = made.reconfigured(noisier)
    made.record(30)
    accountant = dp.pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 50)
    accountant.compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(2.0)), 30)
    assert made.epsilon() == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert made.rounds == 80
    limited = NONE.replaced(participation=Unsampled(max_participations=2))
    worst = ledger(limited.model_copy(update={"noise_multiplier": 40.0}), 5).reconfigured(limited)
    worst.record(1)
    assert hockey_stick(worst.epsilon(), (20**-2 + 40**-2) ** -0.5) == pytest.approx(1e-5, rel=1e-6)


def test_an_adaptive_clip_norm_costs_nothing_extra() -> None:
    adaptive = POISSON.model_copy(update={"adaptive": AdaptiveClipping(noise_multiplier=5.0)})
    assert ledger(adaptive, 100).epsilon() == ledger(POISSON, 100).epsilon()
    assert adaptive.update_noise_multiplier > POISSON.noise_multiplier


def test_without_noise_epsilon_is_infinite() -> None:
    assert ledger(NoNoise(clip_norm=1.0, cohort=1), 1).epsilon() == math.inf


def test_training_stops_before_the_round_that_exceeds_the_budget() -> None:
    allowed = ledger(POISSON, 7).epsilon()
    made = ledger(POISSON.model_copy(update={"budget_epsilon": allowed}), 6)
    made.check_budget()
    made.record()
    with pytest.raises(PrivacyBudgetError, match="round 8"):
        made.check_budget()


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_a_file_gives_the_same_ledger(config: PrivacyConfig, tmp_path: Path) -> None:
    made = ledger(config, 3)
    made.record(4)
    made.save(tmp_path / "ledger.json")
    again = Ledger.load(tmp_path / "ledger.json")
    assert again.entries == made.entries
    assert again.config == config
    assert again.epsilon() == made.epsilon()
    assert again.statement() == made.statement()


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("entries"),
        lambda v: v.update(version=2),
        lambda v: v["entries"][0].update(count=-1),
        lambda v: v["entries"][0].update(count=True),
        lambda v: v["entries"][0]["event"].update({"class": "LaplaceDpEvent"}),
        lambda v: v["entries"][0]["event"].update({"sampling_probability": 2}),
        lambda v: v["entries"][0]["event"].update({"sampling_probability": "1"}),
        lambda v: v["entries"][0]["event"]["event"].update({"noise_multiplier": -1}),
        lambda v: v["entries"][0]["event"].update({"event": {"class": "NonPrivateDpEvent"}}),
        lambda v: v["entries"][0]["event"].pop("event"),
    ],
)
def test_a_damaged_ledger_is_refused(damage: Any) -> None:
    value = json.loads(ledger(POISSON, 3).to_json())
    damage(value)
    with pytest.raises(LedgerError):
        Ledger.from_json(json.dumps(value))
    with pytest.raises(LedgerError):
        Ledger.from_json("[]")


def test_rounds_of_another_kind_do_not_add_up() -> None:
    for other in (FIXED, MATRIX, NONE, LOCAL):
        with pytest.raises(LedgerError):
            ledger(POISSON, 1).reconfigured(other)
    with pytest.raises(LedgerError):
        ledger(MATRIX, 1).reconfigured(MATRIX.replaced(participation=Unsampled(min_separation=5)))
    assert ledger(POISSON, 0).reconfigured(FIXED).rounds == 0


@pytest.mark.parametrize(
    ("config", "epsilon"), [(POISSON, 1.0), (FIXED, 2.0), (NONE, 3.0), (MATRIX, 2.0), (LOCAL, 4.0)]
)
def test_required_noise_is_enough_and_not_more(config: PrivacyConfig, epsilon: float) -> None:
    z = required_noise(config, epsilon, rounds=60)
    assert ledger(with_noise(config, z), 60).epsilon() <= epsilon
    assert ledger(with_noise(config, 0.995 * z), 60).epsilon() > epsilon


def test_impossible_budgets_are_refused() -> None:
    for epsilon in (0.0, -1.0, math.nan, math.inf, LEAST_EPSILON / 2, MOST_EPSILON * 2, 1e300):
        with pytest.raises(ConfigError, match="epsilon"):
            required_noise(POISSON, epsilon, rounds=10)
    with pytest.raises(ConfigError, match="delta"):
        POISSON.replaced(delta=LEAST_DELTA / 2)
    with pytest.raises(ConfigError, match="rounds"):
        required_noise(POISSON, 1.0)
    with pytest.raises(ConfigError, match="no noise"):
        required_noise(NoNoise(clip_norm=1.0, cohort=1), 1.0, rounds=3)


def test_hardly_any_noise_is_accounted_in_reasonable_time() -> None:
    """Epsilon in the hundreds is on a coarser grid, and still finite."""
    weak = POISSON.model_copy(update={"noise_multiplier": 0.25, "population": 1000})
    found = ledger(weak, 300).epsilon()
    assert 50 < found < 5000


@pytest.mark.parametrize("config", [POISSON, FIXED, MATRIX], ids=["poisson", "fixed", "matrix"])
@pytest.mark.parametrize(
    ("epsilon", "delta"), [(LEAST_EPSILON, 1e-6), (MOST_EPSILON, 1e-6), (2.0, LEAST_DELTA)]
)
def test_budgets_at_the_ends_of_what_is_planned_for_are_kept(
    config: PrivacyConfig, epsilon: float, delta: float
) -> None:
    config = config.model_copy(update={"delta": delta})
    noised = Ledger(with_noise(config, required_noise(config, epsilon, rounds=5)))
    noised.record(5)
    assert noised.epsilon() <= epsilon


def test_hardly_any_noise_is_accounted_for_too() -> None:
    assert ledger(POISSON.model_copy(update={"noise_multiplier": 1e-6}), 5).epsilon() > MOST_EPSILON
