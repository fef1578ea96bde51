"""Memory of the values between the calls of a schedule."""

from __future__ import annotations

import ctypes
import math
import platform
from functools import cache
from typing import Any

import numpy as np

from .base import Array

#: Where values begin, in bytes: as much as the widest registers read.
_ALIGNMENT = 64


class Values:
    """Lends memory for large values, and lends it again once they are given back.

    New memory of the system costs a fault for each page: a tenth of a step's time. What is lent and what waits to be
    lent are together never more than the most that was lent at once, so that nothing is taken for it. Not for several
    threads at once.
    """

    def __init__(self) -> None:
        self._lent: dict[int, tuple[Array, Array]] = {}
        self._free: dict[int, list[Array]] = {}
        self._lent_bytes = self._free_bytes = self._most = 0

    @property
    def held(self) -> int:
        """Bytes that are lent, or wait to be."""
        return self._lent_bytes + self._free_bytes

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory for a value; what is in it is anything.

        Args:
            shape, dtype: of the value.
        """
        size = math.prod(shape) * dtype.itemsize
        if size < APART_BYTES:
            return np.empty(shape, dtype)
        self._lent_bytes += size
        self._most = max(self._most, self._lent_bytes)
        waiting = self._free.get(size)
        if waiting:
            memory = waiting.pop()
            self._free_bytes -= size
        else:
            self._drop(self._most - self._lent_bytes)
            memory = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -memory.ctypes.data % _ALIGNMENT
        value: Array = memory[begin : begin + size].view(dtype).reshape(shape)
        self._lent[id(value)] = value, memory  # the value, so that no other takes its place in memory
        return value

    def give(self, value: Array) -> None:
        """Take back what nobody reads any more; what was not lent here stays as it is."""
        _, memory = self._lent.pop(id(value), (None, None))
        if memory is not None:
            self._lent_bytes -= value.nbytes
            self._free.setdefault(value.nbytes, []).append(memory)
            self._free_bytes += value.nbytes

    def leave(self) -> None:
        """All that is lent belongs to who has it."""
        self._lent.clear()
        self._lent_bytes = 0

    def _drop(self, most: int) -> None:
        """Give memory that waits to the system until no more than so many bytes do: first the sizes that came first."""
        for size, waiting in list(self._free.items()):
            while waiting and self._free_bytes > most:
                waiting.pop()
                self._free_bytes -= size
            if not waiting:
                del self._free[size]


@cache
def large_values_apart() -> None:
    """Have glibc take memory of its own for each large value, in the whole process, and give it back with the value.

    By itself it soon puts values of up to 32 MB into its heap, where aligned ones leave holes between those that wait
    for the backward pass: a step then takes up to twice what its values do. Phones' allocators take large values apart.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, APART_BYTES)


#: Number of the option in ``malloc.h``.
_M_MMAP_THRESHOLD = -3
#: Bytes of values that get memory of their own: where glibc begins, and does not stay.
APART_BYTES = 1 << 17
