"""The base of all merge rules: shares of weights, averaging, scores of unlike updates, rules by name."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, NonFiniteError, TooFewUpdatesError, UnknownNameError
from pfl_mobile.merge.rules import Average, anomaly_scores, create_rule, parts_of, rule_entries
from pfl_mobile.merge.update_rows import MatrixRows


def rows(*values: object) -> MatrixRows:
    return MatrixRows(np.array(values, np.float32))


def test_weights_become_shares() -> None:
    np.testing.assert_allclose(parts_of(3, np.array([1.0, 3.0, 0.0])), [0.25, 0.75, 0])


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e308])
def test_shares_do_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(parts_of(4, np.full(4, scale)), np.full(4, 0.25))


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ([0.0, 0.0], TooFewUpdatesError),
        ([1.0, -1.0], NonFiniteError),
        ([1.0, np.nan], NonFiniteError),
        ([1.0, np.inf], NonFiniteError),
        ([1.0], ConfigError),
        ([[1.0], [1.0]], ConfigError),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        parts_of(2, np.array(weights))


def test_the_average_is_weighted_and_lets_what_is_not_finite_show() -> None:
    found = Average().mean(rows([1, 2], [5, 6]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(found.values, [2, 3])
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.used, [0.75, 0.25])
    bad = Average().mean(rows([1, np.nan], [5, 6]), np.ones(2))
    assert np.isnan(bad.values[1])


def test_a_usual_update_scores_one_and_one_against_the_others_more() -> None:
    merged = np.array([1.0, 0.0])
    scores = anomaly_scores(rows([1, 1], [1, -1], [2, 0], [-3, 0]), merged)
    np.testing.assert_allclose(scores[:3], [1, 1, 1])
    assert scores[3] == pytest.approx(4 * 2), "four times as far, and the other way"


def test_scores_where_most_updates_are_the_mean_itself() -> None:
    scores = anomaly_scores(rows([1, 0], [1, 0], [1, 0], [1, 4]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(scores, [0, 0, 0, 4])
    np.testing.assert_allclose(anomaly_scores(rows([1, 0], [1, 0]), np.array([1.0, 0.0])), [0, 0])


def test_scores_of_what_is_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteError), np.errstate(invalid="ignore"):
        anomaly_scores(rows([1, np.inf]), np.zeros(2))


def test_rules_are_made_by_name() -> None:
    assert create_rule("average") == Average()
    assert "average" in [entry.name for entry in rule_entries()]
    with pytest.raises(UnknownNameError) as caught:
        create_rule("averge")
    assert "'average'" in caught.value.mend
    with pytest.raises(UnknownNameError, match="no hyper-parameter 'attackrs'") as caught:
        create_rule("krum", attackrs=0.1)
    assert "'attackers'" in caught.value.mend
    with pytest.raises(ConfigError):
        create_rule("krum", attackers=0.9)
