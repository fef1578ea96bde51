"""FedAvg, FedProx, local training and fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.strategies import Local, create
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


def test_one_full_step_of_fedavg_is_a_central_step_on_all_examples() -> None:
    data = classes(4)
    fed = Federation(create("fedavg"), Softmax(batch=64), data, full_batch(0.5)).run(1)
    pooled = {k: np.concatenate([rows[k] for rows in data]) for k in data[0]}
    central = Federation(create("fedavg"), Softmax(batch=128), [pooled], full_batch(0.5)).run(1)
    assert_near(fed.server.values, central.server.values, 1e-6)


def test_tensors_of_a_group_are_merged_within_it() -> None:
    data, local = classes(4), full_batch(0.5)
    fed = Federation(
        create("fedavg"), Softmax(batch=32, role="group"), data, local, groups=["a", "a", "b", "b"]
    ).run(3)
    for group, part in (("a", data[:2]), ("b", data[2:])):
        alone = Federation(create("fedavg"), Softmax(batch=32), part, local).run(3)
        assert_near(fed.server.groups[group], alone.server.values, 1e-6)


def test_fedprox_with_mu_zero_is_fedavg_bit_for_bit() -> None:
    runs = [
        Federation(create(name, **values), Softmax(), classes(5)).run(3, cohort=3).server.values
        for name, values in (("fedavg", {}), ("fedprox", {"mu": 0.0}))
    ]
    assert_same(*runs)


def test_fedprox_with_a_huge_mu_stays_where_it_is() -> None:
    fed = Federation(create("fedprox", mu=1e25), Softmax(), classes(3)).run(2)
    assert_near(fed.server.values, fed.shipped, 1e-12)


def test_fedprox_reaches_the_minimum_of_its_local_objective() -> None:
    data, mu = lines(1), 0.7
    start = {"w": np.array([1, -1, 2], np.float32), "b": np.array([0.5], np.float32)}
    fed = Federation(create("fedprox", mu=mu), LeastSquares(), data, full_batch(0.3, 300), start=start).run(1)
    h, g = quadratic(data[0])
    best = np.linalg.solve(h + mu * np.eye(4), g + mu * flat(start))
    np.testing.assert_allclose(flat(fed.server.values), best, atol=1e-5)


def test_local_training_of_one_device_is_fedavg() -> None:
    data = [classes(3)[0]]
    local = Federation(create("local"), Softmax(batch=32), data, full_batch(0.3, 2)).run(3)
    fedavg = Federation(create("fedavg"), Softmax(batch=32), data, full_batch(0.3, 2)).run(3)
    assert_near(local.personal[0], fedavg.server.values, 1e-6)
    assert_same(local.server.values, local.shipped)


def test_local_training_sends_nothing_and_goes_on_each_round() -> None:
    fed = Federation(create("local"), Softmax(), classes(3))
    updates = fed.round()
    first = dict(fed.personal[1])
    assert updates.layout.size == 0
    fed.round()
    assert not np.array_equal(fed.personal[1]["body.weight"], first["body.weight"])
    assert fed.strategy.plan(fed.context()).upload == ()


def test_local_training_needs_no_shared_tensors() -> None:
    fed = Federation(create("local"), Softmax(personal=True, role="personal"), classes(2))
    before = fed.mean_loss_at(fed.shipped)
    fed.run(3)
    assert fed.mean_loss() < before


def test_strategies_that_share_refuse_a_model_without_shared_tensors() -> None:
    fed = Federation(create("fedavg"), Softmax(personal=True, role="personal"), classes(2))
    with pytest.raises(ConfigError, match="all personal"):
        fed.round()


def test_fine_tuning_serves_each_user_better_and_zero_epochs_is_fedavg() -> None:
    data = classes(5, spread=3.0)
    fedavg = Federation(create("fedavg"), Softmax(), data).run(6)
    tuned = Federation(create("fedavg_finetune", finetune_epochs=3), Softmax(), data).run(6)
    none = Federation(create("fedavg_finetune", finetune_epochs=0), Softmax(), data).run(6)
    assert_same(tuned.server.values, fedavg.server.values)
    assert tuned.mean_loss() < fedavg.mean_loss() == none.mean_loss()


def test_fine_tuning_epochs_take_the_place_of_local_steps() -> None:
    fed = Federation(
        create("fedavg_finetune", finetune_epochs=2),
        Softmax(),
        classes(2),
        Local(epochs=None, steps=3, optimizer=Sgd(lr=0.1)),
    )
    plan = fed.strategy.personal_plan(fed.context())
    assert plan is not None
    assert fed.train(plan, 0).done == 2 * 2  # 14 rows in batches of 8, twice
