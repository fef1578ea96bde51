"""Compute only the position that is asked for.

``predict`` of a next-word model looks at one position of the output, and a trace computes all of them first: the output
layer and the memory over the whole vocabulary, twenty times. Picking a row commutes with whatever computes each row by
itself, so here the pick moves up the graph, to where rows meet: attention, or the inputs.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from .rowwise import SHAPED, Sources, sizes, sources
from .simplify import shape

_aten = torch.ops.aten


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
        found: Sources = None
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
            place = SHAPED.get(node.target)
            if place is not None:
                copy.args = (
                    *copy.args[:place],
                    list(_one_of(shape(node), rows[node])),
                    *copy.args[place + 1 :],
                )
            made[node, rows[node]] = copy
    gather.replace_all_uses_with(made[source, axis])
    graph.graph.erase_node(gather)
    return True


def _sources(node: fx.Node, axis: int) -> Sources:
    """Where a row of a node comes from: a single one of each input."""
    if node.op != "call_function":
        return None
    size = sizes(node)[axis]
    found = sources(node, axis, size)
    return None if found is None or any(sizes(given)[where] != size for given, where in found) else found
