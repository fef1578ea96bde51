"""Per-FedAvg: an initial model that is good after a gradient step."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


def test_alpha_zero_is_fedavg_bit_for_bit() -> None:
    fed = Federation(create("per_fedavg", alpha=0.0), Softmax(), classes(4)).run(3, cohort=3)
    fedavg = Federation(create("fedavg"), Softmax(), classes(4)).run(3, cohort=3)
    assert_same(fed.server.values, fedavg.server.values)
    assert_same(fed.served(0), fedavg.server.values)


def test_a_step_takes_the_gradient_at_the_adapted_model() -> None:
    data, alpha, beta = lines(1), 0.2, 0.1
    fed = Federation(create("per_fedavg", alpha=alpha), LeastSquares(), data, full_batch(beta, 3)).run(1)
    h, g = quadratic(data[0])
    w = np.zeros(4)
    for _ in range(3):
        ahead = w - alpha * (h @ w - g)
        w = w - beta * (h @ ahead - g)
    np.testing.assert_allclose(flat(fed.server.values), w, rtol=1e-4)
    np.testing.assert_allclose(flat(fed.served(0)), w - alpha * (h @ w - g), rtol=1e-4)
