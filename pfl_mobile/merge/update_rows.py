"""Many updates as rows that are read piece by piece: in memory, or from one file each.

A merge of n updates of P values must not need n * P values of memory. So the functions here take ``UpdateRows``, read a
few rows and some columns at a time, and keep a constant number of models whatever n is:

    rows = FileRows([RowFile("u1.safetensors", 312), RowFile("u2.safetensors", 312)], width=2_500_000)
    mean = weighted_sum(rows, weights / weights.sum())

Sums run over the rows in their order. Their bits depend on the rows and weights alone: not on where the rows lie,
nor on the number of threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from pfl_mobile.errors import ConfigError, NonFiniteError, TensorFileError

#: Rows that are added up in float32 before the sum goes to float64. Part of what the bits of a sum depend on.
GROUP = 16
#: Columns of a block where sums are in float64: a group of such rows fits in a core's own cache (1 MB).
COLUMNS = 8192
#: Columns of a block of `weighted_sum`: pieces of files that are large enough to be read at the speed of memory, and
#: small enough for a group of them (4 MB) to stay in the shared cache.
WIDE = 65_536
#: Bytes of a block that holds some columns of all rows (`by_columns`).
SCRATCH = 64 << 20
#: Rows and columns of a piece of the matrix product in `gram`: so small that BLAS uses one thread. More would spin
#: on cores where others work, which took a hundred times as long when a machine was busy.
TILE = (32, 256)
#: Files that a thread keeps open.
OPEN = 32

_AGAIN = "refuse this update, or restore the file from a backup; a stored update is never changed"


class UpdateRows(Protocol):
    """n updates of P float32 values each. What is not finite passes through: see `finite_norms`."""

    def __len__(self) -> int:
        """How many updates, n."""

    @property
    def width(self) -> int:
        """Values of each update, P."""

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        """Some columns of the rows from ``first`` up to but not including ``last``, float32 [last - first, c].

        Not to be written to. It may be scratch memory: the next call in the same thread may overwrite it.

        Args:
            columns: with start and stop inside 0..P, and no step.
        """

    def pick(self, chosen: Sequence[int]) -> UpdateRows:
        """Some of the rows, in this order."""


class MatrixRows:
    """The rows of a float32 matrix [n, P] in memory."""

    def __init__(self, matrix: np.ndarray) -> None:
        """Refuse what is not a float32 matrix (ConfigError); it is not copied."""
        if matrix.ndim != 2 or matrix.dtype != np.float32:
            raise ConfigError(
                f"rows come as {matrix.dtype} of shape {matrix.shape}", mend="give a float32 matrix [n, P]"
            )
        self.matrix = matrix

    def __len__(self) -> int:
        """How many rows."""
        return len(self.matrix)

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.matrix.shape[1])

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        """A view."""
        return self.matrix[first:last, columns]

    def pick(self, chosen: Sequence[int]) -> MatrixRows:
        """A copy of some rows."""
        return MatrixRows(self.matrix[list(chosen)])


class ScaledRows:
    """Rows times a factor each.

    Args:
        rows: n of P values each.
        factors: float64 [n]; rounded to float32 toward zero.
    """

    def __init__(self, rows: UpdateRows, factors: np.ndarray) -> None:
        self.rows, self.factors = rows, toward_zero(factors)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Values of each row."""
        return self.rows.width

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        """A copy."""
        return np.asarray(self.rows.block(first, last, columns) * self.factors[first:last, None], np.float32)

    def pick(self, chosen: Sequence[int]) -> ScaledRows:
        """Some of the rows."""
        return ScaledRows(self.rows.pick(chosen), self.factors[list(chosen)])


class RowFile(NamedTuple):
    """Where an update lies: from ``offset`` (in bytes) to the end of the file at ``path``."""

    path: str | os.PathLike[str]
    offset: int = 0


class FileRows:
    """Rows that are little-endian float32 values at the end of one file each, for instance of safetensors files.

    Files are opened when they are needed, at most ``OPEN`` at a time in each thread, and read into memory of that
    thread which is used again, also by the rows that are picked of them. A thread's files are closed when it ends.
    Safe for several threads. Close it, or use it in a ``with`` block.

    Args:
        files: one for each row, in the order of the rows.
        width: values of each row; a file must end where they end.
    """

    def __init__(self, files: Sequence[RowFile], width: int) -> None:
        """Nothing is opened yet."""
        if width < 0 or any(file.offset < 0 for file in files):
            raise ConfigError(f"{width} values, or an offset below 0", mend="give sizes of 0 or more")
        self.files, self._width = [RowFile(*file) for file in files], width
        self._own = threading.local()
        self._all: weakref.WeakSet[_Reader] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many files."""
        return len(self.files)

    @property
    def width(self) -> int:
        """Values of each row."""
        return self._width

    def block(self, first: int, last: int, columns: slice) -> np.ndarray:
        """Read; overwritten by the next call in this thread.

        Raises:
            TensorFileError: a file is missing, shorter or longer than it must be, or cannot be read.
        """
        reader: _Reader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = _Reader(self._width)
            with self._lock:
                self._all.add(reader)
        return reader.block(self.files[first:last], columns)

    def pick(self, chosen: Sequence[int]) -> FileRows:
        """Some of the files; opened and closed with these."""
        picked = FileRows([self.files[i] for i in chosen], self._width)
        picked._own, picked._all, picked._lock = self._own, self._all, self._lock
        return picked

    def close(self) -> None:
        """Close the files of all threads, which must not be reading any more. The rows can be read again after it."""
        with self._lock:
            for reader in self._all:
                reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Reader:
    """One thread's open files and scratch memory."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.open: dict[RowFile, FileIO] = {}
        self.scratch = np.empty(0, "<f4")

    def __del__(self) -> None:
        self.close()

    def block(self, rows: Sequence[RowFile], columns: slice) -> np.ndarray:
        start, stop, _ = columns.indices(self.width)
        count, size = len(rows), stop - start
        if self.scratch.size < count * size:
            self.scratch = np.empty(count * size, "<f4")
        out = self.scratch[: count * size].reshape(count, size)
        for i, row in enumerate(rows):
            target = out[i]
            file = self._file(row, keep=count <= OPEN)
            _read(file, row, 4 * start, memoryview(target).cast("B") if size else memoryview(b""))
            if count > OPEN:
                self.open.pop(row).close()
        return out

    def _file(self, row: RowFile, *, keep: bool) -> FileIO:
        if row not in self.open:
            if keep and len(self.open) >= OPEN:
                self.close()
            self.open[row] = _open(row, self.width)
        return self.open[row]

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].close()


def _open(row: RowFile, width: int) -> FileIO:
    try:
        file = FileIO(os.fspath(row.path))
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise TensorFileError(
            f"the update {Path(row.path).name} cannot be read: {error.strerror or error}", mend=_AGAIN
        ) from error
    if size != row.offset + 4 * width:
        file.close()
        raise TensorFileError(
            f"the update {Path(row.path).name} has {size} bytes, not {row.offset} + 4 * {width}", mend=_AGAIN
        )
    return file


def _read(file: FileIO, row: RowFile, at: int, out: memoryview) -> None:
    """Fill ``out`` from ``at`` bytes after the row's beginning."""
    done = 0
    try:
        file.seek(row.offset + at)
        while done < len(out):
            count = file.readinto(out[done:])
            if not count:
                break
            done += count
    except OSError as error:
        raise TensorFileError(
            f"the update {Path(row.path).name} cannot be read: {error.strerror or error}", mend=_AGAIN
        ) from error
    if done < len(out):
        raise TensorFileError(
            f"the update {Path(row.path).name} became shorter while it was read", mend=_AGAIN
        )


def weighted_sum(
    rows: UpdateRows, weights: np.ndarray, *, out_dtype: DTypeLike = np.float64, threads: int = 1
) -> np.ndarray:
    """sum_i weights_i * row_i, [P].

    Each value is read once. ``GROUP`` rows at a time are added up in float32, in their order, and these sums in
    float64. Weights are rounded to float32 toward zero, so no weighted row is larger than the weight says by more
    than the rounding of its own values (2^-24 of each).

    Args:
        weights: float [n].
        out_dtype: float64, or float32 to round the sum.
        threads: that split the columns; same bits for any number.

    Raises:
        ConfigError: not one weight for each row.
        TensorFileError: by rows that are files.
    """
    if np.shape(weights) != (len(rows),):
        raise ConfigError(
            f"{np.shape(weights)} weights for {len(rows)} updates", mend="give one weight for each update"
        )
    factors = toward_zero(weights)
    total = np.zeros(rows.width, np.float64)

    def add(part: slice) -> None:
        blocks = list(_column_blocks(part, WIDE))
        small = np.empty(max((b.stop - b.start for b in blocks), default=0), np.float32)
        # Rows outside, columns inside: so that a file is opened once, and read from its beginning to its end.
        for first in range(0, len(rows), GROUP):
            last = min(first + GROUP, len(rows))
            for columns in blocks:
                out = small[: columns.stop - columns.start]
                # Not a product by BLAS: its threads would spin, and its bits depend on how many there are.
                np.einsum("n,np->p", factors[first:last], rows.block(first, last, columns), out=out)
                total[columns] += out

    parts = _split(rows.width, threads)
    if len(parts) == 1:
        add(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(add, parts))
    return total.astype(out_dtype, copy=False)


def toward_zero(weights: np.ndarray) -> np.ndarray:
    """float64 [n] to float32 that are nowhere larger in size."""
    exact = np.asarray(weights, np.float64)
    with np.errstate(over="ignore"):
        near = exact.astype(np.float32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)


def norms(rows: UpdateRows) -> np.ndarray:
    """L2 norm of each row, float64 [n]; NaN or infinite where the row is."""
    squares = np.zeros(len(rows))
    for first in range(0, len(rows), GROUP):
        last = min(first + GROUP, len(rows))
        for columns in _column_blocks(slice(0, rows.width), COLUMNS):
            # float64 before the squares: those of float32 overflow at 1e19.
            block = rows.block(first, last, columns).astype(np.float64)
            squares[first:last] += np.einsum("np,np->n", block, block)
    return np.sqrt(squares)


def finite_norms(rows: UpdateRows) -> np.ndarray:
    """As `norms`.

    Raises:
        NonFiniteError: a row has NaN or infinite values.
    """
    found = norms(rows)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise NonFiniteError(
            f"{len(bad)} of {len(rows)} updates have values that are NaN or infinite, the first is number {bad[0]}",
            mend="refuse such updates before the merge; lower the learning rate of the devices, or set clip",
        )
    return found


def gram(rows: UpdateRows, *, scratch: int = SCRATCH) -> np.ndarray:
    """Inner products of all pairs of rows, float64 [n, n], by blocks of columns of all rows.

    Args:
        scratch: bytes of memory for a block.
    """
    count = len(rows)
    upper = np.zeros((count, count))
    for _, block in by_columns(rows, scratch=scratch):
        for start in range(0, block.shape[1], TILE[1]):
            wide = block[:, start : start + TILE[1]].astype(np.float64)
            across = np.ascontiguousarray(wide.T)
            for i in range(0, count, TILE[0]):
                for j in range(i, count, TILE[0]):
                    part = wide[i : i + TILE[0]] @ across[:, j : j + TILE[0]]
                    upper[i : i + TILE[0], j : j + TILE[0]] += part
    return np.triu(upper) + np.triu(upper, 1).T


def finite_gram(rows: UpdateRows) -> np.ndarray:
    """As `gram`.

    Raises:
        NonFiniteError: a row has NaN or infinite values.
    """
    products = gram(rows)
    if not np.isfinite(np.diagonal(products)).all():
        raise NonFiniteError(
            "an update has values that are NaN or infinite", mend="refuse such updates before the merge"
        )
    return products


def by_columns(rows: UpdateRows, *, scratch: int = SCRATCH) -> Iterator[tuple[slice, np.ndarray]]:
    """All rows, some columns at a time: ``(columns, float32 [n, c])``, from the first column to the last.

    Args:
        scratch: bytes of a block, unless the rows are so many that one column takes more.
    """
    size = max(1, scratch // (4 * max(len(rows), 1)))
    for first in range(0, rows.width, size):
        columns = slice(first, min(first + size, rows.width))
        yield columns, rows.block(0, len(rows), columns)


def _column_blocks(part: slice, size: int) -> Iterator[slice]:
    """Blocks of at least ``size`` columns and less than twice that; one, when there are fewer in all.

    None is narrow, because sums over very narrow blocks take another way through numpy.
    """
    count = max((part.stop - part.start) // size, 1)
    for k in range(count):
        last = part.stop if k == count - 1 else part.start + (k + 1) * size
        yield slice(part.start + k * size, last)


def _split(width: int, parts: int) -> list[slice]:
    """At most ``parts`` ranges of whole blocks."""
    blocks = max(width // WIDE, 1)
    count = max(1, min(parts, blocks))
    edges = [WIDE * (blocks * k // count) for k in range(count)] + [width]
    return [slice(a, b) for a, b in pairwise(edges)]
