"""APFL and interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


@pytest.mark.parametrize("name", ["apfl", "interpolation"])
def test_mix_zero_serves_the_global_model_of_fedavg(name: str) -> None:
    fed = Federation(create(name, alpha=0.0), Softmax(), classes(4)).run(3)
    fedavg = Federation(create("fedavg"), Softmax(), classes(4)).run(3)
    assert_same(fed.server.values, fedavg.server.values)
    assert_same(fed.served(2), fedavg.server.values)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_global_part_of_apfl_is_fedavg(alpha: float) -> None:
    fed = Federation(create("apfl", alpha=alpha), Softmax(), classes(4)).run(3)
    assert_same(fed.server.values, Federation(create("fedavg"), Softmax(), classes(4)).run(3).server.values)


def test_mix_one_of_apfl_is_local_training() -> None:
    data, local = classes(3), full_batch(0.3, 2)
    fed = Federation(create("apfl", alpha=1.0), Softmax(batch=32), data, local).run(3)
    alone = Federation(create("local"), Softmax(batch=32), data, local).run(3)
    for client in range(3):
        assert_near(fed.served(client), alone.served(client), 1e-6)


def test_mix_one_of_interpolation_is_fine_tuning() -> None:
    data = classes(3)
    fed = Federation(create("interpolation", alpha=1.0, finetune_epochs=2), Softmax(), data).run(3)
    tuned = Federation(create("fedavg_finetune", finetune_epochs=2), Softmax(), data).run(3)
    half = Federation(create("interpolation", alpha=0.5, finetune_epochs=2), Softmax(), data).run(3)
    assert_same(fed.served(1), tuned.served(1))
    middle = {n: (v + fed.server.values[n]) / 2 for n, v in fed.served(1).items()}
    assert_near(half.served(1), middle, 1e-6)


def test_apfl_takes_turns_as_in_the_paper() -> None:
    """The paper's loop in float64, for full batches."""
    data, alpha, lr, steps = lines(2), 0.4, 0.2, 3
    fed = Federation(create("apfl", alpha=alpha), LeastSquares(), data, full_batch(lr, steps)).run(2)
    w, v = np.zeros(4), [np.zeros(4), np.zeros(4)]
    for _ in range(2):
        local = []
        for i, rows in enumerate(data):
            h, g = quadratic(rows)
            w_i = w.copy()
            for _ in range(steps):
                w_i = w_i - lr * (h @ w_i - g)
                mix = alpha * v[i] + (1 - alpha) * w_i
                v[i] = v[i] - lr * alpha * (h @ mix - g)
            local.append(w_i)
        w = np.mean(local, axis=0)
    np.testing.assert_allclose(flat(fed.server.values), w, rtol=1e-4)
    for i in range(2):
        np.testing.assert_allclose(flat(fed.copies[i]["personal"]), v[i], rtol=1e-4, atol=1e-6)


def test_the_mix_of_apfl_is_fit_to_the_device() -> None:
    data = lines(3, spread=2.0)
    fed = Federation(create("apfl", alpha=0.5), LeastSquares(), data, full_batch(0.3, 100)).run(5)
    for client, rows in enumerate(data):
        h, g = quadratic(rows)
        z = np.linalg.solve(h, g)
        best = {"w": z[:3].astype(np.float32), "b": z[3:].astype(np.float32)}
        assert fed.loss(client, fed.served(client)) < fed.loss(client, best) + 1e-2
        assert fed.loss(client, fed.server.values) > fed.loss(client, best) + 0.1
