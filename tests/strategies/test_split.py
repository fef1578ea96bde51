"""FedPer and FedRep: personal layers."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_personal_layers_differ_by_device_and_never_travel(name: str) -> None:
    fed = Federation(create(name), Softmax(personal=True), classes(4)).run(3)
    assert list(fed.collect([0]).layout.shapes) == ["body.weight"]
    np.testing.assert_array_equal(fed.server.values["head.bias"], fed.shipped["head.bias"])
    heads = [fed.personal[c]["head.bias"] for c in range(4)]
    assert all(not np.array_equal(heads[0], other) for other in heads[1:])


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_model_without_personal_layers_is_refused(name: str) -> None:
    fed = Federation(create(name), Softmax(), classes(2))
    with pytest.raises(ConfigError, match="'personal'"):
        fed.round()


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_personal_layers_fit_users_who_differ_better_than_one_model(name: str) -> None:
    data = classes(6, spread=3.0)
    split = Federation(create(name), Softmax(personal=True), data).run(10).mean_loss()
    assert split < 0.9 * Federation(create("fedavg"), Softmax(), data).run(10).mean_loss()


def test_fedper_takes_its_step_on_both_parts_at_once() -> None:
    data = lines(1)
    fed = Federation(create("fedper"), LeastSquares(personal=True), data, full_batch(0.1)).run(1)
    _, g = quadratic(data[0])
    np.testing.assert_allclose(fed.server.values["w"], 0.1 * g[:3], rtol=1e-5)
    np.testing.assert_allclose(fed.personal[0]["b"], 0.1 * g[3:], rtol=1e-5)


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
