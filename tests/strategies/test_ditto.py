"""Ditto."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Location, Softmax, classes, flat, lines, quadratic, rows_of


def test_lambda_zero_is_local_training_beside_fedavg() -> None:
    data, local = classes(4), full_batch(0.3, 2)
    ditto = Federation(create("ditto", lam=0.0), Softmax(batch=32), data, local).run(3)
    alone = Federation(create("local"), Softmax(batch=32), data, local).run(3)
    for client in range(4):
        assert_near(ditto.copies[client]["personal"], alone.personal[client], 1e-6)


def test_the_global_part_is_fedavg_bit_for_bit() -> None:
    ditto = Federation(create("ditto", lam=3.0), Softmax(), classes(4)).run(3, cohort=2)
    assert_same(
        ditto.server.values,
        Federation(create("fedavg"), Softmax(), classes(4)).run(3, cohort=2).server.values,
    )


def test_a_huge_lambda_serves_the_global_model() -> None:
    fed = Federation(create("ditto", lam=1e25), Softmax(), classes(3)).run(3)
    assert_near(fed.served(1), fed.server.values, 1e-12)


def test_the_personal_model_minimizes_its_objective() -> None:
    data, lam = lines(2), 0.6
    fed = Federation(create("ditto", lam=lam), LeastSquares(), data, full_batch(0.3, 300)).run(2)
    h, g = quadratic(data[1])
    best = np.linalg.solve(h + lam * np.eye(4), g + lam * flat(fed.server.values))
    np.testing.assert_allclose(flat(fed.served(1)), best, atol=1e-5)


def test_point_estimation_is_best_and_fairest_at_the_lambda_of_the_theory() -> None:
    """Section 3 of the paper: lambda* = sigma^2 / (n tau^2). Every coordinate is a trial of its own."""
    devices, n, sigma, tau, trials = 100, 5, 1.0, 0.5, 300
    rng = np.random.default_rng(0)
    truth = tau * rng.normal(size=(devices, trials))
    data = [rows_of(x=truth[k] + sigma * rng.normal(size=(n, trials))) for k in range(devices)]
    error, variance = {}, {}
    for lam in (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 100.0):
        fed = Federation(create("ditto", lam=lam), Location(trials, batch=n), data, full_batch(1.0)).run(1)
        w = fed.server.values["w"]
        served = np.array([fed.served(k)["w"] for k in range(devices)])
        means = np.array([rows["x"].mean(axis=0) for rows in data])
        np.testing.assert_allclose(served, (means + lam * w) / (1 + lam), atol=1e-5)  # the closed form
        squares = (served - truth) ** 2
        error[lam], variance[lam] = squares.mean(), squares.var(axis=0).mean()
    assert min(error, key=error.__getitem__) == sigma**2 / (n * tau**2)
    assert min(variance, key=variance.__getitem__) == sigma**2 / (n * tau**2)
