"""Arrays that all jobs of a round read, laid out in one buffer that processes share or a cluster distributes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

#: Where an array lies: offset in bytes, shape, dtype.
Ref = tuple[int, tuple[int, ...], str]
#: A set of arrays by name.
Refs = Mapping[str, Ref]

_ALIGN = 64


class Pool:
    """Collects arrays; the same array (by identity) is kept once, however many sets it is in."""

    def __init__(self) -> None:
        """Empty."""
        self.size = 0
        self._known: dict[int, Ref] = {}
        self._arrays: list[np.ndarray] = []

    def add(self, array: np.ndarray) -> Ref:
        """Where the array will be."""
        ref = self._known.get(id(array))
        if ref is None:
            ref = (self.size, array.shape, array.dtype.str)
            self._known[id(array)] = ref
            self._arrays.append(array)  # kept, so that no other array gets its id
            self.size += -(-array.nbytes // _ALIGN) * _ALIGN
        return ref

    def add_set(self, values: Mapping[str, np.ndarray]) -> dict[str, Ref]:
        """Where each array of a set will be."""
        return {name: self.add(value) for name, value in values.items()}

    def write(self, buffer: np.ndarray) -> None:
        """Copy the arrays into a buffer of at least ``size`` bytes, uint8."""
        for array in self._arrays:
            view(self._known[id(array)], buffer)[...] = array


def view(ref: Ref, buffer: np.ndarray) -> np.ndarray:
    """One array in the buffer, not copied."""
    offset, shape, dtype = ref
    kind = np.dtype(dtype)
    return buffer[offset : offset + prod(shape) * kind.itemsize].view(kind).reshape(shape)


def views(refs: Refs, buffer: np.ndarray) -> dict[str, np.ndarray]:
    """A set of arrays in the buffer, not copied."""
    return {name: view(ref, buffer) for name, ref in refs.items()}
