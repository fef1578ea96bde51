"""IFCA: one cluster is FedAvg; planted clusters are found."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.ifca import CLUSTER, Ifca, k_means
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, rows_of

PLANTED = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def planted(seed: int = 0) -> Federation:
    """Linear regression with one of three rules for each device, as in the paper's experiments."""
    rng = np.random.default_rng(seed)
    rules = 3 * rng.normal(size=(3, 3))
    data = []
    for kind in PLANTED:
        x = rng.normal(size=(12, 3))
        data.append(rows_of(x=x, y=x @ rules[kind] + 0.05 * rng.normal(size=12)))
    return Federation(Ifca(clusters=3), LeastSquares(batch=12), data, full_batch(0.2, 10), seed=seed)


def same_partition(one: list[int], other: list[int]) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("start", ["models", "noise"])
def test_one_cluster_is_fedavg(start: str) -> None:
    # A full batch: the choose phase shifts the numbers of the phases, by which batches are shuffled.
    one, other = (
        Federation(s, Softmax(batch=32), classes(5), full_batch(0.3, 2)).run(6, cohort=3)
        for s in (Ifca(clusters=1, start=start), FedAvg())
    )
    assert_near(one.server.values, other.server.values, 1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed: int) -> None:
    fed = planted(seed).run(15, cohort=8)
    found = [int(c) for c in fed.collect().report(CLUSTER)]
    assert same_partition(found, PLANTED)
    alone = Federation(FedAvg(), fed.model, fed.data, fed.local).run(15)
    assert fed.mean_loss() < 0.05 * alone.mean_loss()


def test_a_device_serves_the_model_that_it_chose() -> None:
    fed = planted().run(15)
    served = fed.served(1)
    chosen = [
        c
        for c in ("cluster_0", "cluster_1", "cluster_2")
        if np.array_equal(fed.server.sets[c]["w"], served["w"])
    ]
    assert len(chosen) == 1
    assert np.array_equal(fed.served(4)["w"], served["w"]), "planted together"


def test_fewer_devices_than_clusters_leave_some_models_alone() -> None:
    fed = Federation(Ifca(clusters=4), Softmax(), classes(2)).run(2)
    untouched = [c for c in range(4) if fed.server.numbers["ifca"][c] == 0]
    assert len(untouched) >= 2
    for c in untouched:
        np.testing.assert_array_equal(
            fed.server.sets[f"cluster_{c}"]["body.weight"], fed.shipped["body.weight"]
        )


def test_k_means_separates_blobs_and_takes_equal_points() -> None:
    rng = np.random.default_rng(0)
    truth = [int(i) for i in rng.integers(3, size=40)]
    points = (np.array([[0, 0], [9, 0], [0, 9]])[truth] + rng.normal(size=(40, 2))).astype(np.float32)
    assert same_partition([int(c) for c in k_means(points, 3)], truth)
    assert set(k_means(np.ones((5, 2), np.float32), 3)) <= {0, 1, 2}
