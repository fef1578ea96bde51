"""pFedMe."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.phases import RepeatPhase, TrainPhase
from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


def test_a_round_is_that_of_the_authors_program() -> None:
    """Their loops in float64: theta goes on over the R repetitions, w_i follows it, beta mixes by examples."""
    data = lines(3)
    lam, eta, beta, lr, repeats, inner = 4.0, 0.05, 2.0, 0.1, 3, 2
    strategy = create(
        "pfedme", lam=lam, eta=eta, beta=beta, local_rounds=repeats, inner_steps=inner, prox="explicit"
    )
    fed = Federation(strategy, LeastSquares(), data, full_batch(lr)).run(2)
    w = np.zeros(4)
    for _ in range(2):
        local, theta_of = [], []
        for rows in data:
            h, g = quadratic(rows)
            w_i, theta = w.copy(), w.copy()
            for _ in range(repeats):
                for _ in range(inner):
                    theta = theta - lr * (h @ theta - g + lam * (theta - w_i))
                w_i = w_i - lam * eta * (w_i - theta)
            local.append(w_i)
            theta_of.append(theta)
        w = (1 - beta) * w + beta * np.mean(local, axis=0)
    np.testing.assert_allclose(flat(fed.server.values), w, rtol=1e-4)
    np.testing.assert_allclose(flat(fed.copies[2]["personal"]), theta_of[2], rtol=1e-4)


@pytest.mark.parametrize("prox", ["explicit", "implicit"])
def test_both_forms_of_the_pull_find_the_same_personal_model(prox: str) -> None:
    data, lam = lines(1), 3.0
    strategy = create("pfedme", lam=lam, eta=0.0, inner_steps=150, local_rounds=1, prox=prox)
    start = {"w": np.ones(3, np.float32), "b": np.ones(1, np.float32)}
    fed = Federation(strategy, LeastSquares(), data, full_batch(0.2), start=start).run(1)
    h, g = quadratic(data[0])
    best = np.linalg.solve(h + lam * np.eye(4), g + lam * np.ones(4))
    np.testing.assert_allclose(flat(fed.served(0)), best, atol=1e-5)


def test_every_step_on_a_mini_batch_sees_the_same_examples() -> None:
    fed = Federation(create("pfedme"), Softmax(), classes(1))
    repeat = fed.strategy.phases(fed.context())[-1]
    assert isinstance(repeat, RepeatPhase)
    inner = repeat.phases[0]
    assert isinstance(inner, TrainPhase)
    assert inner.hold_batch
    assert (repeat.times, inner.steps) == (20, 5)


def test_lambda_zero_leaves_the_global_model() -> None:
    fed = Federation(create("pfedme", lam=0.0), Softmax(), classes(3)).run(2)
    assert_same(fed.server.values, fed.shipped)
    assert fed.mean_loss() < fed.mean_loss_at(fed.shipped)


def test_a_huge_lambda_moves_neither_model() -> None:
    fed = Federation(create("pfedme", lam=1e20, eta=1e-20), Softmax(), classes(3)).run(2)
    assert_near(fed.server.values, fed.shipped, 1e-12)
    assert_near(fed.served(0), fed.shipped, 1e-12)


def test_steps_that_diverge_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"eta \* lam"):
        create("pfedme", lam=15.0, eta=0.2)
    fed = Federation(create("pfedme", lam=30.0, prox="explicit"), Softmax(), classes(1))
    with pytest.raises(ConfigError, match="diverges"):
        fed.strategy.plan(fed.context())
