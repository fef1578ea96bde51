"""Rows that stream: the same sums from memory and from files, with little memory and few open files."""

from __future__ import annotations

import os
import resource
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, NonFiniteError, TensorFileError
from pfl_mobile.merge import update_rows as module
from pfl_mobile.merge.update_rows import (
    COLUMNS,
    GROUP,
    OPEN,
    WIDE,
    FileRows,
    MatrixRows,
    RowFile,
    by_columns,
    finite_norms,
    gram,
    norms,
    toward_zero,
    weighted_sum,
)


def matrix_of(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def on_disk(folder: Path, matrix: np.ndarray, offset: int = 24) -> list[RowFile]:
    files = []
    for i, row in enumerate(matrix):
        path = folder / f"{i}.update"
        path.write_bytes(b"h" * offset + row.astype("<f4").tobytes())
        files.append(RowFile(path, offset))
    return files


class Narrow(MatrixRows):
    """Counts what is read."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(matrix)
        self.read = 0

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        found = super().block(first, last, columns)
        self.read += found.size
        return found


@given(st.integers(0, 70), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_weighted_sum_is_the_sum(count: int, width: int, seed: int) -> None:
    matrix = matrix_of(count, width, seed)
    weights = np.random.default_rng(seed).random(count)
    found = weighted_sum(MatrixRows(matrix), weights)
    assert found.dtype == np.float64
    assert found.shape == (width,)
    np.testing.assert_allclose(found, weights @ matrix.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_weighted_sum_agrees_with_the_simulators_product() -> None:
    matrix, weights = matrix_of(100, 5000), np.random.default_rng(1).random(100)
    weights /= weights.sum()
    ours = weighted_sum(MatrixRows(matrix), weights, out_dtype=np.float32)
    theirs = np.einsum("n,np->p", weights.astype(np.float32), matrix)
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


@pytest.mark.parametrize("width", [1, 7, COLUMNS - 1, COLUMNS + 1, WIDE + 3, 3 * WIDE + 5])
def test_bits_do_not_depend_on_threads_place_or_block_size(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, weights = matrix_of(19, width), np.random.default_rng(2).random(19)
    expected = weighted_sum(MatrixRows(matrix), weights)
    with FileRows(on_disk(tmp_path, matrix), width) as files:
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(weighted_sum(files, weights, threads=threads), expected)
            np.testing.assert_array_equal(
                weighted_sum(MatrixRows(matrix), weights, threads=threads), expected
            )
        np.testing.assert_array_equal(norms(files), norms(MatrixRows(matrix)))
        np.testing.assert_array_equal(gram(files), gram(MatrixRows(matrix)))
    for size in (64, 1000, 10**6):
        monkeypatch.setattr(module, "WIDE", size)
        np.testing.assert_array_equal(weighted_sum(MatrixRows(matrix), weights, threads=2), expected)


def test_each_value_is_read_once() -> None:
    rows = Narrow(matrix_of(40, 3 * WIDE))
    weighted_sum(rows, np.ones(40), threads=2)
    assert rows.read == rows.matrix.size


@given(st.floats(-1e300, 1e300))
def test_rounded_weights_are_never_larger(weight: float) -> None:
    found = toward_zero(np.array([weight]))
    assert found.dtype == np.float32
    assert abs(float(found[0])) <= abs(weight)
    if abs(weight) < 3e38:
        assert abs(float(found[0])) >= abs(weight) * (1 - 2**-23) - 2e-45


def test_norms_and_gram_are_those_of_float64() -> None:
    matrix = matrix_of(20, 2 * COLUMNS + 3)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(norms(MatrixRows(matrix)), np.linalg.norm(wide, axis=1), rtol=1e-13)
    np.testing.assert_allclose(gram(MatrixRows(matrix), scratch=1 << 16), wide @ wide.T, rtol=1e-10)


def test_norms_of_huge_values_do_not_overflow() -> None:
    matrix = np.full((2, 100), 3e38, np.float32)
    np.testing.assert_allclose(norms(MatrixRows(matrix)), 3e39, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_norms_names_the_row(bad: float) -> None:
    matrix = matrix_of(4, 10)
    matrix[2, 3] = bad
    with pytest.raises(NonFiniteError, match="number 2"):
        finite_norms(MatrixRows(matrix))
    matrix[2, 3] = 0
    np.testing.assert_array_equal(finite_norms(MatrixRows(matrix)), norms(MatrixRows(matrix)))


def test_by_columns_gives_every_column_once_within_its_memory() -> None:
    matrix = matrix_of(9, 1000)
    parts = []
    for columns, block in by_columns(MatrixRows(matrix), scratch=4 * 9 * 70):
        assert block.nbytes <= 4 * 9 * 70
        assert columns.start == sum(p.shape[1] for p in parts)
        parts.append(block.copy())
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), matrix)


def test_one_weight_for_each_update_is_needed() -> None:
    with pytest.raises(ConfigError, match="3 updates"):
        weighted_sum(MatrixRows(matrix_of(3, 4)), np.ones(2))


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(3, np.float32)])
def test_matrix_rows_take_float32_matrices_only(matrix: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="float32"):
        MatrixRows(matrix)


def test_no_rows_sum_to_zeros() -> None:
    np.testing.assert_array_equal(weighted_sum(MatrixRows(matrix_of(0, 5)), np.ones(0)), np.zeros(5))


class TestFiles:
    def test_few_files_are_open_at_a_time(self, tmp_path: Path) -> None:
        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc")
        matrix = matrix_of(3 * OPEN, 10)
        before, most = len(os.listdir("/proc/self/fd")), 0
        with FileRows(on_disk(tmp_path, matrix), 10) as rows:

            class Watched:
                width = 10

                def __len__(self) -> int:
                    return len(rows)

                def block(self, first: int, last: int, columns: slice) -> np.ndarray:
                    nonlocal most
                    found = rows.block(first, last, columns)
                    most = max(most, len(os.listdir("/proc/self/fd")) - before)
                    return found

            weighted_sum(Watched(), np.ones(len(rows)))
            np.testing.assert_allclose(gram(Watched()), matrix @ matrix.T, rtol=1e-3, atol=1e-3)
        assert most <= OPEN + 1
        assert len(os.listdir("/proc/self/fd")) <= before

    def test_memory_does_not_grow_with_the_number_of_updates(self, tmp_path: Path) -> None:
        width, peaks = 50_000, []
        files = on_disk(tmp_path, matrix_of(4, width))
        for count in (20, 200):
            with FileRows([files[i % 4] for i in range(count)], width) as rows:
                tracemalloc.start()
                weighted_sum(rows, np.ones(count))
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert peaks[1] < 1.2 * peaks[0]
        assert peaks[1] < 8 * width + 4 * 2 * WIDE * (GROUP + 1) + (1 << 20)

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda path: path.unlink(), "cannot be read"),
            (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 63 bytes"),
            (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has 65 bytes"),
            (lambda path: path.write_bytes(b""), "has 0 bytes"),
            (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path: Path, spoil: object, says: str) -> None:
        files = on_disk(tmp_path, matrix_of(3, 10))
        spoil(files[1].path)  # type: ignore[operator]
        with FileRows(files, 10) as rows, pytest.raises(TensorFileError, match=rf"1\.update.*{says}"):
            weighted_sum(rows, np.ones(3))

    def test_a_file_that_shrinks_while_it_is_read_is_named(self, tmp_path: Path) -> None:
        files = on_disk(tmp_path, matrix_of(2, 10))
        with FileRows(files, 10) as rows:
            rows.block(0, 2, slice(0, 5))
            os.truncate(files[1].path, 40)
            with pytest.raises(TensorFileError, match="became shorter"):
                rows.block(0, 2, slice(5, 10))

    def test_rows_can_be_read_again_after_close(self, tmp_path: Path) -> None:
        matrix = matrix_of(2, 10)
        rows = FileRows(on_disk(tmp_path, matrix), 10)
        for _ in range(2):
            np.testing.assert_array_equal(rows.block(0, 2, slice(3, 9)), matrix[:, 3:9])
            rows.close()

    def test_picked_rows_are_closed_with_the_others(self, tmp_path: Path) -> None:
        matrix = matrix_of(4, 10)
        rows = FileRows(on_disk(tmp_path, matrix), 10)
        picked = rows.pick([3, 1])
        np.testing.assert_array_equal(picked.block(0, 2, slice(0, 10)), matrix[[3, 1]])
        file = next(iter(picked._own.reader.open.values()))
        rows.close()
        assert file.closed

    def test_many_picks_summed_by_threads_keep_few_files_open(self, tmp_path: Path) -> None:
        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc")
        width = 2 * WIDE
        files = on_disk(tmp_path, np.zeros((GROUP, width), np.float32))
        before = len(os.listdir("/proc/self/fd"))
        with FileRows(files, width) as rows:
            for _ in range(10):
                weighted_sum(rows.pick(range(GROUP)), np.ones(GROUP), threads=2)
                gram(rows.pick(range(GROUP)))
            assert len(os.listdir("/proc/self/fd")) <= before + OPEN
        assert len(os.listdir("/proc/self/fd")) <= before

    def test_sizes_below_zero_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="below 0"):
            FileRows([RowFile(tmp_path, -1)], 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_a_cohort_of_a_thousand_takes_the_memory_of_a_few_models(tmp_path: Path) -> None:
    width = 2_500_000
    files = on_disk(tmp_path, matrix_of(1, width))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FileRows(files * 1000, width) as rows:
        weighted_sum(rows, np.full(1000, 1e-3))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4 * 4 * width / 1024
