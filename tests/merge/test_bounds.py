"""How much one device may count, whatever it says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.merge.bounds import bounded_losses, bounded_parts, largest_part, lowered
from pfl_mobile.merge.updates import Updates
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.strategies import create
from pfl_mobile.strategies.state import Server
from pfl_mobile.strategies.weighting import SENT_LOSS

terms = st.lists(st.floats(0, 1e30), min_size=1, max_size=40).map(np.array)
mosts = st.floats(1, 100)


@given(terms, mosts)
def test_no_part_is_above_the_largest_and_the_rest_keeps_its_order(weights, most):
    if not weights.sum() > 0:
        return
    parts = weights / weights.sum()
    found = bounded_parts(parts, most)
    limit = largest_part(len(parts), most)
    assert (found <= limit * (1 + 1e-9)).all()
    assert (found >= 0).all()
    assert found.sum() <= 1 + 1e-9
    if (parts > 1e-200).sum() * limit >= 1:  # enough devices to share what is cut off
        assert found.sum() == pytest.approx(1, abs=1e-6)
    order = np.argsort(parts, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()
    if (parts <= limit).all():
        np.testing.assert_array_equal(found, parts)


@given(terms, mosts)
def test_no_term_is_above_the_largest_part_of_a_lowered_sum(values, most):
    found = lowered(values, most)
    assert (found <= values).all()
    assert (found <= largest_part(len(values), most) * found.sum() * (1 + 1e-9)).all()


def test_two_devices_count_alike_and_one_alone_counts_whole():
    np.testing.assert_array_equal(bounded_parts(np.array([1.0]), 3), [1.0])
    np.testing.assert_allclose(bounded_parts(np.array([0.999999, 0.000001]), 3), [0.5, 0.5])
    np.testing.assert_allclose(bounded_parts(np.array([1.0, 0.0]), 3), [0.5, 0.0])  # a shorter step


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-1e300, 1e300))
def test_one_loss_cannot_be_far_from_all_others(honest, lie):
    found = bounded_losses(np.array([*honest, lie]))
    assert np.abs(found).max() <= 4 * np.abs(honest).max() + 1e-9


LIE = 1e30
MEANS = ("fedavg", "fedper", "fedprox", "term", "afl", "qffl", "maxfl", "bounded_group_loss")


def merged(name, losses, examples, **parameters):
    """The merge of devices that all send zeros, but the last one, which sends ones, and how far it moves the model."""
    count, layout = len(losses), UpdateLayout({"w": (4,)})
    changes = np.zeros((count, 4), np.float32)
    changes[-1] = 1
    table = [_Tensor("w")]
    server = Server(table, count, {"w": np.zeros(4, np.float32)})
    strategy = create(name, **parameters)
    strategy.begin(server)
    reports = {name: bounded_losses(np.array(losses)) for name in (SENT_LOSS, "own_loss")}
    updates = Updates(
        layout, changes, range(count), np.array(examples), np.ones(count, np.int64), reports,
        ["g"] * (count - 1) + ["rare"], count, most=3.0,
    )  # fmt: skip
    strategy.merge(server, updates)
    return server, float(np.abs(server.values["w"]).max())


class _Tensor:
    """A shared tensor of a model's table."""

    role, update, module = "shared", "gradient", "m"
    shape = (4,)

    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("loss", [LIE, -LIE, 0.0, 1.0])
def test_a_device_that_lies_moves_no_mean_by_more_than_three_shares(name, loss):
    parameters = {"max_loss": 0.5} if name == "bounded_group_loss" else {}
    count = 20
    _, moved = merged(name, [1.0] * (count - 1) + [loss], [10] * (count - 1) + [1000], **parameters)
    assert moved <= 3 / count + 1e-6


@pytest.mark.parametrize("q", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("loss", [LIE, -LIE, 0.0])
def test_a_device_that_lies_about_its_loss_ends_no_training_of_qffl(q, loss):
    """The others all move the model by one; it goes on moving that way."""
    count, layout = 20, UpdateLayout({"w": (4,)})
    changes = np.ones((count, 4), np.float32) * 0.1
    server = Server([_Tensor("w")], count, {"w": np.zeros(4, np.float32)})
    losses = bounded_losses(np.array([1.0] * (count - 1) + [loss]))
    updates = Updates(
        layout, changes, range(count), np.full(count, 10), np.ones(count, np.int64), {SENT_LOSS: losses}, [],
        count, most=3.0,
    )  # fmt: skip
    create("qffl", q=q).merge(server, updates)
    honest = Server([_Tensor("w")], count, {"w": np.zeros(4, np.float32)})
    create("qffl", q=q).merge(honest, updates.replaced(reports={SENT_LOSS: np.ones(count)}))
    assert server.values["w"].min() > 0.5 * honest.values["w"].min() > 0
