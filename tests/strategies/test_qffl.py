"""q-FFL and AFL."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.strategies.afl import Agnostic, project_to_simplex
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.qffl import TINY, QFair, QFedAvg, qffl
from pfl_mobile.strategies.strategy import Strategy
from pfl_mobile.strategies.weighting import SENT_LOSS
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import Softmax, classes

USERS = 5


def run(strategy: Strategy, rounds: int = 60, groups: tuple[str, ...] = ()) -> Federation:
    data = classes(USERS, spread=2.0)
    return Federation(strategy, Softmax(batch=32), data, full_batch(0.3), groups=groups).run(rounds)


def losses(fed: Federation) -> np.ndarray:
    return np.array([fed.loss(i, fed.served(i)) for i in range(USERS)])


def test_q_zero_is_fedavg() -> None:
    plain = run(FedAvg()).server.values
    assert_near(run(qffl(q=0.0, lipschitz=123.0)).server.values, plain)
    assert_near(run(FedAvg(weighting=QFair(q=0.0))).server.values, plain)


def test_the_step_is_that_of_algorithm_2() -> None:
    q, lipschitz = 1.7, 1 / 0.3
    fed = run(qffl(q=q, lipschitz=lipschitz), rounds=1)
    before = dict(fed.server.values)
    updates = fed.collect()
    f, p = updates.report(SENT_LOSS) + TINY, updates.examples / updates.examples.sum()
    slope = -lipschitz * updates.changes.astype(np.float64)
    h = q * f ** (q - 1) * (slope**2).sum(axis=1) + lipschitz * f**q
    step = (p * f**q) @ slope / (p * h).sum()
    fed.strategy.merge(fed.server, updates)
    for name, delta in updates.layout.unpack(step).items():
        np.testing.assert_allclose(fed.server.values[name], before[name] - delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "fair",
    [qffl(q=4.0, lipschitz=1 / 0.3), FedAvg(weighting=QFair(q=4.0)), FedAvg(weighting=Agnostic(step=0.2))],
    ids=["q-fedavg", "weighting", "afl"],
)
def test_losses_spread_less_than_with_fedavg(fair: Strategy) -> None:
    plain, other = losses(run(FedAvg(), 150)), losses(run(fair, 150))
    assert other.max() < plain.max()
    assert other.std() < plain.std()


def test_another_weighting_takes_the_place_of_q() -> None:
    weighting = Agnostic(step=0.5)
    other = run(QFedAvg(weighting=weighting), 5)
    assert_near(other.server.values, run(FedAvg(weighting=weighting), 5).server.values, 0.0)


def test_a_large_power_does_not_overflow() -> None:
    assert np.isfinite(losses(run(qffl(q=500.0), 5))).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_projection_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    x = np.array(values)
    found = project_to_simplex(x)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    # Optimality: x - found has its largest entries, all equal, where found is positive.
    gap = x - found
    np.testing.assert_allclose(gap[found > 1e-12], gap.max(), atol=1e-9)


def test_agnostic_without_a_step_counts_domains_equally() -> None:
    fed = run(FedAvg(weighting=Agnostic(step=0.0)), 2, groups=("a", "a", "b", "b", "b"))
    updates = fed.collect()
    weights = fed.strategy.weighting.weights(updates, fed.server)
    assert weights[:2].sum() == pytest.approx(0.5)
    assert weights[2:].sum() == pytest.approx(0.5)
    assert weights[0] / weights[1] == pytest.approx(updates.examples[0] / updates.examples[1])


def test_agnostic_moves_the_mixture_to_the_worst_group() -> None:
    fed = run(FedAvg(weighting=Agnostic(step=0.5)), 30, groups=("a", "a", "b", "b", "b"))
    mixture = fed.server.numbers["afl"]
    assert sum(mixture.values()) == pytest.approx(1)
    plain = run(FedAvg(), 30)
    means = {g: losses(plain)[[i for i in range(USERS) if ("aabbb")[i] == g]].mean() for g in "ab"}
    assert max(mixture, key=lambda g: mixture[g]) == max(means, key=lambda g: means[g])
