"""APFL: a model of one's own, mixed with that of all."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


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
