"""Core ML's file format: protocol buffers and the weight file."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from coremltools.proto import MIL_pb2
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.engines.coreml import wire

TYPES = {"float32": 11, "int32": 23, "bool": 1, "float16": 10}


def value(array):
    """An array as Apple's own classes write it."""
    made = MIL_pb2.Value()
    made.type.tensorType.dataType = TYPES[array.dtype.name]
    made.type.tensorType.rank = array.ndim
    for size in array.shape:
        made.type.tensorType.dimensions.add().constant.size = size
    tensor = made.immediateValue.tensor
    if array.dtype == np.float32:
        tensor.floats.values.extend(array.ravel().tolist())
    elif array.dtype == np.int32:
        tensor.ints.values.extend(array.ravel().tolist())
    elif array.dtype == np.bool_:
        tensor.bools.values.extend(array.ravel().tolist())
    else:
        tensor.bytes.values = array.tobytes()
    return memoryview(made.SerializeToString())


@given(
    st.sampled_from(sorted(TYPES)),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_a_constant_is_read_as_it_was_written(dtype, shape, seed):
    bits = np.random.default_rng(seed).integers(-(2**31), 2**31, shape)
    array = (bits % 2 == 0) if dtype == "bool" else bits.astype(dtype)
    with np.errstate(all="ignore"):
        got = wire._value(value(np.asarray(array)), memoryview(b""))
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (np.dtype(dtype), tuple(shape))
    np.testing.assert_array_equal(got, array)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_value_error_or_fields(data):
    try:
        found = list(wire._fields(memoryview(data)))
    except ValueError:
        return
    assert sum(len(c) for _, c in found if not isinstance(c, int)) <= len(data)


def stored(array, *, number=2, size=None, sentinel=0xDEADBEEF, start=64):
    head = struct.pack("<IIQQ", sentinel, number, array.nbytes if size is None else size, start)
    return memoryview(head.ljust(64, b"\0") + array.tobytes())


@pytest.mark.parametrize("count", [6, 7])
def test_numbers_of_four_bits_are_unpacked(count):
    numbers = np.array([-8, 7, -1, 0, 3, -5, 2], np.int8)[:count]
    halves = np.append(numbers, 0)[: count + count % 2] & 15
    packed = (halves[::2] | halves[1::2] << 4).astype(np.uint8)
    kind = wire.TensorType("int4", (count, 1))
    got = wire._from_file(stored(packed, number=8), 0, kind)
    assert (got.dtype, kind.in_memory) == (np.int8, "int8")
    np.testing.assert_array_equal(got, numbers.reshape(count, 1))
    with pytest.raises(ValueError, match="has 3 bytes, its type 10"):
        wire._from_file(stored(packed[:3], number=8), 0, wire.TensorType("int4", (20,)))
    made = MIL_pb2.Value()
    made.immediateValue.tensor.bytes.values = packed.tobytes()
    made.type.tensorType.dataType = MIL_pb2.INT4
    made.type.tensorType.rank = 1
    made.type.tensorType.dimensions.add().constant.size = count
    np.testing.assert_array_equal(wire._value(memoryview(made.SerializeToString()), memoryview(b"")), numbers)


def test_a_constant_of_the_weight_file():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    kind = wire.TensorType("float32", (2, 3))
    np.testing.assert_array_equal(wire._from_file(stored(array), 0, kind), array)
    for wrong, what in (
        ({"number": 1}, "does not fit"),
        ({"sentinel": 7}, "does not fit"),
        ({"size": 20}, "has 20 bytes, its type 24"),
        ({"start": 80}, "has 24 bytes"),
    ):
        with pytest.raises(ValueError, match=what):
            wire._from_file(stored(array, **wrong), 0, kind)
    with pytest.raises(ValueError, match="outside"):
        wire._from_file(stored(array), 70, kind)


def test_a_constant_with_another_number_of_entries_than_its_type_is_refused():
    made = MIL_pb2.Value()
    made.ParseFromString(bytes(value(np.arange(6, dtype=np.float32))))
    made.type.tensorType.dimensions[0].constant.size = 7
    with pytest.raises(ValueError, match="6 entries"):
        wire._value(memoryview(made.SerializeToString()), memoryview(b""))
