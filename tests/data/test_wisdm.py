"""Activity recognition with phones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import wisdm
from pfl_mobile.errors import ConfigError, DataError
from tests.data.conftest import Pin, quiet


def test_activity_tests_the_newest_part_of_each_activity(arff: Path, pin: Pin) -> None:
    pin("wisdm", arff)
    found = data.population("wisdm", from_file=arff)
    assert [found.id(i) for i in range(2)] == ["7", "33"]
    train, test = found.train(0), found.test(0)
    walking, sitting = (wisdm.ACTIVITIES.index(a) for a in ("Walking", "Sitting"))
    assert train["labels"].tolist() == [walking] * 8 + [sitting] * 8
    assert test["labels"].tolist() == [walking] * 2 + [sitting] * 2
    # The first feature tells the window: every tested one is newer than the trained ones of its activity.
    for activity in (walking, sitting):
        older, newer = (p["x"][p["labels"] == activity, 0] for p in (train, test))
        assert older.max() < newer.min()


def test_activity_can_be_split_by_time_alone(arff: Path, pin: Pin) -> None:
    pin("wisdm", arff)
    found = data.population("wisdm", from_file=arff, split="time")
    assert set(found.test(0)["labels"]) == {wisdm.ACTIVITIES.index("Sitting")}
    assert found.train(0)["x"][:, 0].max() < found.test(0)["x"][:, 0].min()
    with pytest.raises(ConfigError, match="'place'"):
        data.population("wisdm", split="place")


def test_features_are_standardised_with_training_rows(arff: Path, pin: Pin) -> None:
    pin("wisdm", arff)
    found = data.population("wisdm", from_file=arff)
    trained = np.concatenate([found.train(i)["x"] for i in range(2)])
    np.testing.assert_allclose(trained[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(trained[:, 0].std(), 1, atol=1e-6)
    assert not trained[:, 1].any()
    assert np.isfinite(trained).all()


def test_a_wrong_activity_file_is_an_error(arff: Path) -> None:
    for wrong in (arff.read_text().replace("Sitting", "Flying"), arff.read_text()[:-30]):
        arff.write_text(wrong)
        with pytest.raises(DataError, match="cannot read"):
            wisdm.parse(arff, quiet)
