"""Server optimizers."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, NonFiniteError
from pfl_mobile.strategies import Server, create
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from tests.strategies.harness import Federation, assert_same, state
from tests.strategies.models import Softmax, classes, info

CHANGES = np.array([[0.5, -0.1, 0.0], [-0.2, -0.3, 0.4], [0.1, 0.6, -0.7]], np.float32)


def walk(optimizer: FedAvgM | FedAdagrad | FedAdam | FedYogi) -> np.ndarray:
    """The values after three given mean changes, from zero."""
    server = Server([info("w", "shared", (3,))], 1, {"w": np.zeros(3, np.float32)})
    values = dict(server.values)
    for change in CHANGES:
        optimizer.apply(server, "global", values, {"w": change})
    assert values["w"].dtype == np.float32
    return values["w"]


def test_momentum_follows_its_formula() -> None:
    x = v = np.zeros(3)
    for delta in CHANGES.astype(float):
        v = 0.8 * v + delta
        x = x + 0.5 * v
    np.testing.assert_allclose(walk(FedAvgM(lr=0.5, momentum=0.8)), x, rtol=1e-5)


@pytest.mark.parametrize("kind", [FedAdagrad, FedAdam, FedYogi])
def test_adaptive_optimizers_follow_algorithm_2(kind: type[FedAdagrad | FedAdam | FedYogi]) -> None:
    lr, beta1, beta2, tau = 0.05, 0.7, 0.9, 1e-2
    rest = {} if kind is FedAdagrad else {"beta2": beta2}
    x, m, v = np.zeros(3), np.zeros(3), np.full(3, tau**2)
    for delta in CHANGES.astype(float):
        m = beta1 * m + (1 - beta1) * delta
        if kind is FedAdagrad:
            v = v + delta**2
        elif kind is FedAdam:
            v = beta2 * v + (1 - beta2) * delta**2
        else:
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        x = x + lr * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(walk(kind(lr=lr, beta1=beta1, tau=tau, **rest)), x, rtol=1e-4)


def test_a_server_without_momentum_at_rate_one_is_fedavg_bit_for_bit() -> None:
    runs = [
        Federation(create(name, **values), Softmax(), classes(5)).run(3, cohort=3).server.values
        for name, values in (("fedavg", {}), ("fedavgm", {"momentum": 0.0}))
    ]
    assert_same(*runs)


def test_adam_without_memory_takes_steps_of_the_rates_size() -> None:
    values = walk(FedAdam(lr=0.1, beta1=0.0, beta2=0.0, tau=1e-12))
    np.testing.assert_allclose(values, 0.1 * np.sign(CHANGES).sum(axis=0), atol=1e-6)


def test_a_server_rate_that_overflows_is_refused_and_the_momenta_stay() -> None:
    fed = Federation(FedAvg(optimizer=FedAvgM(lr=1e38)), Softmax(), classes(3))
    updates = fed.collect()
    updates.changes[:] *= 100
    before = state(fed.server)
    with pytest.raises(NonFiniteError, match="server"), np.errstate(over="ignore"):
        fed.strategy.merge(fed.server, updates)
    assert state(fed.server) == before


def test_a_server_optimizer_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="tau"):
        FedAdam(tau=0.0)


def test_server_optimizers_go_with_other_strategies() -> None:
    strategy = type(create("fedprox"))(optimizer=FedYogi(lr=0.05))
    fed = Federation(strategy, Softmax(), classes(4))
    before = fed.mean_loss_at(fed.shipped)
    assert fed.run(5).mean_loss() < before
    assert fed.server.sets.keys() == {"global.m", "global.v"}
