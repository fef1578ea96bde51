"""Reading a pickled pandas table without pandas and without running what a pickle may ask for.

A pickle is a program: it names functions and calls them. Here every name that a table of numbers and words needs
stands for :class:`_Call`, which only remembers what it was called with, and any other name is refused. The table is
then put together from what was remembered.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, cast

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import DataError

_ALLOWED = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
}


class _Call:
    """A call that was not made: its arguments, and the state given to its result."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for an allowed name."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return type(name, (_Call,), {})


def read_frame(raw: bytes, what: str, mend: str) -> dict[str, np.ndarray]:
    """Columns of a pickled ``pandas.DataFrame`` of numbers and words, by name.

    Args:
        raw: the pickle.
        what: the file, for messages.
        mend: what to do about a wrong one.

    Returns:
        float64 and int64 [N], or object [N] of ``str``, empty where missing.

    Raises:
        DataError: it is damaged, no such table, or names anything but the parts of one.
    """
    try:
        frame = _Reader(io.BytesIO(raw)).load()
        blocks, (columns, _) = frame.state["_mgr"].args
        names = list(_array(columns.args[1]["data"]))
        table: dict[str, np.ndarray] = {}
        for block in blocks:
            values, place = _array(block.args[0]), block.args[1]
            where = range(*place.args) if type(place).__name__ == "slice" else _array(place).tolist()
            for row, column in zip(values, where, strict=True):
                table[names[column]] = row
        if set(table) != set(names) or len({len(column) for column in table.values()}) != 1:
            raise ValueError(f"columns {sorted(names)} are not all there")
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise DataError(f"{what} is not a table of numbers and words: {error!r}", mend=mend) from error
    return table


def _array(call: Any) -> np.ndarray:
    """The array that a call of ``_frombuffer`` or ``_reconstruct`` would have made."""
    if type(call).__name__ == "_frombuffer":
        buffer, dtype, shape, order = call.args
        kind = np.dtype(cast(str, dtype.args[0]))
        if kind.kind not in "fi":
            raise ValueError(f"dtype {kind}")
        return np.frombuffer(buffer, kind).reshape(shape, order=order)
    _, shape, _, fortran, items = call.state
    words = ["" if isinstance(item, float) and item != item else item for item in items]
    if not all(isinstance(item, str) for item in words):
        raise ValueError("objects that are not words")
    return np.array(words, dtype=object).reshape(shape, order="F" if fortran else "C")
