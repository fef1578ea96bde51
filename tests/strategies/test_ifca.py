"""IFCA: one cluster is FedAvg; planted clusters are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_mobile.merge import update_rows as rows
from pfl_mobile.strategies import ifca
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.ifca import CLUSTER, TRIES, Ifca, k_means
from tests.strategies.harness import Federation, assert_near, full_batch, merge_peak
from tests.strategies.models import LeastSquares, Location, Softmax, classes, rows_of

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
    wide = points.astype(np.float64)
    assert same_partition([int(c) for c in k_means(wide @ wide.T, 3)], truth)
    assert set(k_means(np.full((5, 5), 2.0), 3)) <= {0, 1, 2}


def whole_k_means(points: np.ndarray, count: int) -> np.ndarray:
    """The same algorithm on the points themselves, all in memory."""

    def distances(centers: np.ndarray) -> np.ndarray:
        return np.square(points[:, None] - centers[None], dtype=np.float64).sum(axis=2)

    best, least = np.zeros(len(points), int), np.inf
    for attempt in range(TRIES):
        rng = np.random.default_rng(attempt)
        centers = points[[rng.integers(len(points))]]
        while len(centers) < count:
            near = distances(centers).min(axis=1)
            centers = np.concatenate([centers, points[[rng.choice(len(points), p=near / near.sum())]]])
        for _ in range(50):
            labels = distances(centers).argmin(axis=1)
            centers = np.stack(
                [
                    points[labels == j].mean(axis=0) if (labels == j).any() else centers[j]
                    for j in range(count)
                ]
            )
        cost = distances(centers).min(axis=1).sum()
        if cost < least:
            best, least = distances(centers).argmin(axis=1), cost
    return best


@pytest.mark.parametrize("clusters", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_first_clusters_are_those_of_k_means_on_all_updates(seed: int, clusters: int) -> None:
    """Without blobs to find, so that another way to add up would show."""
    fed = Federation(Ifca(clusters=clusters), Softmax(batch=32), classes(40, seed=seed))
    updates = fed.collect()
    labels, weights = whole_k_means(updates.changes, clusters), updates.examples
    mixed = np.random.default_rng(seed).permutation(40)
    fed.strategy.merge(fed.server, updates.select(mixed))
    assert fed.server.numbers["ifca"] == [int(weights[labels == j].sum()) for j in range(clusters)]
    for j in range(clusters):
        mean = np.average(updates.changes[labels == j], axis=0, weights=weights[labels == j])
        want = {n: fed.shipped[n] + c for n, c in updates.layout.unpack(mean).items()}
        assert_near(fed.server.sets[f"cluster_{j}"], want, 1e-5)


def test_of_many_devices_some_are_drawn_and_all_are_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(products: np.ndarray, count: int) -> np.ndarray:
        taken.append(len(products))
        return k_means(products, count)

    monkeypatch.setattr(ifca, "SAMPLE", 20)
    monkeypatch.setattr(ifca, "k_means", counted)
    centers = np.array([[0, 0], [9, 0], [0, 9]])
    data = [rows_of(x=centers[i % 3] + 0.1 * np.full((i % 3 + 1, 2), i % 5)) for i in range(60)]
    fed = Federation(Ifca(clusters=3), Location(2, 4), data, full_batch(1.0)).run(1)
    assert taken == [20]
    assert sorted(fed.server.numbers["ifca"]) == [20, 40, 60], "examples of the devices of each kind"


def test_memory_does_not_grow_with_the_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows.gram.__kwdefaults__, "scratch", 1 << 20)
    monkeypatch.setattr(ifca, "SAMPLE", 50)
    width = 20_000
    few, many = (merge_peak(Ifca(clusters=3), tmp_path, count, width) for count in (150, 900))
    assert many < 1.2 * few
    assert many < 4 * width * 900 / 4
