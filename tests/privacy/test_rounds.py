"""Private rounds as a whole: budget, adaptive clip norm, saved and restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import LedgerError, NonFiniteError, PrivacyBudgetError, StateError
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.privacy import (
    AdaptiveClipping,
    Gaussian,
    Ledger,
    Matrix,
    PrivacyConfig,
    PrivateRounds,
    SecureNoise,
    SimulatedNoise,
    Unsampled,
)

BASE: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 2.0, "cohort": 10, "delta": 1e-5}
ADAPTIVE = Gaussian(**BASE, adaptive=AdaptiveClipping(noise_multiplier=3.0))
MATRIX = Matrix(**BASE, participation=Unsampled(min_separation=4))
ROWS = MatrixRows(np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32))
ONES = np.ones(9)


def test_every_merge_is_in_the_ledger() -> None:
    rounds = PrivateRounds(Gaussian(**BASE), SecureNoise())
    assert rounds.secure
    for _ in range(3):
        assert rounds.merge(ROWS, ONES).shape == (5,)
    assert rounds.ledger.rounds == 3
    assert not PrivateRounds(Gaussian(**BASE), SimulatedNoise(0)).secure


def test_no_round_is_merged_when_the_budget_is_spent() -> None:
    free = Ledger(Gaussian(**BASE))
    free.record(2)
    rounds = PrivateRounds(Gaussian(**BASE, budget_epsilon=free.epsilon()), SimulatedNoise(0))
    for _ in range(2):
        rounds.merge(ROWS, ONES)
    with pytest.raises(PrivacyBudgetError):
        rounds.merge(ROWS, ONES)
    assert rounds.ledger.rounds == 2


def test_a_refused_round_changes_nothing() -> None:
    rounds = PrivateRounds(ADAPTIVE, SimulatedNoise(0))
    bad = ROWS.matrix.copy()
    bad[3, 1] = np.nan
    with pytest.raises(NonFiniteError):
        rounds.merge(MatrixRows(bad), ONES)
    with pytest.raises(NonFiniteError):
        rounds.merge(ROWS, ONES * np.nan)
    assert rounds.ledger.rounds == 0
    assert rounds.clip_norm == 1.0


def test_the_clip_norm_adapts_and_is_told() -> None:
    rounds = PrivateRounds(ADAPTIVE, SimulatedNoise(0))
    before = rounds.clip_norm
    rounds.merge(ROWS, ONES)
    share = rounds.last_share
    assert share is not None
    assert rounds.clip_norm == pytest.approx(before * np.exp(-0.2 * (share - 0.5)))
    fixed = PrivateRounds(Gaussian(**BASE), SimulatedNoise(0))
    fixed.merge(ROWS, ONES)
    assert fixed.clip_norm == 1.0
    assert fixed.last_share is None


@pytest.mark.parametrize("config", [ADAPTIVE, MATRIX, Gaussian(**BASE)], ids=["adaptive", "matrix", "plain"])
def test_restored_rounds_go_on_as_if_they_had_not_stopped(config: PrivacyConfig) -> None:
    whole = PrivateRounds(config, SimulatedNoise(3))
    means = [whole.merge(ROWS, ONES) for _ in range(8)]
    assert not np.array_equal(means[0], means[1])
    first = PrivateRounds(config, SimulatedNoise(3))
    for _ in range(5):
        first.merge(ROWS, ONES)
    second = PrivateRounds(config, SimulatedNoise(3))
    second.restore(first.state(), Ledger.from_json(first.ledger.to_json()))
    rest = [second.merge(ROWS, ONES) for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(means[5:], rest, strict=True))
    assert second.ledger.entries == whole.ledger.entries


def test_states_of_other_rounds_are_refused() -> None:
    plain = PrivateRounds(Gaussian(**BASE), SimulatedNoise(0))
    with pytest.raises(StateError):
        plain.restore({}, plain.ledger)
    with pytest.raises(StateError):
        plain.restore({"clip_norm": np.array([3.0])}, plain.ledger)
    matrix = PrivateRounds(MATRIX, SimulatedNoise(0))
    matrix.merge(ROWS, ONES)
    with pytest.raises(StateError):
        plain.restore(matrix.state(), plain.ledger)
    with pytest.raises(LedgerError):
        PrivateRounds(Gaussian(**BASE), SimulatedNoise(0), matrix.ledger)
