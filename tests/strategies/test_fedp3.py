"""FedP3: what is pruned stays zero, what travels has the sparsity that was asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError
from pfl_mobile.strategies import create
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.fedp3 import FedP3, keep_largest
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, lines

sparsities = st.floats(0, 1, exclude_max=True)


def federation(strategy: FedP3 | FedAvg, groups: tuple[str, ...] = (), seed: int = 0) -> Federation:
    model = Softmax(batch=32)
    rng = np.random.default_rng(seed)
    start = {t.name: rng.normal(size=t.shape).astype(np.float32) for t in model.tensors}
    return Federation(strategy, model, classes(5), full_batch(0.3, 3), groups=groups, start=start)


@given(st.integers(1, 60), sparsities, st.integers(0, 9))
def test_masks_have_the_sparsity_and_keep_the_largest(size: int, sparsity: float, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 4, size).astype(np.float32)
    mask = keep_largest(values, sparsity, seed)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert size - mask.sum() == min(round(sparsity * size), size - 1)
    if 0 < mask.sum() < size:
        assert np.abs(values[mask == 1]).min() >= np.abs(values[mask == 0]).max()
    np.testing.assert_array_equal(mask, keep_largest(values, sparsity, seed))


def test_which_of_equal_entries_stay_differs_by_device() -> None:
    masks = {tuple(keep_largest(np.zeros(20, np.float32), 0.5, seed)) for seed in range(8)}
    assert len(masks) > 1


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_what_travels_has_the_sparsity_and_pruned_weights_stay_zero(sparsity: float) -> None:
    fed = federation(FedP3(sparsity=sparsity)).run(3)
    entries = sum(v.size for v in fed.server.values.values())
    asked = sum(round(sparsity * v.size) for v in fed.server.values.values())
    masks = fed.strategy.masks(fed.server, 0)
    sent = fed.sets(0)["global"]
    work = fed.train(fed.strategy.plan(fed.context()), 0)
    updates = fed.collect([0])
    assert sum(int((v == 0).sum()) for v in sent.values()) == asked
    assert int((updates.changes[0] == 0).sum()) == asked
    for name, mask in masks.items():
        assert (work.tensors[name][mask == 0] == 0).all()
        assert (sent[name][mask == 0] == 0).all()
        assert (updates.one(0)[name][mask == 0] == 0).all()
        assert (fed.served(0)[name][mask == 0] == 0).all()
    traffic = fed.strategy.traffic(fed.server, 0)
    assert traffic.dense == 4 * entries
    assert traffic.up == 4 * (entries - asked)
    assert traffic.down == traffic.up + ((entries + 7) // 8 if sparsity else 0)


def test_no_sparsity_is_fedavg() -> None:
    one, other = federation(FedP3(sparsity=0.0)).run(5, cohort=3), federation(FedAvg()).run(5, cohort=3)
    assert_near(one.server.values, other.server.values)


def test_every_entry_is_averaged_over_those_who_trained_it() -> None:
    fed = federation(FedP3(by_client={0: 0.75, 1: 0.5}, sparsity=0.0))
    updates, before = fed.collect(), dict(fed.server.values)
    masks = [fed.strategy.masks(fed.server, c) for c in range(5)]
    fed.strategy.merge(fed.server, updates)
    for name, old in before.items():
        weights = np.stack([n * m[name] for n, m in zip(updates.examples, masks, strict=True)])
        want = old + (weights * updates.layout.unpack(updates.changes)[name]).sum(axis=0) / weights.sum(
            axis=0
        )
        np.testing.assert_allclose(fed.server.values[name], want, rtol=1e-5, atol=1e-6)


def test_resources_set_the_sparsity() -> None:
    strategy = FedP3(sparsity=0.1, by_group={"small": 0.75}, by_client={4: 0.5})
    fed = federation(strategy, ("small", "large", "small", "large", "small"))
    kept = [int(strategy.masks(fed.server, c, fed.group(c))["body.weight"].sum()) for c in range(5)]
    assert kept == [3, 11, 3, 11, 6]
    assert strategy.traffic(fed.server, 0, "small").up < strategy.traffic(fed.server, 1, "large").up


def test_only_the_chosen_layers_travel() -> None:
    fed = federation(FedP3(sparsity=0.0, layers=0.5))
    updates = fed.collect()
    for row, client in enumerate(updates.clients):
        sent = fed.strategy.sends(fed.server, client)
        assert len(sent) == 1
        for name in fed.server.values:
            assert bool(np.any(updates.one(row)[name])) == (name in sent)
        assert fed.strategy.traffic(fed.server, client).up == 4 * sum(fed.server.values[n].size for n in sent)
    drawn = {frozenset(fed.strategy.sends(fed.server, c)) for c in range(5)}
    assert len(drawn) == 2
    start = fed.mean_loss_at(fed.shipped)
    assert fed.run(20).mean_loss() < 0.7 * start


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_sparsities_are_refused(value: float) -> None:
    for build in (
        lambda: create("fedp3", sparsity=value),
        lambda: FedP3(sparsity=value),
        lambda: FedP3(by_group={"small": value}),
        lambda: FedP3(by_client={3: value}),
    ):
        with pytest.raises(ConfigError, match="sparsity"):
            build()


def test_personal_tensors_are_not_pruned() -> None:
    data = lines(4)
    fed = Federation(FedP3(sparsity=0.5), LeastSquares(personal=True), data, full_batch(0.1)).run(3)
    assert all(fed.personal[i]["b"][0] != 0 for i in range(4))
