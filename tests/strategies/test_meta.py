"""What Per-FedAvg and Reptile have in common: initial models that devices make their own in a few steps."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, full_batch
from tests.strategies.models import LeastSquares, rows_of


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
