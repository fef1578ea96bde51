"""The updates of a round: one place takes their mean, and a private rule lets out nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, PrivacyError, TooFewUpdatesError
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.rules import create_rule
from pfl_mobile.merge.updates import Sums, Updates
from pfl_mobile.plan.upload import UpdateLayout

LAYOUT = UpdateLayout({"a": (2,), "b": (1, 1)})
CHANGES = np.array([[1, 2, 3], [3, 4, 5], [5, 6, 7]], np.float32)


def updates(**more: Any) -> Updates:
    base: dict[str, Any] = {
        "layout": LAYOUT,
        "changes": CHANGES,
        "clients": [4, 2, 9],
        "examples": np.array([10, 20, 30]),
        "steps": np.array([1, 2, 3]),
        "reports": {"loss": np.array([0.1, 0.2, 0.3])},
        "groups": ["x", "y", "x"],
        "population": 12,
    }
    return Updates(**(base | more))


def private() -> Updates:
    bounds = SimpleNamespace(cohort=5, weights=lambda examples: np.minimum(examples / 20, 1.0))
    return updates(rule=PrivateRule(bounds, lambda rows, weights: np.full(3, weights.sum(), np.float32)))


def test_the_mean_is_weighted_and_unpacked() -> None:
    found = updates()
    mean = found.mean(np.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(mean["a"], [4, 5])
    assert mean["b"].shape == (1, 1)
    assert found.merged is not None
    np.testing.assert_allclose(found.merged.used, [0.25, 0, 0.75])


def test_no_device_has_more_than_its_largest_part() -> None:
    found = updates(most=1.0)
    np.testing.assert_allclose(found.mean(np.array([1.0, 1.0, 1e9]))["a"], [3, 4], rtol=1e-5)
    np.testing.assert_allclose(updates().mean(np.array([1.0, 1.0, 1e9]))["a"], [5, 6], rtol=1e-5)
    assert found.bounded(np.array([1.0, 1.0, 1e9])).max() == pytest.approx(1 / 3)
    even = np.array([2.0, 2.0, 2.0])
    assert found.bounded(even) is even, "not even the last bits change where nothing is bounded"


def test_another_rule_takes_the_mean() -> None:
    found = updates(changes=np.array([[0, 0, 0], [1, 1, 1], [99, 99, 99]], np.float32))
    median = found.under(create_rule("median")).mean(np.ones(3))
    np.testing.assert_allclose(median["a"], [1, 1])
    assert found.mean(np.ones(3))["a"][0] > 30


def test_what_a_strategy_adds_up_itself_goes_round_no_robust_rule() -> None:
    np.testing.assert_allclose(updates().weighted_sum(np.array([1.0, 2.0, 0.0]))["a"], [7, 10])
    with pytest.raises(ConfigError, match="Median"):
        updates(rule=create_rule("median")).weighted_sum(np.ones(3))


def test_single_updates_their_norms_and_parts_of_them() -> None:
    found = updates()
    np.testing.assert_array_equal(found.one(1)["a"], [3, 4])
    np.testing.assert_allclose(found.squares(["a"]), [5, 25, 61])
    np.testing.assert_allclose(found.squares(["a", "b"]), (CHANGES**2).sum(1))
    some = found.select(np.array([True, False, True]))
    assert (some.clients, some.groups, len(some)) == ([4, 9], ["x", "x"], 2)
    np.testing.assert_array_equal(some.changes, CHANGES[[0, 2]])
    np.testing.assert_array_equal(some.report("loss"), [0.1, 0.3])
    assert found.select(np.array([2, 0])).clients == [9, 4]


def test_a_report_that_the_plan_does_not_make_is_named() -> None:
    with pytest.raises(ConfigError, match="no 'los'") as caught:
        updates().report("los")
    assert "'loss'" in caught.value.mend


@pytest.mark.parametrize(
    "read",
    [
        lambda u: u.rows,
        lambda u: u.changes,
        lambda u: u.steps,
        lambda u: u.reports,
        lambda u: u.report("loss"),
        lambda u: u.one(0),
        lambda u: u.squares(["a"]),
        lambda u: u.weighted_sum(np.ones(3)),
        lambda u: u.select(np.array([0])),
        lambda u: u.under(create_rule("average")),
        lambda u: u.replaced(population=3),
    ],
)
def test_a_private_round_lets_out_nothing_of_single_devices(read: Any) -> None:
    read(updates())
    with pytest.raises(PrivacyError):
        read(private())


def test_a_private_mean_can_be_had_once() -> None:
    found = private()
    assert found.expected == 5
    np.testing.assert_allclose(found.examples, [0.5, 1, 1])
    np.testing.assert_allclose(found.mean(np.array([0.5, 1.0, 1.0]))["a"], [2.5, 2.5])
    assert found.merged is None
    with pytest.raises(PrivacyError, match="second mean"):
        found.mean(np.ones(3))


def test_own_weights_are_for_private_rounds_alone() -> None:
    np.testing.assert_allclose(
        private().own_weights(lambda own, most: own["loss"], ["loss"]), [0.1, 0.2, 0.3]
    )
    with pytest.raises(ConfigError):
        updates().own_weights(lambda own, most: 1.0, ["loss"])


def test_nobody_makes_no_mean() -> None:
    none = updates(
        changes=CHANGES[:0], clients=[], examples=np.zeros(0), steps=np.zeros(0), reports={}, groups=[]
    )
    with pytest.raises(TooFewUpdatesError):
        none.mean(np.zeros(0))


class TestSums:
    """Changes that were added up where devices trained."""

    def sums(self) -> Sums:
        weights = np.array([1.0, 2.0, 3.0])
        added = np.stack([weights[:2] @ CHANGES[:2], weights[2:] @ CHANGES[2:]]).astype(np.float32)
        plain = np.zeros(3, np.int64)
        return Sums(LAYOUT, added, [0, 1, 2], plain, plain, {"loss": np.ones(3)}, [], 3, weights)

    def test_their_mean_is_that_of_the_single_ones(self) -> None:
        found = self.sums().mean(np.array([10.0, 20.0, 30.0]))
        np.testing.assert_allclose(found["a"], updates().mean(np.array([1.0, 2.0, 3.0]))["a"], rtol=1e-6)

    def test_other_weights_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="other weights"):
            self.sums().mean(np.ones(3))

    def test_single_changes_are_not_there_but_reports_are(self) -> None:
        with pytest.raises(ConfigError, match="not there"):
            self.sums().one(0)
        assert self.sums().report("loss").tolist() == [1, 1, 1]
