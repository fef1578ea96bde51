"""SCAFFOLD."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.optimizers import Momentum
from pfl_mobile.strategies import Equally, Local, create
from pfl_mobile.strategies.fedavg import FedAvg
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


@pytest.mark.parametrize("cohort", [2, 5])
def test_the_servers_control_is_the_mean_of_the_devices(cohort: int) -> None:
    fed = Federation(create("scaffold"), Softmax(), classes(5)).run(7, cohort=cohort)
    for name, c in fed.server.sets["c"].items():
        total = sum(copies["c_i"][name] for copies in fed.copies.values())
        assert np.abs(c).max() > 1e-3
        np.testing.assert_allclose(total / 5, c, atol=1e-5)


def test_the_first_round_is_fedavg() -> None:
    scaffold = Federation(create("scaffold"), Softmax(batch=32), classes(4), full_batch(0.2)).run(1)
    fedavg = Federation(FedAvg(weighting=Equally()), Softmax(batch=32), classes(4), full_batch(0.2)).run(1)
    assert_near(scaffold.server.values, fedavg.server.values, 1e-7)


def test_one_device_is_gradient_descent() -> None:
    data = lines(1)
    fed = Federation(create("scaffold"), LeastSquares(), data, full_batch(0.1, 4)).run(5)
    fedavg = Federation(create("fedavg"), LeastSquares(), data, full_batch(0.1, 4)).run(5)
    assert_near(fed.server.values, fedavg.server.values, 1e-5)


def test_rounds_are_those_of_algorithm_1() -> None:
    data, lr, k = lines(3), 0.1, 4
    fed = Federation(create("scaffold"), LeastSquares(), data, full_batch(lr, k))
    x, c, own = np.zeros(4), np.zeros(4), [np.zeros(4) for _ in data]
    for cohort in ([0, 1], [1, 2], [0, 2]):
        fed.round(cohort)
        ways, news = [], []
        for i in cohort:
            h, g = quadratic(data[i])
            y = x.copy()
            for _ in range(k):
                y = y - lr * (h @ y - g - own[i] + c)
            new = own[i] - c + (x - y) / (k * lr)
            ways.append(y - x)
            news.append(new - own[i])
            own[i] = new
        x, c = x + np.mean(ways, axis=0), c + len(cohort) / 3 * np.mean(news, axis=0)
    np.testing.assert_allclose(flat(fed.server.values), x, rtol=1e-4)
    np.testing.assert_allclose(flat(fed.server.sets["c"]), c, rtol=1e-3, atol=1e-5)


def test_many_local_steps_lead_to_the_common_optimum_where_fedavg_drifts() -> None:
    data = lines(5, spread=2.0)
    local = full_batch(0.1, 20)
    runs = {
        name: flat(Federation(strategy, LeastSquares(), data, local).run(60).server.values)
        for name, strategy in (("scaffold", create("scaffold")), ("fedavg", FedAvg(weighting=Equally())))
    }
    parts = [quadratic(rows) for rows in data]
    best = np.linalg.solve(sum(h for h, _ in parts), sum(g for _, g in parts))
    assert np.abs(runs["scaffold"] - best).max() < 1e-3
    assert np.abs(runs["fedavg"] - best).max() > 0.1


def test_personal_tensors_are_trained_without_control() -> None:
    fed = Federation(create("scaffold"), Softmax(personal=True), classes(3)).run(3)
    assert list(fed.server.sets["c"]) == ["body.weight"]
    assert list(fed.collect([0]).layout.shapes) == ["body.weight", "copy:c_i:body.weight"]
    assert np.abs(fed.personal[0]["head.bias"]).max() > 0


def test_controls_need_plain_sgd() -> None:
    fed = Federation(create("scaffold"), Softmax(), classes(2), Local(optimizer=Momentum(lr=0.1)))
    with pytest.raises(ConfigError, match="'momentum'"):
        fed.round()
