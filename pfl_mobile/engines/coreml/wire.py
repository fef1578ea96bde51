"""Core ML's file format, read without Apple's tools: protocol buffers and the weight file beside them.

Field numbers are those of ``Model.proto`` and ``MIL.proto``, which Apple publishes with coremltools; of the messages
only what an ML Program uses is read. Every offset and length is checked, so that a damaged file is an error.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import EngineError
from ...files.reading import MOST_TENSOR_BYTES, read_bytes
from ..base import Array

_DTYPES = {
    1: "bool",
    2: "str",
    10: "float16",
    11: "float32",
    12: "float64",
    21: "int8",
    22: "int16",
    23: "int32",
    25: "int4",
}
_DTYPES |= {24: "int64", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64"}
#: Types of the weight file, numbered in a way of its own.
_STORED = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    14: "int32",
    15: "uint32",
}
_SENTINEL = 0xDEADBEEF
#: The operator whose arguments are attributes, as it was made for iOS 16.
_OF_ATTRIBUTES = "constexpr_affine_dequantize"


@dataclass(frozen=True)
class Reference:
    """The name of a value that is computed before."""

    name: str


@dataclass(frozen=True)
class TensorType:
    """Dtype and shape that the program declares for a value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def in_memory(self) -> str:
        """The dtype of an array of it: NumPy has no numbers of 4 bits."""
        return "int8" if self.dtype == "int4" else self.dtype


@dataclass(frozen=True)
class Operation:
    """One step of a function.

    Attributes:
        type: what is computed, for instance ``matmul``.
        inputs: by parameter; a parameter of several values has several.
        outputs: name and type of each result.
        value: of a constant.
    """

    type: str
    inputs: Mapping[str, Sequence[Reference | Array | str]]
    outputs: Sequence[tuple[str, TensorType | None]]
    value: Array | str | None = None


@dataclass(frozen=True)
class Function:
    """A function of an ML Program, in the order in which it computes."""

    inputs: Sequence[tuple[str, TensorType | None]]
    outputs: Sequence[str]
    operations: Sequence[Operation]


def read_program(model: str, weights: str | None) -> dict[str, Function]:
    """The functions of an ML Program.

    Args:
        model: the ``model.mlmodel`` of a package.
        weights: its ``weight.bin``; None where it has none.

    Raises:
        EngineError: a file cannot be read, is damaged, or is no ML Program.
    """
    try:
        data = memoryview(read_bytes(model))
        stored = memoryview(b"" if weights is None else read_bytes(weights, MOST_TENSOR_BYTES))
        program = _last(data, 502)
        if not len(program):
            raise ValueError("it is no ML Program")
        functions = {}
        for name, body in _map(program, 2):
            functions[name] = _function(body, stored)
    except (ValueError, OverflowError, OSError, struct.error, RecursionError) as error:
        raise EngineError(
            f"the Core ML package cannot be read: {error or type(error).__name__}",
            mend="export the bundle again",
        ) from error
    return functions


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and contents of a message's fields: whole numbers as such, the rest as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if length > end - at:
            raise ValueError("a field is longer than the file")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number without an end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _all(data: memoryview, number: int) -> Iterator[memoryview]:
    for found, content in _fields(data):
        if found == number:
            if isinstance(content, int):
                raise ValueError(f"field {number} is a number")
            yield content


def _last(data: memoryview, number: int) -> memoryview:
    content = memoryview(b"")
    for content in _all(data, number):  # noqa: B007  (the last one counts)
        pass
    return content


def _number(data: memoryview, number: int) -> int:
    return next((v for found, v in _fields(data) if found == number and isinstance(v, int)), 0)


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _map(data: memoryview, number: int) -> Iterator[tuple[str, memoryview]]:
    for entry in _all(data, number):
        yield _text(_last(entry, 1)), _last(entry, 2)


def _function(data: memoryview, stored: memoryview) -> Function:
    opset = _text(_last(data, 2))
    blocks = dict(_map(data, 3))
    if opset not in blocks:
        raise ValueError(f"it has no block for its operator set {opset!r}")
    block = blocks[opset]
    return Function(
        inputs=[_named(entry) for entry in _all(data, 1)],
        outputs=[_text(name) for name in _all(block, 2)],
        operations=[_operation(entry, stored) for entry in _all(block, 3)],
    )


def _named(data: memoryview) -> tuple[str, TensorType | None]:
    return _text(_last(data, 1)), _type(_last(data, 2))


def _type(data: memoryview) -> TensorType | None:
    """Of a tensor; None for tuples, lists and dictionaries."""
    tensor = _last(data, 1)
    if not len(tensor):
        return None
    number = _number(tensor, 1)
    if number not in _DTYPES:
        raise ValueError(f"a tensor of unknown type {number}")
    return TensorType(_DTYPES[number], tuple(_number(_last(d, 1), 1) for d in _all(tensor, 3)))


def _operation(data: memoryview, stored: memoryview) -> Operation:
    if any(True for _ in _all(data, 4)):
        raise ValueError(f"operation {_text(_last(data, 1))!r} has blocks of its own")
    inputs = {
        name: [_binding(entry, stored) for entry in _all(argument, 1)] for name, argument in _map(data, 2)
    }
    attributes = dict(_map(data, 5))
    if _text(_last(data, 1)) == _OF_ATTRIBUTES:
        inputs |= {name: [_value(entry, stored)] for name, entry in attributes.items() if name != "name"}
    value = _value(attributes["val"], stored) if "val" in attributes else None
    return Operation(_text(_last(data, 1)), inputs, [_named(entry) for entry in _all(data, 3)], value)


def _binding(data: memoryview, stored: memoryview) -> Reference | Array | str:
    value = _last(data, 2)
    return _value(value, stored) if len(value) else Reference(_text(_last(data, 1)))


def _value(data: memoryview, stored: memoryview) -> Array | str:
    kind = _type(_last(data, 2))
    if kind is None:
        raise ValueError("a constant that is no tensor")
    in_file = _last(data, 5)
    if len(in_file):
        return _from_file(stored, _number(in_file, 2), kind)
    tensor = _last(_last(data, 3), 1)
    if kind.dtype == "str":
        return _text(_last(_last(tensor, 4), 1))
    flat = _immediate(tensor, kind)
    size = math.prod(kind.shape)
    if flat.size == 0 and size:  # protocol buffers leave out what is zero
        flat = np.zeros(size, flat.dtype)
    if flat.size == 1 and size > 1:
        flat = np.full(size, flat[0])
    if flat.size != size:
        raise ValueError(f"a constant has {flat.size} entries, its type {list(kind.shape)}")
    return flat.astype(kind.in_memory, copy=False).reshape(kind.shape)


def _immediate(tensor: memoryview, kind: TensorType) -> Array:
    for number, content in _fields(tensor):
        if isinstance(content, int):
            raise ValueError("a constant is damaged")
        if number in (1, 6):
            raw = b"".join(bytes(part) for part in _all(content, 1))
            return np.frombuffer(raw, "<f4" if number == 1 else "<f8")
        if number in (2, 3, 5):
            return np.array([n for part in _numbers(content) for n in part], np.int64)
        if number == 7:
            raw = b"".join(bytes(part) for part in _all(content, 1))
            if kind.dtype == "int4":
                return _halves(memoryview(raw))[: math.prod(kind.shape)]
            return np.frombuffer(raw, np.dtype(kind.dtype))
    return np.zeros(0, kind.dtype)


def _numbers(data: memoryview) -> Iterator[Sequence[int]]:
    """Whole numbers of two's complement, one by one or many in a row."""
    for number, content in _fields(data):
        if number != 1:
            continue
        if isinstance(content, int):
            yield [_signed(content)]
            continue
        row, at = [], 0
        while at < len(content):
            value, at = _varint(content, at)
            row.append(_signed(value))
        yield row


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _from_file(stored: memoryview, offset: int, kind: TensorType) -> Array:
    """A constant of the weight file: at the offset stands where it lies."""
    if offset + 24 > len(stored):
        raise ValueError("a constant lies outside of the weight file")
    sentinel, number, size, start = struct.unpack_from("<IIQQ", stored, offset)
    if sentinel != _SENTINEL or _STORED.get(number) != kind.dtype:
        raise ValueError("the weight file does not fit the program")
    count = math.prod(kind.shape)
    wanted = (count + 1) // 2 if kind.dtype == "int4" else count * np.dtype(kind.dtype).itemsize
    if size != wanted or start + size > len(stored):
        raise ValueError(f"a constant of the weight file has {size} bytes, its type {wanted}")
    content = stored[start : start + size]
    if kind.dtype == "int4":
        return _halves(content)[:count].reshape(kind.shape)
    return np.frombuffer(content, np.dtype(kind.dtype)).reshape(kind.shape)


def _halves(content: memoryview) -> Array:
    """Numbers of 4 bits, two in a byte, the first of them in its lower half; as int8."""
    whole = np.frombuffer(content, np.uint8)
    halves = np.stack([whole & 15, whole >> 4], -1).reshape(-1).astype(np.int8)
    return (halves ^ 8) - 8  # of two's complement
