"""Per-FedAvg and Reptile: initial models that devices make their own in a few steps."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies import Equally, create
from pfl_mobile.strategies.fedavg import FedAvg
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic, rows_of


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


def test_reptile_with_epsilon_one_is_fedavg_with_equal_weights() -> None:
    reptile = Federation(create("reptile", epsilon=1.0), Softmax(), classes(4)).run(3)
    fedavg = Federation(FedAvg(weighting=Equally()), Softmax(), classes(4)).run(3)
    assert_same(reptile.server.values, fedavg.server.values)


def test_reptile_goes_a_part_of_the_way() -> None:
    start = {"body.weight": np.ones((3, 4), np.float32), "head.bias": np.zeros(3, np.float32)}
    runs = [
        Federation(create("reptile", epsilon=e), Softmax(), classes(3), start=start).run(1).server.values
        for e in (0.25, 1.0)
    ]
    way = {n: start[n] + 0.25 * (runs[1][n] - start[n]) for n in start}
    assert_near(runs[0], way, 1e-6)


def family(users: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Tasks of two kinds, y = +1 * x with large inputs (quickly learned) and y = -1 * x with small ones."""
    rng = np.random.default_rng(seed)
    data = []
    for user in range(users):
        slope, scale = (1.0, 1.3) if user % 2 else (-1.0, 0.4)
        x = scale * np.sign(rng.normal(size=(8, 3)))
        data.append(rows_of(x=x, y=(slope + 0.1 * rng.normal(size=3)) @ x.T))
    return data


@pytest.mark.parametrize(
    ("name", "values", "local"),
    [("per_fedavg", {"alpha": 0.3}, full_batch(0.2)), ("reptile", {"epsilon": 0.5}, full_batch(0.3, 4))],
)
def test_the_initial_model_adapts_to_unseen_users_better_than_that_of_plain_training(
    name: str, values: dict[str, float], local: object
) -> None:
    train, unseen = family(10, seed=1), family(10, seed=2)
    meta = Federation(create(name, **values), LeastSquares(), train, local).run(60).server.values  # type: ignore[arg-type]
    plain = Federation(create("fedavg"), LeastSquares(), train, full_batch(0.3)).run(60).server.values

    def adapted(start: dict[str, np.ndarray], k: int) -> float:
        fed = Federation(create("local"), LeastSquares(), unseen, full_batch(0.3, k), start=start)
        return fed.mean_loss()

    assert adapted(meta, 1) < 0.9 * adapted(plain, 1)
    assert adapted(meta, 3) < 0.9 * adapted(plain, 3)
