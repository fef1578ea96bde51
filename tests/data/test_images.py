"""Images without users, and how they are shared out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import data
from pfl_mobile.data import fashion_mnist, mnist
from pfl_mobile.data.partition import dirichlet
from pfl_mobile.errors import ConfigError, DataError

Pin = Callable[[str, Path], None]


def quiet(*_: object) -> None:
    """A progress callback."""


@given(
    counts=st.lists(st.integers(20, 200), min_size=2, max_size=6),
    users=st.integers(2, 6),
    alpha=st.floats(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_goes_to_exactly_one_user(
    counts: list[int], users: int, alpha: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = dirichlet(labels, users, alpha, seed, least=1)
    assert len(parts) == users
    assert min(len(p) for p in parts) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_a_small_alpha_gives_few_classes_and_a_large_one_all() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def largest_class(alpha: float) -> float:
        parts = dirichlet(labels, 10, alpha, 0)
        return float(np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts]))

    assert largest_class(0.1) > 0.5
    assert largest_class(1000.0) < 0.15


def test_the_partition_follows_its_seed() -> None:
    labels = np.repeat(np.arange(3), 50)
    one, same, other = (dirichlet(labels, 4, 1.0, seed, least=1) for seed in (1, 1, 2))
    assert [p.tolist() for p in one] == [p.tolist() for p in same] != [p.tolist() for p in other]


@pytest.mark.parametrize(("users", "alpha", "least"), [(1, 1.0, 1), (2, 0.0, 1), (2, 1.0, 0), (40, 1.0, 10)])
def test_impossible_partitions(users: int, alpha: float, least: int) -> None:
    with pytest.raises(ConfigError, match=f"users={users}"):
        dirichlet(np.zeros(100, int), users, alpha, 0, least)


def test_a_partition_that_leaves_users_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match="always has fewer than 10"):
        dirichlet(np.zeros(200, int), 20, 0.01, 0)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return path


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    files = {}
    for part, count in (("train", 60), ("t10k", 40)):
        x = np.zeros((count, 28, 28), np.uint8)
        x[:, 0, 0] = np.arange(count)
        files[f"data/{part}-images-idx3-ubyte"] = idx(x)
        files[f"data/{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return package(tmp_path / "mnist.tgz", files)


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    kinds = {
        f"src/clothes/{k}.json": json.dumps({"data": [[k] * 784] * (k + 1) + [[]]}).encode()
        for k in range(10)
    }
    return package(tmp_path / "fashion.tgz", {"src/other.json": b"{", **kinds})


def test_digits_are_shared_out_and_scaled(digits: Path, pin: Pin) -> None:
    pin("mnist", digits)
    found = data.population("mnist", from_file=digits, users=4, alpha=100.0, least=5)
    parts = [p for i in range(4) for p in (found.train(i), found.test(i))]
    assert sum(len(p["weight"]) for p in parts) == 100
    for part in parts:
        assert part["x"].shape[1:] == (784,)
        pixel = np.rint(part["x"][:, 0] * 255).astype(int)
        np.testing.assert_array_equal(pixel % 10, part["labels"])
    assert len(found.test(0)["weight"]) > 0


def test_some_of_the_images_can_be_taken(digits: Path, pin: Pin) -> None:
    pin("mnist", digits)
    found = data.summary(data.population("mnist", from_file=digits, users=2, alpha=100.0, examples=30))
    assert int(found["training_rows"]) + int(found["test_rows"]) == 30
    with pytest.raises(ConfigError, match="examples=101"):
        data.population("mnist", examples=101)


def test_clothes_are_read_class_by_class(clothes: Path) -> None:
    table = fashion_mnist.parse(clothes, quiet)
    assert np.bincount(table["labels"]).tolist() == list(range(1, 11))
    np.testing.assert_array_equal(table["x"][:, 5], table["labels"])


def broken(*values: Any) -> dict[str, bytes]:
    return {f"src/clothes/{k}.json": json.dumps({"data": [v] * 3}).encode() for k, v in enumerate(values)}


def test_damaged_images_are_errors(digits: Path, clothes: Path, tmp_path: Path) -> None:
    for path, parse in ((digits, mnist.parse), (clothes, fashion_mnist.parse)):
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError):
            parse(path, quiet)
    for files, says in (
        (broken([1] * 784), r"classes \[0\]"),
        (broken([1] * 783), "cannot read"),
        (broken([300] * 784), "cannot read"),
        (broken(["a"] * 784), "cannot read"),
    ):
        with pytest.raises(DataError, match=says):
            fashion_mnist.parse(package(tmp_path / "bad.tgz", files), quiet)
    for raw in (b"", b"\0\0\x08\1", idx(np.zeros(4, np.uint8))[:-1], b"\0\0\x09\1" + bytes(8)):
        with pytest.raises(DataError, match="not a whole IDX"):
            mnist.idx(raw, "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_downloaded_images_have_their_known_size(name: str) -> None:
    table = data.fetch.table(data.find(name))  # type: ignore[arg-type]
    assert table["x"].shape == (70_000, 784)
    assert np.bincount(table["labels"]).min() > 6000
