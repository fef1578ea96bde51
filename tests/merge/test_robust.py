"""Merge rules: what they compute, and that attackers cannot lead the robust ones astray."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, NonFiniteError, TooFewUpdatesError, UnknownNameError
from pfl_mobile.merge.robust import GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean, assumed
from pfl_mobile.merge.rules import Average, MergeRule, anomaly_scores, create_rule, rule_entries
from pfl_mobile.merge.update_rows import MatrixRows

NAMES = [entry.name for entry in rule_entries()]
RULES = [create_rule(name) for name in NAMES]
ROBUST = [rule for rule in RULES if not isinstance(rule, Average)]

seeds = st.integers(0, 2**32)
counts = st.integers(5, 24)
widths = st.integers(1, 30)
#: What an attacker may send in place of an honest update.
evil = st.sampled_from([-1.0, 10.0, -1e3, 1e6, -1e12, 1e30, 0.0])


def honest(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(width) + 0.3 * rng.standard_normal((count, width))).astype(np.float32)


def merged(rule: MergeRule, matrix: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    found = rule.mean(MatrixRows(matrix), np.ones(len(matrix)) if weights is None else weights).values
    assert found.dtype == np.float32
    assert found.shape == matrix.shape[1:]
    return found


def test_the_rules_are_known_by_name() -> None:
    assert set(NAMES) == {
        "average",
        "geometric_median",
        "krum",
        "median",
        "multi_krum",
        "norm_bound",
        "trimmed_mean",
    }
    shown = json.loads(json.dumps([entry.to_json() for entry in rule_entries()]))
    assert all(entry["paper"] and entry["title"] for entry in shown)
    assert create_rule("trimmed_mean", attackers=0.3) == TrimmedMean(attackers=0.3)


def test_unknown_rules_and_hyper_parameters_are_named() -> None:
    with pytest.raises(UnknownNameError, match="medain"):
        create_rule("medain")
    with pytest.raises(UnknownNameError, match="beta"):
        create_rule("trimmed_mean", beta=0.1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("trimmed_mean", {"attackers": 0.5}),
        ("krum", {"attackers": -0.1}),
        ("multi_krum", {"keep": 0}),
        ("norm_bound", {"bound": 0.0}),
        ("geometric_median", {"smoothing": 0.0}),
        ("geometric_median", {"steps": 1.5}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        create_rule(name, **values)


# -- against naive references


@given(counts, widths, seeds)
@settings(deadline=None)
def test_average_is_numpys(count: int, width: int, seed: int) -> None:
    matrix, weights = honest(count, width, seed), np.random.default_rng(seed).random(count) + 0.01
    found = Average().mean(MatrixRows(matrix), weights)
    np.testing.assert_allclose(
        found.values, np.average(matrix, axis=0, weights=weights), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found.used, weights / weights.sum())


@given(counts, widths, seeds)
@settings(deadline=None)
def test_median_is_numpys(count: int, width: int, seed: int) -> None:
    matrix = honest(count, width, seed)
    np.testing.assert_allclose(
        merged(Median(), matrix), np.median(matrix.astype(np.float64), axis=0), rtol=1e-6
    )


@given(counts, widths, seeds, st.sampled_from([0.0, 0.1, 0.3, 0.4]))
@settings(deadline=None)
def test_trimmed_mean_leaves_out_both_ends(count: int, width: int, seed: int, attackers: float) -> None:
    matrix = honest(count, width, seed)
    cut = assumed(attackers, count)
    assume(count > 2 * cut)
    expected = np.sort(matrix.astype(np.float64), axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(merged(TrimmedMean(attackers=attackers), matrix), expected, rtol=1e-6)


def test_columns_in_several_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = honest(9, 1000, 0)
    monkeypatch.setattr("pfl_mobile.merge.update_rows.by_columns.__kwdefaults__", {"scratch": 4 * 9 * 64})
    for rule in (Median(), TrimmedMean()):
        cut = rule._cut(9)
        np.testing.assert_allclose(
            merged(rule, matrix), np.sort(matrix, axis=0)[cut : 9 - cut].mean(axis=0), rtol=1e-5
        )


def naive_krum(matrix: np.ndarray, attackers: int) -> np.ndarray:
    """Indexes in order of Krum's score, by the definition."""
    wide, sums = matrix.astype(np.float64), []
    for i, row in enumerate(wide):
        others = sorted(float(((row - o) ** 2).sum()) for j, o in enumerate(wide) if j != i)
        sums.append(sum(others[: len(wide) - attackers - 2]))
    return np.argsort(sums, kind="stable")


@given(counts, st.integers(2, 30), seeds, st.sampled_from([0.1, 0.2]))
@settings(deadline=None)
def test_krum_is_the_papers(count: int, width: int, seed: int, attackers: float) -> None:
    matrix = honest(count, width, seed)
    bad = assumed(attackers, count)
    assume(count >= 2 * bad + 3)
    order = naive_krum(matrix, bad)
    np.testing.assert_array_equal(merged(Krum(attackers=attackers), matrix), matrix[order[0]])
    weights = np.random.default_rng(seed).random(count) + 0.1
    best = order[: count - bad - 2]
    np.testing.assert_allclose(
        merged(MultiKrum(attackers=attackers), matrix, weights),
        np.average(matrix[best], axis=0, weights=weights[best]),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_array_equal(merged(MultiKrum(attackers=attackers, keep=1), matrix), matrix[order[0]])


@given(counts, widths, seeds)
@settings(deadline=None, max_examples=50)
def test_geometric_median_has_the_least_sum_of_distances(count: int, width: int, seed: int) -> None:
    matrix, rng = honest(count, width, seed), np.random.default_rng(seed)
    weights = rng.random(count) + 0.1

    def cost(point: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(matrix.astype(np.float64) - point, axis=1))

    found = merged(GeometricMedian(steps=2000), matrix, weights).astype(np.float64)
    least = cost(found)
    tried = [found + scale * rng.standard_normal(width) for scale in (1e-3, 1e-2, 0.1) for _ in range(20)]
    assert least <= min(map(cost, [*tried, *matrix, matrix.mean(axis=0)])) * (1 + 1e-4)


def test_geometric_median_of_a_line_is_the_middle_point() -> None:
    matrix = np.array([[0.0], [1.0], [5.0]], np.float32)
    np.testing.assert_allclose(merged(GeometricMedian(steps=10_000), matrix), [1.0], atol=1e-3)


def test_geometric_median_with_large_smoothing_is_the_mean() -> None:
    matrix, weights = honest(8, 20, 1), np.arange(1.0, 9.0)
    np.testing.assert_allclose(
        merged(GeometricMedian(smoothing=1e6), matrix, weights),
        np.average(matrix, axis=0, weights=weights),
        rtol=1e-4,
        atol=1e-5,
    )


@given(counts, widths, seeds, st.floats(0.1, 10))
@settings(deadline=None)
def test_norm_bound_scales_what_is_longer(count: int, width: int, seed: int, bound: float) -> None:
    matrix = honest(count, width, seed)
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    expected = (matrix * np.minimum(1, bound / norms)).mean(axis=0)
    np.testing.assert_allclose(merged(NormBound(bound=bound), matrix), expected, rtol=1e-4, atol=1e-5)
    expected = (matrix * np.minimum(1, np.median(norms) / norms)).mean(axis=0)
    np.testing.assert_allclose(merged(NormBound(), matrix), expected, rtol=1e-4, atol=1e-5)


def test_norm_bound_above_all_norms_is_the_mean() -> None:
    matrix = honest(6, 50, 0)
    np.testing.assert_array_equal(merged(NormBound(bound=1e6), matrix), merged(Average(), matrix))


# -- attackers


def attacked(matrix: np.ndarray, bad: int, times: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix with ``bad`` rows replaced, and which rows are honest."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(matrix), bad, replace=False)
    poisoned = matrix.copy()
    poisoned[rows] = np.float32(times) * (1 if times else rng.standard_normal(matrix.shape[1])) * matrix[rows]
    return poisoned, np.setdiff1d(np.arange(len(matrix)), rows)


@given(counts, widths, seeds, evil)
@settings(deadline=None)
def test_less_than_half_cannot_move_the_median_beyond_the_others(
    count: int, width: int, seed: int, times: float
) -> None:
    poisoned, good = attacked(honest(count, width, seed), (count - 1) // 2, times, seed)
    found = merged(Median(), poisoned)
    assert (poisoned[good].min(axis=0) <= found).all()
    assert (found <= poisoned[good].max(axis=0)).all()


@given(counts, widths, seeds, evil, st.sampled_from([0.1, 0.2, 0.3, 0.4]))
@settings(deadline=None)
def test_assumed_attackers_cannot_move_the_trimmed_mean_beyond_the_others(
    count: int, width: int, seed: int, times: float, attackers: float
) -> None:
    bad = assumed(attackers, count)
    assume(count > 2 * bad)
    poisoned, good = attacked(honest(count, width, seed), bad, times, seed)
    found = merged(TrimmedMean(attackers=attackers), poisoned)
    assert (poisoned[good].min(axis=0) <= found).all()
    assert (found <= poisoned[good].max(axis=0)).all()


@given(st.integers(9, 24), st.integers(20, 40), seeds, st.sampled_from([-1.0, 10.0, -1e3, 1e12, 1e30]))
@settings(deadline=None)
def test_krum_picks_an_honest_update(count: int, width: int, seed: int, times: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = (1 + 0.1 * rng.standard_normal((count, width))).astype(np.float32)
    poisoned, good = attacked(matrix, assumed(0.3, count), times, seed)
    found = Krum(attackers=0.3).mean(MatrixRows(poisoned), np.ones(count))
    assert found.used is not None
    assert set(np.flatnonzero(found.used)) <= set(good)
    several = MultiKrum(attackers=0.3).mean(MatrixRows(poisoned), np.ones(count))
    assert several.used is not None
    assert set(np.flatnonzero(several.used)) <= set(good)


@given(counts, widths, seeds, st.sampled_from([-1.0, 10.0, -1e3, 1e12, 1e30]))
@settings(deadline=None)
def test_less_than_half_move_the_geometric_median_a_bounded_way(
    count: int, width: int, seed: int, times: float
) -> None:
    bad = (count - 1) // 3
    poisoned, good = attacked(honest(count, width, seed), bad, times, seed)
    found, center = merged(GeometricMedian(), poisoned), poisoned[good].mean(axis=0)
    spread = np.linalg.norm(poisoned[good] - center, axis=1).max()
    # Lopuhaa and Rousseeuw 1991, theorem 2.2: 2 (1 - e) / (1 - 2 e) times the largest distance of the others.
    part = bad / count
    assert np.linalg.norm(found - center) <= 2 * (1 - part) / (1 - 2 * part) * spread + 1e-4


@given(counts, widths, seeds, st.sampled_from([1e3, -1e6, 1e30]))
@settings(deadline=None)
def test_an_attacker_moves_a_norm_bounded_mean_by_its_part_of_the_bound(
    count: int, width: int, seed: int, times: float
) -> None:
    matrix = honest(count, width, seed)
    poisoned, good = attacked(matrix, 1, times, seed)
    found = merged(NormBound(bound=1.0), poisoned).astype(np.float64)
    others = merged(NormBound(bound=1.0), poisoned[good]).astype(np.float64) * (count - 1) / count
    assert np.linalg.norm(found - others) <= 1 / count * (1 + 1e-4)


def test_average_is_moved_as_far_as_one_likes() -> None:
    poisoned, _ = attacked(honest(10, 5, 0), 1, 1e6, 0)
    assert np.linalg.norm(merged(Average(), poisoned)) > 1e4


# -- all rules


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_equal_updates_give_the_update(rule: MergeRule) -> None:
    row = honest(1, 40, 3)
    np.testing.assert_allclose(merged(rule, np.repeat(row, 9, axis=0)), row[0], rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(seed=seeds)
@settings(deadline=None, max_examples=15)
def test_the_order_of_updates_does_not_matter(rule: MergeRule, seed: int) -> None:
    matrix, rng = honest(11, 30, seed), np.random.default_rng(seed)
    weights, order = rng.random(11) + 0.1, rng.permutation(11)
    np.testing.assert_allclose(
        merged(rule, matrix, weights),
        merged(rule, matrix[order], weights[order]),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(seed=seeds)
@settings(deadline=None, max_examples=15)
def test_updates_of_weight_zero_do_not_count(rule: MergeRule, seed: int) -> None:
    matrix = honest(11, 30, seed)
    matrix[8:] *= 100
    weights = np.array([1.0] * 8 + [0.0] * 3)
    np.testing.assert_allclose(
        merged(rule, matrix, weights), merged(rule, matrix[:8], weights[:8]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_scale_of_weights_does_not_matter(rule: MergeRule) -> None:
    matrix, weights = honest(9, 30, 5), np.arange(1.0, 10.0)
    for times in (1e-300, 1e-5, 1e300):
        np.testing.assert_allclose(
            merged(rule, matrix, weights), merged(rule, matrix, weights * times), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_weights_used_sum_to_at_most_one(rule: MergeRule) -> None:
    used = rule.mean(MatrixRows(honest(9, 30, 5)), np.arange(1.0, 10.0)).used
    if used is not None:
        assert used.shape == (9,)
        assert (used >= 0).all()
        assert used.sum() <= 1 + 1e-12


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (np.zeros(9), TooFewUpdatesError),
        (np.full(9, -1.0), NonFiniteError),
        (np.full(9, np.nan), NonFiniteError),
        (np.full(9, np.inf), NonFiniteError),
        (np.ones(8), ConfigError),
    ],
)
def test_wrong_weights_are_refused(rule: MergeRule, weights: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        rule.mean(MatrixRows(honest(9, 30, 5)), weights)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_no_updates_are_too_few(rule: MergeRule) -> None:
    with pytest.raises(TooFewUpdatesError):
        rule.mean(MatrixRows(np.zeros((0, 3), np.float32)), np.zeros(0))


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (TrimmedMean(attackers=0.4), 2),
        (Krum(), 4),
        (Krum(attackers=0.49), 30),
        (MultiKrum(), 4),
        (MultiKrum(keep=7), 10),
    ],
)
def test_too_few_updates_for_the_attackers_assumed_are_refused(rule: MergeRule, count: int) -> None:
    with pytest.raises(TooFewUpdatesError):
        merged(rule, honest(count, 5, 0))


@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_updates_that_are_not_finite_are_refused(rule: MergeRule, bad: float) -> None:
    matrix = honest(9, 30, 5)
    matrix[4, 7] = bad
    with pytest.raises(NonFiniteError):
        merged(rule, matrix)


def test_a_part_of_the_updates_is_rounded_up() -> None:
    assert [assumed(0.1, n) for n in (1, 10, 11, 30)] == [1, 1, 2, 3]
    assert assumed(0.0, 100) == 0


# -- scores


@given(counts, st.integers(10, 30), seeds, st.sampled_from([-3.0, 30.0, 1e6]))
@settings(deadline=None)
def test_attackers_have_the_highest_scores(count: int, width: int, seed: int, times: float) -> None:
    poisoned, good = attacked(honest(count, width, seed), 1, times, seed)
    assume((np.linalg.norm(poisoned, axis=1) > 1.5).all())  # an update of nearly 0 is one at any scale
    scores = anomaly_scores(MatrixRows(poisoned), merged(Median(), poisoned))
    assert (scores >= 0).all()
    assert scores[good].max() < np.delete(scores, good).min()


def test_scores_are_as_defined() -> None:
    matrix = honest(20, 30, 1)
    matrix[3] *= -1
    m = merged(Median(), matrix).astype(np.float64)
    far = np.linalg.norm(matrix - m, axis=1)
    cosine = matrix @ m / np.linalg.norm(matrix, axis=1) / np.linalg.norm(m)
    assert cosine[3] < -0.5
    np.testing.assert_allclose(
        anomaly_scores(MatrixRows(matrix), m), far / np.median(far) * (1 + np.maximum(0, -cosine)), rtol=1e-5
    )


def test_scores_of_equal_updates_are_zero_and_one_that_differs_shows() -> None:
    matrix = np.ones((5, 10), np.float32)
    assert anomaly_scores(MatrixRows(matrix), matrix[0]).tolist() == [0.0] * 5
    matrix[2] = 3
    scores = anomaly_scores(MatrixRows(matrix), np.ones(10))
    assert scores.tolist() == [0.0, 0.0, 5.0, 0.0, 0.0]
    assert anomaly_scores(MatrixRows(matrix[:0]), matrix[0]).shape == (0,)


def test_scores_against_a_value_that_is_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        anomaly_scores(MatrixRows(honest(3, 4, 0)), np.full(4, np.nan))
