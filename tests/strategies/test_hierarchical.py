"""Groups: one is FedAvg, one for each device is local training."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.hierarchical import Hierarchical
from pfl_mobile.strategies.local import LocalTraining
from pfl_mobile.strategies.strategy import Strategy
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import Model, Softmax, classes

GROUPS = ("a", "b", "a", "c", "b")


def run(strategy: Strategy, groups: tuple[str, ...] = (), model: Model | None = None) -> Federation:
    made = model or Softmax(batch=32)
    return Federation(strategy, made, classes(5), full_batch(0.3, 2), groups=groups).run(6)


def test_one_group_is_fedavg() -> None:
    plain = run(FedAvg()).server.values
    for groups in ((), ("all",) * 5):
        fed = run(Hierarchical(), groups)
        assert_near(fed.server.values, plain)
        assert_near(fed.served(3), plain)


def test_merging_the_groups_every_round_is_fedavg() -> None:
    fed = run(Hierarchical(period=1), GROUPS)
    assert_near(fed.server.values, run(FedAvg()).server.values)
    assert_near(fed.served(0), fed.server.values)


def test_a_group_for_each_device_is_local_training() -> None:
    fed, alone = run(Hierarchical(), tuple("abcde")), run(LocalTraining())
    for client in range(5):
        assert_near(fed.served(client), {n: alone.personal[client][n] for n in fed.shipped})


@pytest.mark.parametrize("role", ["shared", "group"])
def test_a_group_learns_from_its_own_devices_only(role: str) -> None:
    fed = run(Hierarchical(), GROUPS, Softmax(batch=32, role=role))
    members = [i for i, g in enumerate(GROUPS) if g == "b"]
    alone = Federation(FedAvg(), Softmax(batch=32), [fed.data[i] for i in members], fed.local).run(6)
    assert_near(fed.served(members[0]), alone.server.values)


def test_groups_meet_in_every_period() -> None:
    fed = run(Hierarchical(period=3), GROUPS)
    assert_near(fed.served(0), fed.served(1))
    fed.round()
    assert not np.allclose(fed.served(0)["body.weight"], fed.served(1)["body.weight"])
    mean = sum(
        fed.server.numbers["hierarchical"][g] * fed.server.groups[g]["head.bias"].astype(float) for g in "abc"
    )
    total = sum(fed.server.numbers["hierarchical"].values())
    np.testing.assert_allclose(fed.server.values["head.bias"], mean / total, rtol=1e-5, atol=1e-7)


def test_personal_tensors_are_trained_beside_the_groups() -> None:
    fed = run(Hierarchical(), GROUPS, Softmax(personal=True, batch=32))
    biases = [fed.personal[i]["head.bias"] for i in range(5)]
    assert all(np.abs(b - fed.shipped["head.bias"]).max() > 0 for b in biases)
    assert not np.allclose(biases[0], biases[2])
    assert all("head.bias" not in values for values in fed.server.groups.values())
