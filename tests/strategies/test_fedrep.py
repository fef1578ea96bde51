"""FedRep: personal layers first, then the representation for them."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


def test_fedrep_trains_the_head_first_and_then_the_representation_for_it() -> None:
    data = lines(1)
    fed = Federation(
        create("fedrep", head_epochs=60), LeastSquares(personal=True), data, full_batch(0.3)
    ).run(1)
    h, g = quadratic(data[0])
    head = g[3]  # the best b for w = 0, as its second derivative is 1
    np.testing.assert_allclose(fed.personal[0]["b"], [head], rtol=1e-5)
    z = np.array([0, 0, 0, head])
    np.testing.assert_allclose(fed.server.values["w"], -0.3 * (h @ z - g)[:3], rtol=1e-4)


def test_fedrep_minimizes_over_both_parts() -> None:
    data = lines(4, spread=0.3)
    fed = Federation(
        create("fedrep", head_epochs=20), LeastSquares(personal=True), data, full_batch(0.3)
    ).run(150)
    # Eliminate each b: it is the mean residual, so w solves least squares on the centred rows.
    centred = [(r["x"] - r["x"].mean(0), r["y"] - r["y"].mean()) for r in data]
    w = np.linalg.solve(sum(x.T @ x for x, _ in centred), sum(x.T @ y for x, y in centred))
    np.testing.assert_allclose(fed.server.values["w"], w, atol=1e-4)
    for c, rows in enumerate(data):
        best = float(np.mean(rows["y"] - rows["x"] @ w))
        np.testing.assert_allclose(flat(fed.served(c))[3], best, atol=1e-3)


def test_fedrep_leaves_the_representation_alone_once_the_rounds_are_over() -> None:
    fed = Federation(create("fedrep"), Softmax(personal=True), classes(3)).run(2)
    served = fed.served(1)
    assert_same({"w": served["body.weight"]}, {"w": fed.server.values["body.weight"]})
    assert not np.array_equal(served["head.bias"], fed.personal[1]["head.bias"])
