"""All gradient-trained tensors of a client as one row of floats, of many clients as a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.errors import TensorMismatchError

#: Every tensor begins at a multiple of 16 floats, one cache line.
_ALIGN = 16


class Layout:
    """Where each tensor lies in a row of ``size`` floats; what lies between is zero.

    Args:
        shapes: of the tensors, in order of name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.places: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            self.places[name] = slice(end, end + count)
            end += -(-count // _ALIGN) * _ALIGN
        self.size = end

    def ranges(self, names: Iterable[str]) -> list[slice]:
        """The fewest slices that hold these tensors and no other."""
        wanted, found, last = set(names), list[slice](), None
        for name, place in self.places.items():
            if name in wanted:
                stop = place.start + -(-(place.stop - place.start) // _ALIGN) * _ALIGN
                if found and last == place.start:
                    found[-1] = slice(found[-1].start, stop)
                else:
                    found.append(slice(place.start, stop))
                last = stop
        return found

    def view(self, flat: Tensor, name: str, *, single: bool = False) -> Tensor:
        """The tensor of every lane, [lanes, *shape], or of the one lane, [*shape], in ``flat`` [lanes, size]."""
        shape = self.shapes[name]
        if single:
            return flat[0, self.places[name]].view(shape)
        return flat[:, self.places[name]].view(len(flat), *shape)

    def write(self, row: np.ndarray, values: Mapping[str, np.ndarray], what: str) -> frozenset[str]:
        """Copy the tensors that ``values`` has into one row; their names.

        Raises:
            TensorMismatchError: a value has another shape or is not float32.
        """
        names = [name for name in self.places if name in values]
        for name in names:
            value = values[name]
            if value.shape != self.shapes[name] or value.dtype != np.float32:
                raise TensorMismatchError(
                    f"{what} {name!r} is {value.dtype} {list(value.shape)}, the tensor float32 "
                    f"{list(self.shapes[name])}",
                    mend="give float32 of the tensor's shape",
                )
            row[self.places[name]] = value.reshape(-1)
        return frozenset(names)

    def write_scaled(self, row: np.ndarray, values: Mapping[str, np.ndarray], what: str) -> frozenset[str]:
        """As ``write``, where a value may also be one element that stands for all."""
        whole = {
            n: np.full(self.shapes[n], v.reshape(-1)[0], np.float32) if v.size == 1 else v
            for n, v in values.items()
            if n in self.shapes
        }
        return self.write(row, whole, what)

    def read(self, row: np.ndarray, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The tensors in one row, as views of it."""
        wanted = self.places if names is None else names
        return {name: row[self.places[name]].reshape(self.shapes[name]) for name in wanted}


def non_finite(flat: Tensor, ranges: Sequence[slice]) -> Tensor:
    """Which lanes hold a NaN or an infinity in these ranges, bool [lanes]."""
    if not ranges:
        return torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    bad = ~torch.stack([flat[:, r].sum(1) for r in ranges]).isfinite().all(0)
    if bad.any():  # or a sum of finite numbers overflows
        bad = ~torch.stack([flat[:, r].isfinite().all(1) for r in ranges]).all(0)
    return bad
