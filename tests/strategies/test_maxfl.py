"""MaxFL: the global model appeals to no fewer devices than FedAvg's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.maxfl import OWN_LOSS, Appeal, appeal_weights
from pfl_mobile.strategies.strategy import Strategy
from pfl_mobile.strategies.weighting import SENT_LOSS
from tests.strategies.harness import Federation, full_batch
from tests.strategies.models import Location, rows_of


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_weights_neither_overflow_nor_vanish(gaps: list[float]) -> None:
    found = appeal_weights(np.array(gaps))
    assert np.isfinite(found).all()
    assert found.max() == 1
    assert (np.diff(found[np.argsort(np.abs(gaps))]) <= 1e-12).all(), (
        "the nearer to the requirement, the more"
    )


def test_weights_are_the_derivative_of_the_sigmoid() -> None:
    gaps = np.linspace(-4, 4, 9)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    slope = (sigmoid(gaps + 1e-6) - sigmoid(gaps - 1e-6)) / 2e-6
    np.testing.assert_allclose(appeal_weights(gaps), slope / slope.max(), rtol=1e-6)


def problem(strategy: Strategy, seed: int) -> Federation:
    """Most devices lie near to each other, a fifth far away; a device alone is off by its few noisy steps."""
    rng = np.random.default_rng(seed)
    centers = np.where(rng.random(15) < 0.2, 12.0, 0.0) + rng.normal(size=15)
    data = [rows_of(x=c + rng.normal(size=(4, 1))) for c in centers]
    return Federation(strategy, Location(1, 4), data, full_batch(0.1, steps=3), seed=seed)


def prefer_global(fed: Federation) -> int:
    """How many devices have a smaller loss with the global model than with what they train alone."""
    probe = FedAvg(weighting=Appeal(warmup=5))
    asked = Federation(probe, fed.model, fed.data, fed.local, start=fed.shipped)
    asked.server.values = fed.server.values
    updates = asked.collect()
    return int((updates.report(SENT_LOSS) < updates.report(OWN_LOSS)).sum())


def test_appeal_is_not_below_that_of_fedavg() -> None:
    """In all over six seeds, and in all seeds but one at most: a local optimum may hold one device fewer."""
    plain = np.array([prefer_global(problem(FedAvg(), s).run(40)) for s in range(6)])
    feds = [problem(FedAvg(weighting=Appeal(warmup=5)), s).run(40) for s in range(6)]
    found = np.array([prefer_global(fed) for fed in feds])
    assert found.sum() > plain.sum()
    assert (found < plain).sum() <= 1
    assert all(0 <= fed.server.numbers["appeal"] <= 1 for fed in feds)


def test_what_a_device_trains_alone_is_not_kept() -> None:
    fed = problem(FedAvg(weighting=Appeal()), 0).run(1)
    assert all(not copies for copies in fed.copies.values())
