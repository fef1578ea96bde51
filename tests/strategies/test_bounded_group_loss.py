"""Bounded group loss: kept where it can be, reported where not."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.strategies import create
from pfl_mobile.strategies.bounded_group_loss import BoundedGroupLoss
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.weighting import group_losses
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import Location, rows_of

#: Two groups of points; a group's loss at w is |w - its center|^2 / 2 + (its spread around it, 0 here).
CENTERS = [0.0, 0.0, 0.0, 0.0, 2.0]
GROUPS = ["many", "many", "many", "many", "few"]


def federation(weighting: BoundedGroupLoss | None, groups: list[str] | None = None) -> Federation:
    data = [rows_of(x=np.full((3, 1), c)) for c in CENTERS]
    strategy = FedAvg() if weighting is None else FedAvg(weighting=weighting)
    return Federation(strategy, Location(1, 3), data, full_batch(0.1), groups=groups or GROUPS)


def losses(fed: Federation) -> dict[str, float]:
    each = np.array([fed.loss(i, fed.server.values) for i in range(len(CENTERS))])
    return group_losses(GROUPS, each, np.full(len(CENTERS), 3))[0]


def test_fedavg_breaks_the_bound_and_the_method_keeps_it() -> None:
    """The pooled mean 0.4 leaves (2 - 0.4)^2 / 2 = 1.28; a bound of 0.6 asks for 0.905 <= w <= 1.095."""
    assert losses(federation(None).run(300))["few"] == pytest.approx(1.28, abs=0.01)
    weighting = BoundedGroupLoss(max_loss=0.6, step=0.3)
    fed = federation(weighting).run(600)
    assert max(losses(fed).values()) <= 0.6 + 0.02
    assert weighting.status(fed.server).met or max(weighting.status(fed.server).excess.values()) < 0.02
    # No more is given up than the bound asks for: w is at its lower end, where the pooled loss is least.
    assert fed.server.values["w"][0] == pytest.approx(2 - np.sqrt(1.2), abs=0.02)


def test_a_bound_that_cannot_be_met_is_reported_with_what_is_missing() -> None:
    """At best both groups have a loss of 1/2, so a bound of 0.3 is missed by 0.2."""
    weighting = BoundedGroupLoss(max_loss=0.3, bound=1000.0, step=0.3)
    fed = federation(weighting).run(600)
    status = weighting.status(fed.server)
    assert not status.met
    assert max(status.excess.values()) == pytest.approx(0.2, abs=0.03)
    assert "above the bound 0.3" in str(status)
    assert "too much" in str(status)


def test_a_bound_that_always_holds_changes_little_and_b_zero_is_fedavg() -> None:
    plain = federation(None).run(100)
    assert_near(federation(BoundedGroupLoss(bound=0.0)).run(100).server.values, plain.server.values)
    loose = BoundedGroupLoss(max_loss=50.0)
    fed = federation(loose).run(300)
    assert loose.status(fed.server).met
    assert_near(fed.server.values, federation(None).run(300).server.values, 1e-3)


def test_groups_may_be_given() -> None:
    given = BoundedGroupLoss(groups={"many": [0, 1, 2, 3], "few": np.array([4])}, max_loss=0.6)
    came = BoundedGroupLoss(max_loss=0.6)
    assert_near(
        federation(given, ["x"] * 5).run(20).server.values, federation(came).run(20).server.values, 0.0
    )


def test_missing_groups_are_errors() -> None:
    without = federation(BoundedGroupLoss())
    without.groups = ()
    with pytest.raises(ConfigError, match="no groups"):
        without.run(1)
    with pytest.raises(ConfigError, match="in no group, the first is 4"):
        federation(BoundedGroupLoss(groups={"many": [0, 1, 2, 3]})).run(1)
    with pytest.raises(ConfigError, match="run a round"):
        BoundedGroupLoss().status(federation(None).server)


def test_duals_do_not_overflow_and_stay_under_their_cap() -> None:
    weighting = BoundedGroupLoss(max_loss=1e-3, step=1e9, bound=5.0)
    fed = federation(weighting).run(5)
    lambdas = weighting._multipliers(np.array([10.0, 1e4]))
    assert np.isfinite(fed.server.values["w"]).all()
    assert np.isfinite(lambdas).all()
    assert lambdas.sum() <= 5.0


def test_an_impossible_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_loss"):
        create("bounded_group_loss", max_loss=0.0)
