"""Weights by what devices report, in private rounds: each of its own device alone, and never above 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, PrivacyError
from pfl_mobile.federation.checks import check_own_noise
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.plan.phases import MeasurePhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.privacy import DeviceNoise, Gaussian, IndependentNoise, PrivateMean, SimulatedNoise
from pfl_mobile.strategies import Strategy, Updates, create
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.maxfl import OWN_LOSS, Appeal
from pfl_mobile.strategies.qffl import QFair, QFedAvg
from pfl_mobile.strategies.scaffold import Scaffold
from pfl_mobile.strategies.tilted import Tilted
from pfl_mobile.strategies.weighting import SENT_LOSS, ByOwnLoss
from tests.strategies.harness import Federation, full_batch, state
from tests.strategies.models import Softmax, classes

USERS, WIDTH = 6, 3
CLIP = 0.7
#: Any that a dishonest device may send.
REPORT = st.one_of(
    st.floats(),
    st.floats(-5, 5),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0]),
)
WEIGHTINGS = {
    "tilted": Tilted(t=1.5, loss_cap=2.0),
    "steep": Tilted(t=1e9, loss_cap=2.0),
    "tilted to the small": Tilted(t=-1.5),
    "untilted": Tilted(t=0.0),
    "q": QFair(q=1.7, loss_cap=2.0),
    "large q": QFair(q=500.0, loss_cap=1e-3),
    "q zero": QFair(q=0.0),
    "appeal": Appeal(),
}


def rule(clip_norm: float = CLIP, **more: Any) -> tuple[PrivateRule, list[np.ndarray]]:
    """A private rule without noise worth the name, and the weights that it is given."""
    config = Gaussian(**({"clip_norm": clip_norm, "noise_multiplier": 1e-12, "cohort": USERS} | more))
    private, seen = PrivateMean(config, IndependentNoise(1e-12, SimulatedNoise(0))), []

    def merge(rows: Any, weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return private.mean(rows, weights)

    return PrivateRule(config, merge), seen


def updates(changes: np.ndarray, reports: np.ndarray, examples: np.ndarray) -> Updates:
    count = len(changes)
    named = {SENT_LOSS: reports[:, 0], OWN_LOSS: reports[:, 1], "loss": np.full(count, math.nan)}
    layout = UpdateLayout({"w": (WIDTH,)})
    return Updates(layout, changes, range(count), examples, np.ones(count, int), named, [], 100)


def weights_of(
    weighting: ByOwnLoss, changes: np.ndarray, reports: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Weights of a private round in which device k has at most 10 examples that count."""
    given = updates(changes, reports, examples).under(rule(example_cap=10)[0])
    server: Any = None  # no weight of a private round may read it
    return weighting.weights(given, server)


@st.composite
def cohort(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes that are far too long, reports of any kind, and claimed numbers of examples."""
    count = draw(st.integers(1, 6))
    changes = [[draw(st.floats(-(2.0**99), 2.0**99, width=32)) for _ in range(WIDTH)] for _ in range(count)]
    reports = [[draw(REPORT), draw(REPORT)] for _ in range(count)]
    examples = [draw(st.integers(0, 2**31 - 1)) for _ in range(count)]
    return np.array(changes, np.float32), np.array(reports), np.array(examples, np.int64)


@pytest.mark.parametrize("name", WEIGHTINGS)
@given(cohort(), st.data())
def test_no_report_moves_the_sum_by_more_than_the_sensitivity(
    name: str, found: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    changes, reports, examples = found
    weights = weights_of(WEIGHTINGS[name], changes, reports, examples)
    assert ((weights >= 0) & (weights <= 1)).all()
    config = rule()[0].config
    private = PrivateMean(config, IndependentNoise(0.0, SimulatedNoise(0)))
    whole = private.exact_sum(MatrixRows(changes), weights)
    gone = data.draw(st.integers(0, len(changes) - 1))
    left = np.delete(np.arange(len(changes)), gone)
    without = weights_of(WEIGHTINGS[name], changes[left], reports[left], examples[left])
    np.testing.assert_array_equal(without, weights[left], err_msg="a device changes the weight of another")
    moved = whole - private.exact_sum(MatrixRows(changes[left]), without)
    assert np.linalg.norm(moved) <= config.sensitivity()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_device_whose_report_is_not_finite_counts_nothing(name: str) -> None:
    reports = np.array([[1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 1.0]])
    weights = weights_of(WEIGHTINGS[name], np.ones((4, WIDTH), np.float32), reports, np.full(4, 10))
    assert (weights[1:] == 0).all()
    assert (weights[0] > 0) == (name != "steep")


def test_a_weight_outside_its_range_is_clamped() -> None:
    given = updates(np.ones((4, WIDTH), np.float32), np.zeros((4, 2)), np.ones(4, int)).under(rule()[0])
    claimed = iter([7.0, -3.0, math.nan, math.inf])
    assert given.own_weights(lambda losses, examples: next(claimed), [SENT_LOSS]).tolist() == [1, 0, 0, 0]


def test_weights_by_own_reports_are_of_private_rules_and_known_reports() -> None:
    given = updates(np.ones((4, WIDTH), np.float32), np.zeros((4, 2)), np.ones(4, int))
    with pytest.raises(ConfigError, match="private"):
        given.own_weights(lambda losses, examples: 1.0, [SENT_LOSS])
    with pytest.raises(ConfigError, match="nothing"):
        given.under(rule()[0]).own_weights(lambda losses, examples: 1.0, ["nothing"])


def test_nobody_has_no_weights() -> None:
    nobody = Updates(
        UpdateLayout({"w": (WIDTH,)}), np.ones((0, WIDTH), np.float32), [], np.ones(0), np.ones(0), {}, [], 9
    )
    assert nobody.under(rule()[0]).own_weights(lambda losses, examples: 1.0, [SENT_LOSS]).shape == (0,)


# -- the same step as other rounds


def federation(strategy: Strategy) -> Federation:
    start = {
        t.name: np.random.default_rng(1).normal(size=t.shape).astype(np.float32) for t in Softmax().tensors
    }
    return Federation(strategy, Softmax(), classes(USERS, spread=2.0), start=start)


CAP = 6.0
SAME = {
    "term": create("term", t=0.8, loss_cap=CAP),
    "term to the small": create("term", t=-0.8),
    "maxfl": create("maxfl"),
    "qffl": FedAvg(weighting=QFair(q=2.0, loss_cap=CAP)),
    "scaffold and term": Scaffold(weighting=Tilted(t=0.8, loss_cap=CAP)),
}


@pytest.mark.parametrize("name", SAME)
def test_a_private_step_without_noise_is_the_usual_one_times_a_number(name: str) -> None:
    one, other = federation(SAME[name]), federation(SAME[name])
    before, collected = dict(one.server.values), one.collect()
    assert collected.report(SENT_LOSS).max() < CAP
    private, seen = rule(clip_norm=1e3, example_cap=1000, denominator=0.01)
    one.strategy.merge(one.server, collected.under(private))
    other.strategy.merge(other.server, collected)
    (weights,) = seen
    assert len(set(weights)) == USERS
    for key, old in before.items():
        step = (one.server.values[key] - old) * (0.01 / weights.sum())
        np.testing.assert_allclose(step, other.server.values[key] - old, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", SAME)
def test_nothing_of_the_reports_is_kept_by_a_private_round(name: str) -> None:
    fed = federation(SAME[name])
    fed.strategy.merge(fed.server, fed.collect().under(rule()[0]))
    assert fed.server.numbers == {}


def test_losses_above_the_cap_count_alike() -> None:
    reports = np.array([[2.0, 0], [3.0, 0], [1e9, 0], [1.0, 0]])
    for weighting in (Tilted(t=1.0, loss_cap=2.0), QFair(q=1.0, loss_cap=2.0)):
        found = weights_of(weighting, np.ones((4, WIDTH), np.float32), reports, np.array([10, 10, 5, 10]))
        least = math.exp(-1) if isinstance(weighting, Tilted) else 0.5
        np.testing.assert_allclose(found, [1, 1, 0.5, least])


# -- refused


@pytest.mark.parametrize("weighting", [Tilted(t=1.0), QFair(q=1.0)])
def test_without_a_cap_on_losses_rounds_cannot_be_private(weighting: ByOwnLoss) -> None:
    strategy = FedAvg(weighting=weighting)
    assert not strategy.private
    with pytest.raises(PrivacyError, match="no bound") as found:
        strategy.check_private(())
    assert "loss_cap" in str(found.value.mend)
    fed = federation(strategy)
    before = state(fed.server)
    with pytest.raises(PrivacyError, match="no bound"):
        fed.strategy.merge(fed.server, fed.collect().under(rule()[0]))
    assert state(fed.server) == before


@pytest.mark.parametrize("strategy", [*SAME.values(), create("term", t=0.0), FedAvg(weighting=QFair(q=0.0))])
def test_what_can_be_private_is_told(strategy: Strategy) -> None:
    assert strategy.private


@pytest.mark.parametrize("name", ["afl", "bounded_group_loss"])
def test_weights_by_the_losses_of_others_are_refused(name: str) -> None:
    with pytest.raises(PrivacyError, match=r"losses of (the devices|groups)"):
        create(name).check_private(())


def test_the_step_of_qffl_is_refused_and_its_weights_are_not() -> None:
    with pytest.raises(PrivacyError, match="norms of single changes") as found:
        create("qffl", loss_cap=1.0).check_private(())
    assert "fairness 'qffl'" in str(found.value.mend)
    assert QFedAvg(weighting=Tilted(t=1.0, loss_cap=1.0)).private


def test_noise_of_devices_does_not_go_with_reports() -> None:
    plan = Plan(phases=(MeasurePhase(report="sent_loss"),), upload=("role:shared",))
    own = {"clip_norm": 1.0, "cohort": 2, "local_noise_multiplier": 3.0}
    for config in (
        DeviceNoise(**own),
        Gaussian(noise_multiplier=1.0, **own),
    ):
        with pytest.raises(PrivacyError, match="sent_loss"):
            check_own_noise(config, plan)
        check_own_noise(config, plan.model_copy(update={"phases": ()}))
    check_own_noise(Gaussian(clip_norm=1.0, cohort=2, noise_multiplier=1.0), plan)


# -- worth having


def test_private_term_and_q_help_the_worst_device() -> None:
    def worst(strategy: Strategy) -> float:
        fed = Federation(strategy, Softmax(batch=32), classes(5, spread=2.0), full_batch(0.3))
        for _ in range(60):
            fed.strategy.merge(fed.server, fed.collect().under(rule(clip_norm=5.0, cohort=5)[0]))
            fed.server.round += 1
        return max(fed.loss(i, fed.served(i)) for i in range(5))

    plain = worst(FedAvg())
    assert worst(FedAvg(weighting=Tilted(t=3.0, loss_cap=1.0))) < 0.9 * plain
    assert worst(FedAvg(weighting=QFair(q=2.0, loss_cap=1.0))) < 0.9 * plain
