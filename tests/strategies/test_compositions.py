"""Weighting, server optimizer and clipping go with every strategy, without a class for each combination."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.strategies import Local, Strategy, create, entry, names
from pfl_mobile.strategies.bounded_group_loss import BoundedGroupLoss
from pfl_mobile.strategies.ditto import Ditto
from pfl_mobile.strategies.fedopt import FedAdam, FedAvgM
from pfl_mobile.strategies.fedper import FedPer
from pfl_mobile.strategies.fedrep import FedRep
from pfl_mobile.strategies.qffl import QFair
from pfl_mobile.strategies.scafflix import Scafflix
from pfl_mobile.strategies.scaffold import Scaffold
from pfl_mobile.strategies.tilted import Tilted
from tests.strategies.harness import Federation, assert_same
from tests.strategies.models import Softmax, classes

pytestmark = pytest.mark.filterwarnings("ignore:EWC without fisher")

TILTED = Tilted(t=2.0)


@pytest.mark.parametrize(
    ("strategy", "personal"),
    [
        (Scafflix(p=0.5, weighting=BoundedGroupLoss(max_loss=0.15)), False),
        (Scafflix(p=0.5, weighting=TILTED, optimizer=FedAvgM(lr=0.9, momentum=0.2)), True),
        (FedRep(weighting=TILTED, optimizer=FedAdam(lr=0.05)), True),
        (FedPer(weighting=QFair(q=1.0)), True),
        (Scaffold(weighting=TILTED), False),
        (Ditto(weighting=BoundedGroupLoss(max_loss=0.15), optimizer=FedAdam(lr=0.05)), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fairness_server_optimizer_and_clipping_together(strategy: Strategy, personal: bool) -> None:
    local = Local(epochs=2, optimizer=Sgd(lr=0.2), clip=0.5)
    fed = Federation(strategy, Softmax(personal), classes(6), local, groups=["a", "b"] * 3).run(8, cohort=4)
    assert fed.failures == 0
    assert fed.mean_loss() < 0.8 * fed.mean_loss_at(fed.shipped)


@pytest.mark.parametrize("name", [n for n in names() if n != "local"])
def test_every_strategy_asks_for_what_the_weighting_needs(name: str) -> None:
    strategy = dataclasses.replace(create(name), weighting=TILTED)
    fed = Federation(strategy, Softmax(entry(name).split), classes(3), groups=["a", "b", "a"])
    updates = fed.round()
    assert np.isfinite(updates.report("sent_loss")).all()


def test_the_weighting_decides_how_devices_count() -> None:
    """With a tilt that lets only the worst device count, the merged model is that device's."""
    worst = Tilted(t=1e6)
    fed = Federation(FedPer(weighting=worst), Softmax(personal=True), classes(3, spread=4.0)).run(1)
    before = fed.server.values["body.weight"]
    updates = fed.collect()
    fed.strategy.merge(fed.server, updates)
    row = int(np.argmax(updates.report("sent_loss")))
    np.testing.assert_allclose(
        fed.server.values["body.weight"], before + updates.one(row)["body.weight"], rtol=1e-5, atol=1e-7
    )


def test_a_clip_limits_every_device() -> None:
    small = Local(epochs=1, optimizer=Sgd(lr=0.1), clip=1e-3)
    fed = Federation(create("fedavg"), Softmax(), classes(2), small)
    updates = fed.collect()
    norms = np.sqrt((updates.changes.astype(float) ** 2).sum(axis=1))
    assert (norms <= 0.1 * 1e-3 * updates.steps * (1 + 1e-5)).all()
    unlimited = Federation(create("fedavg"), Softmax(), classes(2), Local(epochs=1, clip=1e6)).run(1)
    assert_same(
        unlimited.server.values, Federation(create("fedavg"), Softmax(), classes(2)).run(1).server.values
    )
