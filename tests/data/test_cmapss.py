"""Engines until they fail."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import cmapss
from pfl_mobile.errors import ConfigError, DataError
from tests.data.conftest import Pin, quiet


def engine_lines(missing: bool = False) -> str:
    lines = []
    for engine in range(1, 11):
        for cycle in range(1, 40 + engine):
            values = [str(1000 * engine + cycle)] * 21
            if missing and cycle in (1, 20):
                values[1] = ["NAN", "'N/A'"][cycle == 20]
            lines.append(f"{engine} {cycle} 0.1 0.2 100.0 {' '.join(values)}  ")
    return "\n".join(lines)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(engine_lines().encode()))
    return path


def test_the_newest_engines_of_a_fleet_are_tested(engines: Path, pin: Pin) -> None:
    pin("cmapss", engines)
    found = data.population("cmapss", from_file=engines, users=2, window=5)
    for i in range(2):
        train, test = found.train(i), found.test(i)
        assert train["x"].shape[1:] == (5, len(cmapss.SENSORS))
        assert train["x"].max() < test["x"].min()  # sensors grow with the engine's number
        assert train["labels"].min() == test["labels"].min() == 0
    # Engines 1 to 4 of the first fleet live 40 to 43 cycles, 4 fewer windows each.
    assert len(found.train(0)["weight"]) == 40 + 41 + 42 + 43 - 4 * 4
    np.testing.assert_allclose(found.train(0)["labels"][0, 0], 35 / 125)


def test_an_engine_alone_is_tested_on_its_newest_cycles(engines: Path, pin: Pin) -> None:
    pin("cmapss", engines)
    found = data.population("cmapss", from_file=engines, users=10, window=3, task="failing")
    for i in range(10):
        assert found.train(i)["x"].max() < found.test(i)["x"].min()
        assert set(found.test(i)["labels"]) == {1}
    assert found.train(0)["labels"].dtype == np.int64


def test_missing_values_are_filled_from_the_cycle_before(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(engine_lines(missing=True))
    table = cmapss.parse(path, quiet)
    assert np.isnan(table["sensors"]).sum() == 20
    found = cmapss.build(table, users=2, window=1)
    x = found.train(0)["x"][:, 0]
    assert x[0, 0] == x[1, 0]
    assert x[19, 0] == x[18, 0]
    assert x[19, 1] > x[18, 1]


def test_wrong_engine_files_and_options(engines: Path, pin: Pin) -> None:
    pin("cmapss", engines)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"users": 11}, "users=11"),
        ({"users": 1}, "users=1"),
        ({"window": 30}, "window=30"),
        ({"task": "age"}, "'age'"),
        ({"test": 0.0}, "fraction is 0"),
    ]
    for options, says in wrong:
        with pytest.raises(ConfigError, match=says):
            data.population("cmapss", from_file=engines, **{"users": 2, "window": 5, **options})
    engines.write_bytes(engines.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot read"):
        cmapss.parse(engines, quiet)
    engines.write_text("1 2 3\n4 5 6\n")
    with pytest.raises(DataError, match=r"shape \[2, 3\]"):
        cmapss.parse(engines, quiet)
