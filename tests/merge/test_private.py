"""Weights of single devices in a private merge: each of its own reports alone, within 0..1."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pfl_mobile.merge.private import PrivateRule


def rule(most: float = 1.0) -> PrivateRule:
    bounds = SimpleNamespace(cohort=10, weights=lambda examples: np.minimum(examples / 100, most))
    return PrivateRule(bounds, lambda rows, weights: np.zeros(1, np.float32))


def weights(function: object, losses: object, examples: object = (100, 100, 100)) -> list[float]:
    found = rule().own_weights(function, {"loss": np.array(losses, float)}, np.array(examples))  # type: ignore[arg-type]
    return [float(w) for w in found]


def test_a_device_is_weighted_by_its_own_report_and_examples() -> None:
    assert weights(lambda own, most: most * own["loss"], [0.5, 1.0, 0.25], [100, 50, 100]) == [0.5, 0.5, 0.25]


def test_a_devices_report_changes_no_other_weight() -> None:
    def function(own: dict[str, float], most: float) -> float:
        return own["loss"] / 10

    assert weights(function, [1, 2, 3])[:2] == weights(function, [1, 2, 9])[:2]


def test_no_report_makes_a_weight_outside_0_to_1() -> None:
    assert weights(lambda own, most: own["loss"], [1e30, -5, 0.5]) == [1.0, 0.0, 0.5]


def test_what_is_not_finite_counts_nothing_instead_of_an_error() -> None:
    assert weights(lambda own, most: 1.0, [np.nan, np.inf, 1.0]) == [0.0, 0.0, 1.0]
    assert weights(lambda own, most: np.nan if own["loss"] > 1 else 1.0, [2, 1, 1]) == [0.0, 1.0, 1.0]
