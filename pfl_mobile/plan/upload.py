"""What a device sends after training: the change of the tensors that travel, and of their copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.select import copy_key, uploaded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.select import TensorEntry

    Set = Mapping[str, np.ndarray]


def update_shapes(plan: Plan, table: Sequence[TensorEntry]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything that the plan sends, in order.

    Raises:
        UnknownNameError, ConfigError: an upload pattern matches nothing, or personal tensors only.
    """
    sent, shapes = uploaded(plan.upload, table), {t.name: tuple(t.shape) for t in table}
    keys = {name: shapes[name] for name in sent}
    return keys | {copy_key(c, name): shapes[name] for c in plan.upload_copies for name in sent}


def check_sends(plan: Plan, table: Sequence[TensorEntry]) -> None:
    """Refuse a plan whose update would hold nothing, or nothing but zeros.

    Raises:
        UnknownNameError: a pattern matches nothing.
        ConfigError: nothing is uploaded, or no phase changes what is.
    """
    changed: set[str] = set()
    for phase in plan.distinct_steps():
        if phase.changes in {"theta", *plan.upload_copies}:
            changed.update(phase.tensors(table))
    if changed.isdisjoint(uploaded(plan.upload, table)):
        what = "changes nothing of what it sends" if plan.upload else "sends nothing"
        raise ConfigError(
            f"the plan {what}, so no update can come of it",
            mend="train shared tensors and name them in upload; `pfl serve --strategy NAME` does so",
        )


def change(
    plan: Plan,
    table: Sequence[TensorEntry],
    before: tuple[Set, Mapping[str, Set]],
    after: tuple[Set, Mapping[str, Set]],
) -> dict[str, np.ndarray]:
    """After minus before, float32, of what the plan sends; personal tensors are never among it.

    Args:
        plan: names tensors and copies.
        table: the device tensors with their roles.
        before: values that the aggregator sent, and copies before training; a missing copy was zero.
        after: tensors and copies after training.
    """
    result: dict[str, np.ndarray] = {}
    for name in uploaded(plan.upload, table):
        result[name] = after[0][name] - before[0][name]
    for copy in plan.upload_copies:
        for name in uploaded(plan.upload, table):
            if name in after[1][copy]:
                old = before[1].get(copy, {}).get(name)
                value = after[1][copy][name]
                result[copy_key(copy, name)] = value if old is None else value - old
    return result


@dataclass(frozen=True)
class UpdateLayout:
    """Where each tensor lies in a flat vector.

    Attributes:
        shapes: names and shapes in order; copies are named as ``copy_key`` does.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def size(self) -> int:
        """Number of values."""
        return sum(prod(shape) for shape in self.shapes.values())

    def items(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Name, place and shape of every tensor."""
        start = 0
        for name, shape in self.shapes.items():
            yield name, slice(start, start + prod(shape)), shape
            start += prod(shape)

    def unpack(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views on a flat vector [P], or on a stack of them [n, P], by name."""
        return {
            name: flat[..., place].reshape((*flat.shape[:-1], *shape)) for name, place, shape in self.items()
        }

    def pack(self, values: Mapping[str, np.ndarray], out: np.ndarray) -> None:
        """Copy tensors into a flat vector [P]; a missing one becomes zero."""
        for name, place, _ in self.items():
            out[place] = values[name].reshape(-1) if name in values else 0.0
