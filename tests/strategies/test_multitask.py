"""Multi-task regularization: its limits, and the optimum of its objective."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies.local import LocalTraining
from pfl_mobile.strategies.multitask import MultiTask, precision
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import Location, Softmax, classes, rows_of

CENTERS = np.array([[0.0], [1.0], [5.0]])


def points(lam: float, groups: tuple[str, ...] = (), relation: str = "mean") -> Federation:
    data = [rows_of(x=np.repeat(c[None], 2, axis=0)) for c in CENTERS]
    strategy = MultiTask(lam=lam, relation=relation)
    return Federation(strategy, Location(1, 2), data, full_batch(0.3, 5), groups=groups)


def models(fed: Federation) -> np.ndarray:
    return np.array([fed.server.sets[f"model:{i}"]["w"] for i in range(3)], np.float64)


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_devices_reach_the_minimum_of_the_papers_objective(lam: float) -> None:
    """sum_k |w_k - c_k|^2 / 2 + lam/2 * tr(W Q W') with Q = I - 11'/m: (I + lam Q) W = C."""
    fed = points(lam).run(60)
    q = np.eye(3) - 1 / 3
    np.testing.assert_allclose(models(fed), np.linalg.solve(np.eye(3) + lam * q, CENTERS), atol=1e-4)


@pytest.mark.parametrize("relation", ["mean", "learned"])
def test_no_pull_is_local_training(relation: str) -> None:
    data, local = classes(4), full_batch(0.3, 2)
    fed = Federation(MultiTask(lam=0.0, relation=relation), Softmax(batch=32), data, local).run(5)
    alone = Federation(LocalTraining(), Softmax(batch=32), data, local).run(5)
    for client in range(4):
        assert_near({n: fed.server.sets[f"model:{client}"][n] for n in fed.shipped}, alone.personal[client])


def test_devices_alone_in_their_groups_train_locally() -> None:
    together, alone = points(3.0).run(30), points(3.0, ("a", "b", "c")).run(30)
    np.testing.assert_allclose(models(alone), CENTERS, atol=1e-4)
    assert np.abs(models(together) - CENTERS).max() > 0.5


def test_a_strong_pull_holds_all_at_their_mean() -> None:
    fed = points(1e6).run(40)
    assert np.ptp(models(fed)) < 1e-2
    np.testing.assert_allclose(fed.server.values["w"], models(fed).mean(axis=0), atol=1e-5)


def test_the_related_model_is_the_mean_of_the_others_of_the_group() -> None:
    groups = ("a", "b", "a", "b", "a", "a")
    fed = Federation(MultiTask(), Softmax(), classes(6), groups=groups).run(7, cohort=3)
    assert len(fed.server.numbers["multitask"]) == 6
    latest = [fed.server.sets[f"model:{i}"] for i in range(6)]
    assert_near(fed.server.values, {n: np.mean([m[n] for m in latest], axis=0) for n in fed.shipped})
    sets = fed.strategy.sets_for(fed.server, 0, "a")
    assert_near(sets["global"], latest[0])
    assert_near(sets["related"], {n: np.mean([latest[i][n] for i in (2, 4, 5)], axis=0) for n in fed.shipped})
    np.testing.assert_allclose(sets["strength"]["head.bias"], fed.strategy.lam * 0.75)


def test_a_learned_relation_finds_who_is_near() -> None:
    """Two kinds of devices: the relation learned from the models ties a device to its own kind."""
    kinds = np.repeat([[4.0, 0, 0, 0], [0, 0, 4.0, 0]], 3, axis=0)
    models = kinds + 0.2 * np.random.default_rng(0).normal(size=kinds.shape)
    centered = models - models.mean(axis=0)
    found = precision(centered @ centered.T)
    factors = -found / np.diag(found)[:, None]
    assert factors[0, 1:3].sum() > factors[0, 3:].sum() + 0.1
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > 0


def test_equal_models_have_the_mean_relation() -> None:
    np.testing.assert_allclose(precision(np.zeros((3, 3))), np.eye(3) - 1 / 3)


def test_learned_and_mean_both_improve_on_no_pull_where_devices_have_little_data() -> None:
    rng = np.random.default_rng(0)
    data = [rows_of(x=rng.normal(1.0, 1.0, size=(2, 4))) for _ in range(12)]

    def error(lam: float, relation: str = "mean") -> float:
        strategy = MultiTask(lam=lam, relation=relation)
        fed = Federation(strategy, Location(4, 2), data, full_batch(0.3, 5)).run(15)
        return float(np.mean([(fed.server.sets[f"model:{i}"]["w"] - 1.0) ** 2 for i in range(12)]))

    assert error(2.0) < 0.6 * error(0.0)
    assert error(2.0, "learned") < error(0.0)
