"""Sources of numbers: read once, checked, and of the sizes that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import cache as store
from pfl_mobile.data import registry
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError
from tests.data.conftest import Pin

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_a_table_is_read_once_and_then_cached(arff: Path, pin: Pin) -> None:
    pin("wisdm", arff)
    with pytest.raises(DataError, match=r"cannot be downloaded[\s\S]*pfl data get wisdm --from"):
        data.population("wisdm")
    first = data.population("wisdm", from_file=arff)
    arff.unlink()
    said: list[str] = []
    again = data.population("wisdm", progress=lambda what, _: said.append(what))
    assert said == ["wisdm: in the cache"]
    np.testing.assert_array_equal(first.train(1)["x"], again.train(1)["x"])
    entry = registry.find("wisdm")
    assert isinstance(entry, registry.PublishedDataset)
    path = store.path_of(entry)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be downloaded"):
        data.population("wisdm")


def test_wrong_files_and_options_of_numbers(arff: Path) -> None:
    with pytest.raises(DataError, match="its sha256 is"):
        data.population("wisdm", from_file=arff)
    with pytest.raises(DataError, match="there is no file"):
        data.population("wisdm", from_file=arff.with_name("none"))
    with pytest.raises(UnknownNameError, match="'wisdm'"):
        data.population("wisdn")
    with pytest.raises(UnknownNameError, match="no option 'tests'"):
        data.population("wisdm", tests=1)
    with pytest.raises(ConfigError, match="numbers by user"):
        data.get("wisdm")
    with pytest.raises(ConfigError, match="need the option 'encoder'") as caught:
        data.population("sotu")
    assert "pfl train keyboard --data sotu" in caught.value.mend


@pytest.mark.skipif(not (SHARED / "train_FD001.txt.gz").exists(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("name", "file", "users", "rows"),
    [("wisdm", "WISDM_ar_v1.1_transformed.arff", 36, 5418), ("cmapss", "train_FD001.txt.gz", 20, 17731)],
)
def test_the_real_files_have_their_known_size(name: str, file: str, users: int, rows: int) -> None:
    found = data.summary(data.population(name, from_file=SHARED / file))
    assert found["users"] == users
    assert int(found["training_rows"]) + int(found["test_rows"]) == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "users", "rows", "groups"), [("cgm-hall", 19, 28016, 2), ("movielens-small", 671, 100_004, 4)]
)
def test_a_downloaded_dataset_has_its_known_size(name: str, users: int, rows: int, groups: int) -> None:
    found = data.summary(data.population(name))
    assert (found["users"], found["groups"]) == (users, groups)
    assert int(found["training_rows"]) + int(found["test_rows"]) == rows
