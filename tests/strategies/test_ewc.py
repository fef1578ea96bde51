"""EWC: what mattered before must not be forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.local.session import Programs
from pfl_mobile.strategies import create
from pfl_mobile.strategies.ewc import EWC, fisher_diagonal
from tests.strategies.harness import Federation, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic

START = {"w": np.array([1, -1, 2], np.float32), "b": np.array([0.5], np.float32)}


FISHER = {"w": np.array([0, 2, 0.3], np.float32), "b": np.array([1], np.float32)}


def test_ewc_reaches_the_minimum_of_its_objective() -> None:
    data, lam = lines(1), 0.8
    fed = Federation(
        EWC(lam=lam, fisher=FISHER), LeastSquares(), data, full_batch(0.3, 400), start=START
    ).run(2)
    h, g = quadratic(data[0])
    f = lam * np.diag(flat(FISHER))
    np.testing.assert_allclose(
        flat(fed.server.values), np.linalg.solve(h + f, g + f @ flat(START)), atol=1e-4
    )


def test_ewc_with_ones_is_l2sp_and_without_fisher_it_warns() -> None:
    ones = {"body.weight": np.ones((3, 4), np.float32), "head.bias": np.ones(3, np.float32)}
    given = Federation(EWC(lam=0.3, fisher=ones), Softmax(), classes(3)).run(2)
    with pytest.warns(UserWarning, match="as in L2-SP"):
        none = Federation(create("ewc", lam=0.3), Softmax(), classes(3)).run(2)
    l2sp = Federation(create("l2sp", mu=0.3), Softmax(), classes(3)).run(2)
    assert_same(given.server.values, l2sp.server.values)
    assert_same(none.server.values, l2sp.server.values)


@pytest.mark.parametrize(
    "bad", [{"w": FISHER["w"]}, {**FISHER, "w": np.ones(2)}, {**FISHER, "b": -FISHER["b"]}]
)
def test_a_fisher_diagonal_that_does_not_fit_is_refused(bad: dict[str, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="Fisher diagonal of"):
        Federation(EWC(fisher=bad), LeastSquares(), lines(1))


def test_the_fisher_diagonal_is_the_mean_squared_gradient_of_each_example() -> None:
    model, rows = LeastSquares(), lines(1, n=11)[0]
    rows["weight"][3] = 0  # an example that does not count
    found = fisher_diagonal(Programs(model, ["w", "b"]), START, ["w", "b"], rows)
    keep = rows["weight"] > 0
    x, y = rows["x"][keep].astype(float), rows["y"][keep].astype(float)
    residual = x @ START["w"] + START["b"] - y
    np.testing.assert_allclose(found["w"], ((residual[:, None] * x) ** 2).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["b"], [(residual**2).mean()], rtol=1e-4)


def test_ewc_forgets_less_than_fine_tuning_and_still_learns() -> None:
    old, new = classes(2, n=60, spread=3.0, seed=5)
    model = Softmax(batch=64)
    known = Federation(create("fedavg"), model, [old], full_batch(1.0, 60)).run(1).server.values
    fisher = fisher_diagonal(Programs(model, list(known)), known, list(known), old)
    losses = {}
    for name, strategy in (
        ("tuned", create("fedavg_finetune", finetune_epochs=60)),
        ("ewc", EWC(lam=60.0, fisher=fisher, finetune_epochs=60)),
    ):
        fed = Federation(strategy, model, [new], full_batch(1.0), start=known)
        served = fed.served(0)  # the personal model, right from the shipped one
        on_old = Federation(create("fedavg"), model, [old]).loss(0, served)
        losses[name] = (on_old, fed.loss(0, served), fed.loss(0, known))
    assert losses["ewc"][0] < 0.8 * losses["tuned"][0], "the old task is remembered better"
    assert losses["ewc"][1] < 0.9 * losses["ewc"][2], "and the new one is learned"
