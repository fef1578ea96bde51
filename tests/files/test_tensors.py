from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pfl_mobile import errors
from pfl_mobile.bundle import (
    load_metadata,
    load_tensors,
    metadata_from_bytes,
    save_tensors,
    tensors_from_bytes,
    tensors_to_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
names = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda n: n != "__metadata__")
arrays = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
metadata = st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))


@settings(max_examples=150)
@given(tensors=st.dictionaries(names, arrays, max_size=5), extra=metadata, order=st.randoms())
def test_round_trip(tensors: dict[str, np.ndarray], extra: dict[str, str], order: Any) -> None:
    data = tensors_to_bytes(tensors, metadata=extra)
    back = tensors_from_bytes(data)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].tobytes() == tensor.tobytes()
        back[name][...] = 0  # its own memory
    assert metadata_from_bytes(data) == extra
    shuffled = [*tensors.items()]
    order.shuffle(shuffled)
    assert tensors_to_bytes(dict(shuffled), metadata=dict(reversed(extra.items()))) == data


def test_metadata_in_any_order_gives_the_same_bytes() -> None:
    pairs = {"a": "1", "b": "2", "c": "3", "d": "4"}
    same = {
        tensors_to_bytes({"x": np.ones(3)}, metadata=dict(p)) for p in itertools.permutations(pairs.items())
    }
    assert len(same) == 1


def test_layouts_that_are_not_dense_or_little_endian() -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "every_second": base[::2, ::2],
        "reversed": base[:, ::-1],
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "big_endian": base.astype(">f4"),
        "fortran": np.asfortranarray(base),
        "scalar": np.array(3, np.float32),
    }
    back = tensors_from_bytes(tensors_to_bytes(tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].shape == tensor.shape


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_is_refused_when_asked(tmp_path: Path, value: float, dtype: str) -> None:
    tensors = {"good": np.ones(2), "bad": np.array([1, value, 2], dtype)}
    with pytest.raises(errors.NonFiniteError, match="'bad' has 1 of 3"):
        save_tensors(tmp_path / "x", tensors, finite=True)
    assert list(tmp_path.iterdir()) == []
    save_tensors(tmp_path / "x", tensors)
    with pytest.raises(errors.NonFiniteError, match="bad"):
        load_tensors(tmp_path / "x", finite=True)
    np.testing.assert_array_equal(load_tensors(tmp_path / "x")["bad"], tensors["bad"])


@pytest.mark.parametrize(
    "tensor",
    [np.array(["a"]), np.array([None]), np.array([1j]), np.array(["2020"], "M8[D]"), np.zeros(1, "u8")],
)
def test_dtypes_that_cannot_be_stored(tensor: np.ndarray) -> None:
    with pytest.raises(errors.TensorFileError, match="'x' of dtype"):
        tensors_to_bytes({"x": tensor})


def test_a_name_that_the_format_keeps_for_itself() -> None:
    with pytest.raises(errors.TensorFileError, match="__metadata__"):
        tensors_to_bytes({"__metadata__": np.zeros(1)})


@given(data=st.binary(max_size=100), cut=st.integers(0, 130), position=st.integers(0, 10**6))
def test_damaged_bytes_give_one_kind_of_error(data: bytes, cut: int, position: int) -> None:
    good = tensors_to_bytes({"x": np.arange(4.0)}, metadata={"k": "v"})
    changed = bytearray(good)
    changed[position % len(good)] ^= 1 + position % 255
    for bad in (data, good[: min(cut, len(good) - 1)], bytes(changed)):
        for read in (tensors_from_bytes, metadata_from_bytes):
            with contextlib.suppress(errors.TensorFileError):
                read(bad)
    with pytest.raises(errors.TensorFileError):
        tensors_from_bytes(good[: min(cut, len(good) - 1)])


def test_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": np.ones(2)}, metadata={"round": "3"}, mode=0o600)
    assert load_metadata(tmp_path / "x") == {"round": "3"}
    with pytest.raises(errors.TensorFileError, match="No such file"):
        load_tensors(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(errors.TensorFileError, match="junk"):
        load_tensors(tmp_path / "junk")
