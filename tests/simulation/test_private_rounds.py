"""Rounds that merge by a robust rule, under attack, or under differential privacy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import CohortFailedError, ConfigError, OtherSettingsError, PrivacyError
from pfl_mobile.merge.robust import Krum, Median, TrimmedMean
from pfl_mobile.merge.rules import Average
from pfl_mobile.privacy import (
    DeviceNoise,
    Fixed,
    Gaussian,
    Ledger,
    Matrix,
    NoNoise,
    Poisson,
    PrivacyConfig,
    Unsampled,
)
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.checkpoint import load, save
from pfl_mobile.simulation.privacy import SimulatedPrivacy
from pfl_mobile.strategies import Updates, create
from tests.simulation.small import rounds, same, setup

pytest.importorskip("dp_accounting")

FEDAVG, SCAFFOLD = create("fedavg"), create("scaffold")
USERS, COHORT = 20, 6


def config(kind: type[PrivacyConfig] = Gaussian, **changes: Any) -> PrivacyConfig:
    fixed: dict[str, Any] = {"clip_norm": 0.5, "population": USERS, "cohort": COHORT}
    if kind is not NoNoise:
        fixed["delta"] = 1e-3
    if kind is Gaussian:
        fixed["participation"] = Fixed()
    if kind in (Gaussian, Matrix):
        fixed["noise_multiplier"] = 0.3
    return kind(**(fixed | changes))


POISSON: dict[str, Any] = {"participation": Poisson(), "noise_multiplier": 1.0}
MATRIX: dict[str, Any] = {"kind": Matrix, "participation": Unsampled(min_separation=3)}
ADAPTIVE: dict[str, Any] = POISSON | {"adaptive": {"noise_multiplier": 1.0}}
LOCAL: dict[str, Any] = {"kind": DeviceNoise, "local_noise_multiplier": 0.2}
NONE: dict[str, Any] = {"kind": NoNoise}


@dataclass(frozen=True)
class Worst:
    """A device that sends something huge."""

    times: float = 1e4

    def __call__(self, number: int, updates: Updates) -> Updates:
        changes = updates.changes.copy()
        changes[0] *= np.float32(self.times)
        return updates.replaced(changes=changes)


@pytest.fixture
def backend():
    with LocalBackend(0) as backend:
        yield backend


# -- robust


def test_the_weighted_mean_is_the_default(backend):
    one, two = rounds(FEDAVG, setup(), backend).run(), rounds(FEDAVG, setup(), backend, rule=Average()).run()
    assert same(one.values, two.values)


def test_a_rule_takes_the_place_of_the_mean(backend):
    with rounds(FEDAVG, setup(), backend, rounds=1) as plain:
        seen: list[Updates] = []
        plain.tamper = lambda number, updates: seen.append(updates) or updates
        plain.run()
    with rounds(FEDAVG, setup(), backend, rounds=1, rule=Median()) as robust:
        found = robust.run()
    name = next(iter(found.names("shared")))
    expected = robust.initial[name] + np.median(seen[0].layout.unpack(seen[0].changes)[name], axis=0)
    np.testing.assert_allclose(found.values[name], expected, rtol=1e-5, atol=1e-6)


def test_a_rule_keeps_what_an_attacker_spoils(backend):
    def moved(**more: Any) -> float:
        with rounds(FEDAVG, setup(), backend, rounds=1, tamper=Worst(), **more) as running:
            found = running.run()
            return max(float(np.abs(v - running.initial[n]).max()) for n, v in found.values.items())

    assert moved() > 100
    assert moved(rule=Median()) < 1
    assert moved(rule=TrimmedMean(attackers=0.2)) < 1


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_robust_and_private_rounds_do_not_depend_on_processes(backend, processes):
    for more in ({"rule": Median(), "tamper": Worst()}, {"privacy": config()}):
        expected = rounds(SCAFFOLD, setup(), backend, **more).run()
        with LocalBackend(processes) as other:
            found = rounds(SCAFFOLD, setup(), other, **more).run()
        assert same(expected.values, found.values)
        assert same(expected.sets["c"], found.sets["c"])


def test_a_rule_that_a_strategy_goes_around_is_refused():
    with pytest.raises(ConfigError, match="MultiTask"):
        rounds(create("multitask"), setup(), rule=Median())


# -- private


@pytest.mark.parametrize("more", [{}, POISSON, MATRIX, ADAPTIVE, LOCAL, NONE])
def test_private_rounds_give_the_same_bits_and_another_seed_others(backend, more):
    given = config(**more)
    one, two = (rounds(FEDAVG, setup(), backend, privacy=given).run() for _ in range(2))
    assert same(one.values, two.values)
    other = rounds(FEDAVG, setup(), backend, privacy=given, seed=6).run()
    assert not same(one.values, other.values)
    assert all(np.isfinite(v).all() for v in one.values.values())


@pytest.mark.parametrize("more", [{}, POISSON, MATRIX, ADAPTIVE, LOCAL])
def test_private_rounds_go_on_after_a_stop_with_the_same_bits(backend, more, tmp_path):
    given = config(**more)
    whole = rounds(FEDAVG, setup(), backend, rounds=5, privacy=given)
    expected = whole.run()
    with rounds(FEDAVG, setup(), backend, rounds=2, privacy=given, folder=tmp_path) as first:
        first.run()
    with rounds(FEDAVG, setup(), backend, rounds=5, privacy=given, folder=tmp_path, resume=True) as second:
        found = second.run()
        assert [r.epsilon for r in second.history] == [r.epsilon for r in whole.history]
    assert same(expected.values, found.values)
    assert same(expected.sets["privacy"], found.sets["privacy"])


@pytest.mark.parametrize("more", [POISSON, MATRIX])
def test_a_checkpoint_of_an_earlier_version_goes_on(backend, more, tmp_path):
    given = config(**more)
    limits = {"min_separation": given.min_separation, "max_participations": None}
    flat = {k: v for k, v in given.model_dump(mode="json").items() if k != "participation"}
    flat |= {"version": 1, "sampling": given.sampling} | limits
    with rounds(FEDAVG, setup(), backend, rounds=4, privacy=given) as whole:
        expected = whole.run()
    with rounds(FEDAVG, setup(), backend, rounds=2, privacy=given, folder=tmp_path) as first:
        first.run()
    path = next(tmp_path.glob("checkpoint*"))
    found = load(path)
    assert found is not None
    settings = found.settings | {"privacy": flat}
    numbers = found.numbers | {"privacy": found.numbers["privacy"] | {"config": flat}}
    save(path, replace(found, settings=settings, numbers=numbers))
    with rounds(FEDAVG, setup(), backend, rounds=4, privacy=given, folder=tmp_path, resume=True) as second:
        assert same(second.run().values, expected.values)


def test_other_privacy_or_rule_is_another_run(backend, tmp_path):
    with rounds(FEDAVG, setup(), backend, rounds=1, privacy=config(), folder=tmp_path) as first:
        first.run()
    for more in ({"privacy": config(clip_norm=0.6)}, {}, {"rule": Median()}, {"tamper": Worst()}):
        with pytest.raises(OtherSettingsError, match=r"privacy|rule|tamper"):
            rounds(FEDAVG, setup(), backend, rounds=2, folder=tmp_path, resume=True, **more)


@pytest.mark.parametrize("more", [{}, POISSON | {"cohort": 1}, MATRIX, ADAPTIVE])
@pytest.mark.parametrize("name", ["term", "maxfl"])
def test_private_rounds_weigh_devices_by_what_they_report(backend, name, more):
    parameters = {"loss_cap": 1.0} if name == "term" else {}
    given = config(**more)
    size = {"cohort_size": given.cohort, "rounds": 5, "privacy": given}
    with rounds(create(name, **parameters), setup(), backend, **size) as running:
        found = running.run()
    assert set(found.numbers) == {"privacy"}
    plain = rounds(FEDAVG, setup(), backend, **size).run()
    assert all(np.isfinite(v).all() for v in found.values.values())
    assert not same(found.values, plain.values)


def test_epsilon_is_the_ledgers_after_every_round(backend):
    with rounds(FEDAVG, setup(), backend, rounds=4, privacy=config(**POISSON)) as running:
        running.run()
        ledger = Ledger(config(**POISSON))
        for record in running.history:
            ledger.record()
            assert record.epsilon == ledger.epsilon()
        assert running.privacy is not None
        assert running.privacy.statement(running.server) == ledger.statement()


def test_rounds_end_before_the_budget_is_exceeded(backend, tmp_path):
    ledger = Ledger(config(noise_multiplier=1.0))
    budget = ledger.epsilon_after(3) * 1.001
    given = config(noise_multiplier=1.0, budget_epsilon=budget)
    with rounds(FEDAVG, setup(), backend, rounds=10, privacy=given, folder=tmp_path) as running:
        running.run()
        assert running.stopped
        assert len(running.history) == 3
        assert running.history[-1].epsilon <= budget
    with rounds(FEDAVG, setup(), backend, rounds=10, privacy=given, folder=tmp_path, resume=True) as again:
        again.run()
        assert (again.stopped, len(again.history)) == (True, 3)


def test_huge_updates_move_a_private_model_by_the_clip_norm_at_most(backend):
    def after(**more: Any) -> dict[str, np.ndarray]:
        with rounds(FEDAVG, setup(), backend, rounds=1, privacy=config(), **more) as running:
            return running.run().values

    one, other = after(), after(tamper=Worst(-1e30))
    distance = np.sqrt(sum(float(((one[n] - other[n]).astype(np.float64) ** 2).sum()) for n in one))
    assert 0 < distance <= 2 * 0.5 / COHORT * (1 + 1e-5)


def test_a_round_whose_devices_all_fail_is_an_error_though_private(backend):
    trouble = dict.fromkeys(range(USERS), "nan")
    with rounds(FEDAVG, setup(trouble=trouble), backend, rounds=1, privacy=config()) as running:
        with pytest.raises(CohortFailedError, match="all 6 devices"):
            running.run()
        assert running.history[0].epsilon > 0  # nobody was in it, but it was drawn and its noise was let out


def test_what_devices_hid_themselves_counts_though_it_was_not_merged(backend):
    """A server has the updates, whether or not a model comes of them."""
    given, ledger = config(**LOCAL), Ledger(config(**LOCAL))
    trouble = dict.fromkeys([1, 3, 5, 7, 9], "empty")
    cohorts = [[0, 2, 4, 6, 8, 10], [0, 1, 3, 5, 7, 9], [0, 2, 4, 6, 8, 10]]
    more = {"privacy": given, "rule": Krum(attackers=0.1), "choose": cohorts.__getitem__}
    with rounds(FEDAVG, setup(trouble=trouble), backend, **more) as running:
        running.run()
        assert [r.clients for r in running.history] == [6, 0, 6]
        for record in running.history:
            ledger.record()
            assert record.epsilon == ledger.epsilon()


def test_poisson_cohorts_have_the_rate_and_may_be_empty():
    given = SimulatedPrivacy(config(**POISSON, cohort=1), 3, USERS, 1)
    sizes = [len(given.draw(seed, 0)) for seed in range(2000)]
    assert 0 in sizes
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.1)
    assert np.var(sizes) == pytest.approx(0.95, abs=0.15)


def test_an_empty_poisson_round_is_run(backend):
    given = config(**POISSON, cohort=1)
    with rounds(FEDAVG, setup(), backend, rounds=6, cohort_size=1, privacy=given) as running:
        running.run()
        empty = next(r for r in running.history if r.clients == 0)
        assert (empty.loss, empty.examples, empty.failures) == (None, 0, {})
        assert len({r.epsilon for r in running.history}) == 6


def test_participations_are_apart_as_the_matrix_mechanism_needs():
    given = SimulatedPrivacy(config(**MATRIX), 3, USERS, COHORT)
    last: dict[int, int] = {}
    for number in range(30):
        chosen = given.draw(1000 + number, number)
        assert len(set(chosen)) == COHORT
        assert all(number - last.get(c, -3) >= 3 for c in chosen)
        last |= dict.fromkeys(chosen, number)


@pytest.mark.parametrize(
    ("strategy", "more", "error", "says"),
    [
        ("term", {"privacy": config()}, PrivacyError, "Tilted"),
        ("ifca", {"privacy": config()}, PrivacyError, "Ifca"),
        ("maxfl", {"privacy": config(**LOCAL)}, PrivacyError, "own_loss, sent_loss"),
        ("fedavg", {"privacy": config(), "rule": Median()}, PrivacyError, "Median"),
        ("fedavg", {"privacy": config(population=21)}, ConfigError, "population of 21"),
        ("fedavg", {"privacy": config(cohort=5)}, ConfigError, "cohort of 5"),
        ("fedavg", {"privacy": config(), "choose": lambda number: [1, 2]}, ConfigError, "choose"),
        (
            "fedavg",
            {"privacy": config(Matrix, participation=Unsampled(min_separation=4))},
            ConfigError,
            "at most 5",
        ),
        (
            "fedavg",
            {
                "privacy": config(Matrix, participation=Unsampled(min_separation=3, max_participations=1)),
                "rounds": 4,
            },
            ConfigError,
            "part 2 times",
        ),
    ],
)
def test_what_cannot_be_private_is_refused_before_anything_runs(strategy, more, error, says):
    with pytest.raises(error, match=says):
        rounds(create(strategy), setup(), **more)


def test_private_runs_leave_nothing_behind_when_a_merge_fails(backend, tmp_path: Path):
    def spoil(number: int, updates: Updates) -> Updates:
        changes = updates.changes.copy()
        changes[0, 0] = np.nan
        return updates.replaced(changes=changes) if number == 1 else updates

    with rounds(FEDAVG, setup(), backend, privacy=config(**MATRIX), tamper=spoil) as running:
        running.step()
        before = {n: v.copy() for n, v in running.server.sets["privacy"].items()}
        with pytest.raises(Exception, match="NaN"):
            running.step()
        assert same(before, running.server.sets["privacy"])
        assert running.privacy is not None
        assert running.privacy.epsilon(running.server) == running.history[0].epsilon
