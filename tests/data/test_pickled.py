"""Tables in pickles, read without running anything."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile.data import pickled
from pfl_mobile.data.pickled import read_frame
from pfl_mobile.errors import DataError


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
