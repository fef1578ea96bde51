"""What a process and its child say to each other: a head of JSON and the arrays it describes, nothing pickled."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from .base import Array

_LENGTHS = struct.Struct("<QQ")
_MOST_HEAD = 4 << 20


class BrokenFrameError(Exception):
    """The other side ended, or said something that is not a frame."""


def send(to: IO[bytes], head: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write one frame.

    Args:
        to: a pipe.
        head: plain values.
        arrays: numbers or flags of any shape.
    """
    flat = [np.ascontiguousarray(a) for a in arrays]
    about = [[a.dtype.name, list(np.shape(given))] for a, given in zip(flat, arrays, strict=True)]
    text = json.dumps({**head, "arrays": about}).encode()
    to.write(_LENGTHS.pack(len(text), sum(a.nbytes for a in flat)))
    to.write(text)
    for array in flat:
        to.write(array.tobytes())
    to.flush()


def receive(source: IO[bytes], most: int) -> tuple[dict[str, Any], list[Array]]:
    """Read one frame whose arrays have at most ``most`` bytes.

    Raises:
        BrokenFrameError: there is none, or another one.
    """
    length, body = _LENGTHS.unpack(_exactly(source, _LENGTHS.size))
    if length > _MOST_HEAD or body > most:
        raise BrokenFrameError(f"a frame of {length + body} bytes")
    try:
        head = json.loads(_exactly(source, length))
        about = [(np.dtype(name), tuple(shape)) for name, shape in head.pop("arrays")]
        counts = [math.prod(shape) * dtype.itemsize for dtype, shape in about]
        if sum(counts) != body or any(dtype.hasobject for dtype, _ in about):
            raise ValueError("the lengths differ")
        arrays = [
            np.frombuffer(bytearray(_exactly(source, count)), dtype).reshape(shape)
            for (dtype, shape), count in zip(about, counts, strict=True)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenFrameError(str(error)) from error
    return head, arrays


def _exactly(source: IO[bytes], count: int) -> bytes:
    try:
        found = source.read(count)
    except OSError as error:
        raise BrokenFrameError(str(error)) from error
    if len(found) != count:
        raise BrokenFrameError("the other side ended")
    return found
