"""L2-SP: what was known before must not be forgotten."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic

START = {"w": np.array([1, -1, 2], np.float32), "b": np.array([0.5], np.float32)}


def test_mu_zero_is_fedavg_bit_for_bit() -> None:
    fed = Federation(create("l2sp", mu=0.0), Softmax(), classes(4)).run(3, cohort=3)
    tuned = Federation(create("fedavg_finetune"), Softmax(), classes(4)).run(3, cohort=3)
    assert_same(fed.server.values, tuned.server.values)
    assert_same(fed.served(1), tuned.served(1))


def test_l2sp_remembers_the_start_over_many_rounds_and_fedprox_does_not() -> None:
    data, mu = lines(1), 0.5
    runs = [
        Federation(create(name, mu=mu), LeastSquares(), data, full_batch(0.3, 40), start=START).run(25)
        for name in ("l2sp", "fedprox")
    ]
    h, g = quadratic(data[0])
    held = np.linalg.solve(h + mu * np.eye(4), g + mu * flat(START))
    np.testing.assert_allclose(flat(runs[0].server.values), held, atol=1e-4)
    np.testing.assert_allclose(flat(runs[1].server.values), np.linalg.solve(h, g), atol=1e-2)


def test_a_huge_mu_leaves_the_shipped_model() -> None:
    fed = Federation(create("l2sp", mu=1e25), Softmax(), classes(3)).run(2)
    assert_near(fed.served(0), fed.shipped, 1e-12)
