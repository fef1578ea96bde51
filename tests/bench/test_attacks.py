"""The benchmark of attacks in small: attackers do what they are said to, and the table says what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from attack.report import collect, page, table
from attack.run import CLEAN, FRACTIONS, RULES, Case, Outcome, Settings, cases, run
from attack.threats import (
    ATTACKS,
    PATCH,
    TARGET,
    Attack,
    Poisoned,
    Scaling,
    backdoored,
    flipped,
    with_trigger,
)

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.strategies import Updates

SMALL = Settings(users=10, rounds=12, hidden=16, lr=0.1)


@pytest.fixture(scope="module")
def users() -> ArrayPopulation:
    """Ten classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    prototypes = (rng.random((10, 784)) < 0.1).astype(np.float32)
    rows = {}
    for user in range(10):
        labels = np.concatenate([np.arange(10), rng.integers(0, 10, 40)])
        x = prototypes[labels] + 0.2 * rng.standard_normal((50, 784)).astype(np.float32)
        rows[f"u{user}"] = {"x": x, "labels": labels, "weight": np.ones(50, np.float32)}
    return ArrayPopulation.of("easy", rows)


def test_the_trigger_is_a_white_corner() -> None:
    x = np.zeros((3, 784), np.float32)
    marked = with_trigger(x)
    assert marked.sum() == 3 * PATCH**2
    assert marked.reshape(-1, 28, 28)[0, -1, -1] == 1
    assert x.sum() == 0


def test_poisoned_rows_are_those_of_attackers_in_training_alone(users: ArrayPopulation) -> None:
    poisoned = Poisoned(users, frozenset({2}), backdoored)
    honest, bad = users.train(2), poisoned.train(2)
    assert (bad["labels"][::2] == TARGET).all()
    np.testing.assert_array_equal(bad["labels"][1::2], honest["labels"][1::2])
    np.testing.assert_array_equal(bad["x"][::2], with_trigger(honest["x"][::2]))
    assert poisoned.train(1) is users.train(1)
    assert poisoned.test(2) is users.test(2)
    assert (flipped(honest)["labels"] == 9 - honest["labels"]).all()
    assert len(poisoned) == len(users)


def test_attackers_scale_their_updates_alone() -> None:
    ones = np.ones((3, 2), np.float32)
    counts = np.ones(3, np.int64)
    given = Updates(UpdateLayout({"a": (2,)}), ones, [5, 7, 9], counts, counts, {}, [], 10)
    found = Scaling(frozenset({7}), -4.0)(0, given)
    assert found.changes.tolist() == [[1, 1], [-4, -4], [1, 1]]
    assert (ones == 1).all()


def test_replacement_scales_by_devices_over_attackers() -> None:
    assert Attack("", times=None).scale(30, 3) == 10
    assert ATTACKS["sign_flip"].scale(30, 3) == -4


def test_averaging_loses_what_robust_rules_keep(users: ArrayPopulation) -> None:
    clean = run(SMALL, Case(CLEAN, 0.0, "average", 0), users)
    assert clean.accuracy > 80
    lost = run(SMALL, Case("sign_flip", 0.3, "average", 0), users)
    assert lost.accuracy < 50
    for rule in ("median", "trimmed_mean", "geometric_median"):
        assert run(SMALL, Case("sign_flip", 0.3, rule, 0), users).accuracy > 70


def test_the_same_case_gives_the_same_outcome(users: ArrayPopulation) -> None:
    case = Case("backdoor", 0.2, "average", 1)
    assert run(SMALL, case, users) == run(SMALL, case, users)


def test_the_table_has_a_line_for_every_attack() -> None:
    planned = cases(list(ATTACKS), list(RULES), 2)
    assert len(planned) == 2 * len(RULES) * (1 + len(ATTACKS) * len(FRACTIONS))
    outcomes = [(c, Outcome(90.0 + c.seed, 5.0, c.attack == "sign_flip")) for c in planned]
    result = collect(Settings(), outcomes, 61.2)
    assert result["none"]["median"] == {
        "accuracy": 90.5,
        "accuracy_min": 90.0,
        "attack_success": 5.0,
        "diverged": 0,
    }
    assert result["attacks"]["sign_flip"]["10%"]["krum"]["diverged"] == 2
    lines = table(result).splitlines()
    assert len(lines) == 2 + 1 + len(FRACTIONS) * (len(ATTACKS) + 1)
    assert all(line.count("|") == len(RULES) + 3 for line in lines)
    assert "90.5*" in table(result)
    assert table(result) in page(json.loads(json.dumps(result)), "a command")


def test_unknown_names_are_refused() -> None:
    program = Path(__file__).resolve().parents[2] / "bench" / "attacks.py"
    found = subprocess.run([sys.executable, program, "--rules", "medain"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "medain" in found.stderr
