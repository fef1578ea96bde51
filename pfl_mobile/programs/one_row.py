"""Compute only the position that is asked for.

``predict`` of a next-word model looks at one position of the output, and a trace computes all of them first: the output
layer and the memory over the whole vocabulary, twenty times. Picking a row commutes with whatever computes each row by
itself, so here the pick moves up the graph, to where rows meet: attention, or the inputs.
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

#: Inputs that are picked from, with the axis of the row in each; None where rows meet in the operation.
_Sources = list[tuple[fx.Node, int]] | None


def pick_early(graph: fx.GraphModule) -> bool:
    """Move each pick of one row up, in place; True when something changed.

    Args:
        graph: as :func:`~pfl_mobile.programs.simplify.simplify` leaves it; the new nodes have no shapes, so simplify it
            again.
    """
    changed = False
    for node in list(graph.graph.nodes):
        index = _one_index(node)
        if index is not None:
            changed |= _moved(graph, node, index)
    return changed


def _one_index(node: fx.Node) -> fx.Node | None:
    """What a gather reads its one index from, where it takes one row of several."""
    if node.target is not _aten.gather.default:
        return None
    source, axis, index = node.args[0], node.args[1] % len(shape(node)), node.args[2]
    if shape(node) != _one_of(shape(source), axis) or shape(source)[axis] == 1:
        return None
    while index.target in (_aten.expand.default, _aten.reshape.default) and math.prod(shape(index)) != 1:
        index = index.args[0]
    return index if math.prod(shape(index)) == 1 else None


def _one_of(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*sizes[:axis], 1, *sizes[axis + 1 :])


def _moved(graph: fx.GraphModule, gather: fx.Node, index: fx.Node) -> bool:
    source, axis = gather.args[0], gather.args[1] % len(shape(gather))
    wanted: dict[fx.Node, set[int]] = {source: {axis}}
    whole: set[fx.Node] = set()
    rows: dict[fx.Node, int] = {}
    for node in reversed(list(graph.graph.nodes)):
        if node is gather:
            whole.add(index)
            continue
        found: _Sources = None
        axes = wanted.get(node, set())
        if len(axes) == 1 and node not in whole:
            found = _sources(node, next(iter(axes)))
        if found is None:
            whole.update(node.all_input_nodes)
            continue
        rows[node] = next(iter(axes))
        for given, where in found:
            wanted.setdefault(given, set()).add(where)
        whole.update(set(node.all_input_nodes) - {given for given, _ in found})
    if not rows:
        return False

    made: dict[tuple[fx.Node, int], fx.Node] = {}

    def picked(node: fx.Node, where: int) -> fx.Node:
        """The row of a node that is computed whole."""
        if (node, where) not in made:
            sizes = list(_one_of(shape(node), where))
            one = graph.graph.call_function(_aten.reshape.default, (index, [1] * len(sizes)))
            wide = graph.graph.call_function(_aten.expand.default, (one, sizes))
            made[node, where] = graph.graph.call_function(_aten.gather.default, (node, where, wide))
        return made[node, where]

    with graph.graph.inserting_before(gather):
        for node in [n for n in graph.graph.nodes if n in rows]:
            origins = dict(_sources(node, rows[node]) or [])
            copy = graph.graph.node_copy(
                node,
                lambda given, origins=origins: picked(given, origins[given]) if given in origins else given,
            )
            if node.target in (_aten.reshape.default, _aten.expand.default):
                copy.args = (copy.args[0], list(_one_of(shape(node), rows[node])))
            made[node, rows[node]] = copy
    gather.replace_all_uses_with(made[source, axis])
    graph.graph.erase_node(gather)
    return True


def _sources(node: fx.Node, axis: int) -> _Sources:
    """Where a row of a node comes from."""
    target = node.target
    if node.op != "call_function":
        return None
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _aligned(node, axis)
    found = _ROWWISE.get(target)
    return found(node, axis) if found else None


def _aligned(node: fx.Node, axis: int) -> _Sources:
    """Inputs are broadcast to the node's shape; one that has no such row is taken as it is."""
    found = []
    for given in node.all_input_nodes:
        where = axis - (len(shape(node)) - len(shape(given)))
        if where >= 0 and shape(given)[where] != 1:
            found.append((given, where))
    return found


def _same(node: fx.Node, axis: int) -> _Sources:
    return [(node.args[0], axis)]


def _along_another(node: fx.Node, axis: int) -> _Sources:
    """The operation runs along the dimension of its second argument."""
    return None if node.args[1] % len(shape(node)) == axis else [(node.args[0], axis)]


def _reduction(node: fx.Node, axis: int) -> _Sources:
    given = node.args[0]
    dims = node.args[1] if len(node.args) > 1 else None
    if not dims:
        return None
    gone = {d % len(shape(given)) for d in dims}
    keeps = len(shape(given)) == len(shape(node))
    where = axis if keeps else [d for d in range(len(shape(given))) if d not in gone][axis]
    return None if where in gone else [(given, where)]


def _matrix(first: int, at: int) -> Callable[[fx.Node, int], _Sources]:
    """A product, whose row ``at`` is that of the argument ``first``."""

    def found(node: fx.Node, axis: int) -> _Sources:
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


def _addmm(node: fx.Node, axis: int) -> _Sources:
    return _matrix(1, 0)(node, axis) if len(shape(node.args[0])) == 1 else None


def _linear(node: fx.Node, axis: int) -> _Sources:
    return (
        [(node.args[0], axis)] if axis < len(shape(node)) - 1 and node.args[0] not in node.args[1:] else None
    )


def _reshape(node: fx.Node, axis: int) -> _Sources:
    """The row is one of the input where both have a dimension of that size and stride."""
    given, after = shape(node.args[0]), math.prod(shape(node)[axis + 1 :])
    for where, size in enumerate(given):
        if size == shape(node)[axis] and math.prod(given[where + 1 :]) == after:
            return [(node.args[0], where)]
    return None


def _permute(node: fx.Node, axis: int) -> _Sources:
    return [(node.args[0], node.args[1][axis] % len(shape(node)))]


def _cat(node: fx.Node, axis: int) -> _Sources:
    dim = node.args[1] if len(node.args) > 1 else 0
    return None if dim % len(shape(node)) == axis else [(given, axis) for given in node.args[0]]


def _slice(node: fx.Node, axis: int) -> _Sources:
    dim = node.args[1] if len(node.args) > 1 else 0
    return None if dim % len(shape(node)) == axis else [(node.args[0], axis)]


def _select(node: fx.Node, axis: int) -> _Sources:
    dim = node.args[1] % len(shape(node.args[0]))
    return [(node.args[0], axis if axis < dim else axis + 1)]


def _pad(node: fx.Node, axis: int) -> _Sources:
    place = 2 * (len(shape(node)) - 1 - axis)
    return None if any(node.args[1][place : place + 2]) else [(node.args[0], axis)]


def _by_index(node: fx.Node, axis: int) -> _Sources:
    """Gather and scatter along another dimension."""
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    if node.args[1] % len(shape(node)) == axis or len({shape(t)[axis] for t in tensors}) != 1:
        return None
    return [(t, axis) for t in tensors]


def _embedding(node: fx.Node, axis: int) -> _Sources:
    return (
        [(node.args[1], axis)] if axis < len(shape(node)) - 1 and node.args[0] is not node.args[1] else None
    )


def _layer_norm(node: fx.Node, axis: int) -> _Sources:
    return [(node.args[0], axis)] if axis < len(shape(node.args[0])) - len(node.args[1]) else None


def _item(node: fx.Node, axis: int) -> _Sources:
    """The first of what a layer norm gives."""
    norm = node.args[0].target is _aten.native_layer_norm.default
    return [(node.args[0], axis)] if norm and node.args[1] == 0 else None


_ROWWISE: dict[Any, Callable[[fx.Node, int], _Sources]] = {
    **dict.fromkeys((_aten.full_like.default, _aten._to_copy.default, _aten.clone.default), _same),
    **dict.fromkeys((_aten._softmax.default, _aten._log_softmax.default), _along_another),
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default), _reduction),
    _aten.linear.default: _linear,
    _aten.mm.default: _matrix(0, 0),
    _aten.addmm.default: _addmm,
    _aten.bmm.default: _matrix(0, 1),
    _aten.reshape.default: _reshape,
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
    operator.getitem: _item,
}
