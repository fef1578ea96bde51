"""Which operators compute each row of their result from the same row of their inputs, along which axes.

A result that is cut along such an axis can be computed piece by piece: of one row only
(`pfl_mobile.programs.one_row`), or of some rows after others (``pfl_exporters.lowering.in_rows``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .simplify import shape

_aten = torch.ops.aten

#: Operators whose shape stands among their arguments, and where.
SHAPED = {_aten.reshape.default: 1, _aten.expand.default: 1, _aten.full.default: 0}

#: Inputs that are cut, with the axis in each; None where rows meet in the operation.
Sources = list[tuple[fx.Node, int]] | None


def sizes(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's result; of the first, where there are several."""
    value = node.meta["val"]
    return tuple(value[0].shape) if isinstance(value, tuple | list) else shape(node)


def sources(node: fx.Node, axis: int, parts: int) -> Sources:
    """Which inputs to cut, and along which axis, for a result that is cut; the others are read as they are.

    Args:
        node: whose first result is cut into equal parts.
        axis: of the result; ``parts`` divides its size.
        parts: how many there are.
    """
    target = node.target
    if node.op != "call_function":
        return None
    if target is _aten.reshape.default:
        return _reshape(node, axis, parts)
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _aligned(node, axis)
    found = _ROWWISE.get(target)
    return found(node, axis) if found else None


def _aligned(node: fx.Node, axis: int) -> Sources:
    """Inputs are broadcast to the node's shape; one that has no such row is taken as it is."""
    found = []
    for given in node.all_input_nodes:
        where = axis - (len(shape(node)) - len(shape(given)))
        if where >= 0 and shape(given)[where] != 1:
            found.append((given, where))
    return found


def _same(node: fx.Node, axis: int) -> Sources:
    return [(node.args[0], axis)]


def _along_another(node: fx.Node, axis: int) -> Sources:
    """The operation runs along the dimension of its second argument."""
    return None if node.args[1] % len(shape(node)) == axis else [(node.args[0], axis)]


def _reduction(node: fx.Node, axis: int) -> Sources:
    given = node.args[0]
    dims = node.args[1] if len(node.args) > 1 else None
    if not dims:
        return None
    gone = {d % len(shape(given)) for d in dims}
    keeps = len(shape(given)) == len(shape(node))
    where = axis if keeps else [d for d in range(len(shape(given))) if d not in gone][axis]
    return None if where in gone else [(given, where)]


def _matrix(first: int, at: int) -> Callable[[fx.Node, int], Sources]:
    """A product, whose row ``at`` is that of the argument ``first``."""

    def found(node: fx.Node, axis: int) -> Sources:
        given = node.args[first]
        others = [a for place, a in enumerate(node.args) if place != first]
        if (
            axis != at
            or given in others
            or any(isinstance(a, fx.Node) and len(shape(a)) == 0 for a in others)
        ):
            return None
        return [(given, at)]

    return found


def _bmm(node: fx.Node, axis: int) -> Sources:
    return [(node.args[0], 0), (node.args[1], 0)] if axis == 0 else _matrix(0, 1)(node, axis)


def _addmm(node: fx.Node, axis: int) -> Sources:
    return _matrix(1, 0)(node, axis) if len(shape(node.args[0])) == 1 else None


def _linear(node: fx.Node, axis: int) -> Sources:
    return (
        [(node.args[0], axis)] if axis < len(shape(node)) - 1 and node.args[0] not in node.args[1:] else None
    )


def _reshape(node: fx.Node, axis: int, parts: int) -> Sources:
    """Parts are stretches of memory, of as many elements in the input; what is before the axis stays before it."""
    given, before = shape(node.args[0]), math.prod(shape(node)[:axis])
    for where, size in enumerate(given):
        if math.prod(given[:where]) == before and size % parts == 0 and size >= parts:
            return [(node.args[0], where)]
    return None


def _permute(node: fx.Node, axis: int) -> Sources:
    return [(node.args[0], node.args[1][axis] % len(shape(node)))]


def _cat(node: fx.Node, axis: int) -> Sources:
    dim = node.args[1] if len(node.args) > 1 else 0
    return None if dim % len(shape(node)) == axis else [(given, axis) for given in node.args[0]]


def _slice(node: fx.Node, axis: int) -> Sources:
    dim = node.args[1] if len(node.args) > 1 else 0
    return None if dim % len(shape(node)) == axis else [(node.args[0], axis)]


def _select(node: fx.Node, axis: int) -> Sources:
    dim = node.args[1] % len(shape(node.args[0]))
    return [(node.args[0], axis if axis < dim else axis + 1)]


def _pad(node: fx.Node, axis: int) -> Sources:
    place = 2 * (len(shape(node)) - 1 - axis)
    return None if any(node.args[1][place : place + 2]) else [(node.args[0], axis)]


def _by_index(node: fx.Node, axis: int) -> Sources:
    """Gather and scatter along another dimension."""
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    if node.args[1] % len(shape(node)) == axis or len({shape(t)[axis] for t in tensors}) != 1:
        return None
    return [(t, axis) for t in tensors]


def _embedding(node: fx.Node, axis: int) -> Sources:
    return (
        [(node.args[1], axis)] if axis < len(shape(node)) - 1 and node.args[0] is not node.args[1] else None
    )


def _layer_norm(node: fx.Node, axis: int) -> Sources:
    return [(node.args[0], axis)] if axis < len(shape(node.args[0])) - len(node.args[1]) else None


def _maximum(node: fx.Node, axis: int) -> Sources:
    """The operation runs along the dimension of its second argument, which may be gone from the result."""
    given, along = shape(node.args[0]), node.args[1] % len(shape(node.args[0]))
    where = axis + (len(sizes(node)) < len(given) and axis >= along)
    return None if where == along else [(node.args[0], where)]


def _item(node: fx.Node, axis: int) -> Sources:
    """One of the results of an operator that gives several with the same rows."""
    return [(node.args[0], axis)] if node.args[0].target in _SEVERAL else None


_SEVERAL = {_aten.native_layer_norm.default, _aten.max.dim}
_ROWWISE: dict[Any, Callable[[fx.Node, int], Sources]] = {
    _aten.full.default: lambda node, axis: [],  # noqa: ARG005
    **dict.fromkeys((_aten.full_like.default, _aten._to_copy.default, _aten.clone.default), _same),
    **dict.fromkeys((_aten._softmax.default, _aten._log_softmax.default), _along_another),
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default), _reduction),
    _aten.linear.default: _linear,
    _aten.mm.default: _matrix(0, 0),
    _aten.addmm.default: _addmm,
    _aten.bmm.default: _bmm,
    _aten.expand.default: lambda node, axis: _aligned(node, axis),
    _aten.permute.default: _permute,
    _aten.cat.default: _cat,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.constant_pad_nd.default: _pad,
    _aten.scatter_add.default: _by_index,
    _aten.gather.default: _by_index,
    _aten.embedding.default: _embedding,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.max.dim: _maximum,
    operator.getitem: _item,
}
