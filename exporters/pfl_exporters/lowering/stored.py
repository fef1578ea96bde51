"""Weights that are stored in fewer bits, as the targets' toolchains take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.simplify import shape
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE, dequantize

from .expand import expand
from .graphs import shared_copy

_aten = torch.ops.aten


def has_stored(graph: fx.GraphModule) -> bool:
    """Whether a weight of the graph is stored in fewer bits."""
    return any(node.target is DEQUANTIZE for node in graph.graph.nodes)


def _plain(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:  # noqa: ARG001  (not packed)
    return dequantize(numbers, scales)


def in_plain_operators(program: TracedProgram) -> TracedProgram:
    """The program with numbers of one byte each, multiplied by their scales in operators of PyTorch."""
    if not has_stored(program.graph):
        return program
    graph = shared_copy(program.graph)
    expand(graph, {DEQUANTIZE: lambda _: _plain})
    return replace(program, graph=graph)


def one_for_each_use(graph: fx.GraphModule) -> None:
    """Read a weight anew just before each of its uses, in place: as float32 it is then needed for that time only, and
    not from the forward pass to the backward pass. Rows of a table (see `rows_first`) are read once."""
    for node in [n for n in graph.graph.nodes if n.target is DEQUANTIZE]:
        if node.args[0].target is _aten.embedding.default:
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                own = graph.graph.node_copy(node)
            user.replace_input_with(node, own)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def rows_first(graph: fx.GraphModule) -> None:
    """Look rows up in the numbers and scales of a table, and not in the table, in place."""
    for node in list(graph.graph.nodes):
        if node.target is not _aten.embedding.default or node.args[0].target is not DEQUANTIZE:
            continue
        numbers, scales, bits = node.args[0].args
        with graph.graph.inserting_before(node):
            rows = graph.graph.call_function(_aten.embedding.default, (numbers, node.args[1]))
            sizes = graph.graph.call_function(_aten.embedding.default, (scales, node.args[1]))
            read = graph.graph.call_function(DEQUANTIZE, (rows, sizes, bits))
        read.meta = dict(node.meta)
        rows.meta["val"] = node.meta["val"].new_empty(shape(node), dtype=torch.int8)
        sizes.meta["val"] = node.meta["val"].new_empty((*shape(node)[:-1], shape(scales)[-1]))
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def other_constant(graph: fx.GraphModule, node: fx.Node, source: fx.Node, value: Tensor, kind: str) -> None:
    """Have a node read another constant in the place of one, in place.

    Args:
        graph: of the node.
        node: reads a constant, or rows of one that it keeps looking up.
        source: the constant as it is, among the node's inputs.
        value: the other one, made of it.
        kind: of the other one: for its name.
    """
    name = f"{source.target}_{kind}"
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(node):
        other = graph.graph.get_attr(name)
    other.meta["val"] = torch.empty_like(value, device="meta")
    node.replace_input_with(source, other)


def packed_table(graph: fx.GraphModule, node: fx.Node, pack: Callable[[Tensor], Tensor]) -> None:
    """Look rows of numbers of 4 bits up in a packed table, in place (see `rows_first`).

    Args:
        graph: of the node.
        node: reads the rows.
        pack: numbers [rows, columns] to fewer columns.
    """
    rows: Any = node.args[0]
    packed = pack(getattr(graph, rows.args[0].target))
    other_constant(graph, rows, rows.args[0], packed, "rows")
    rows.meta["val"] = packed.new_empty((*shape(rows)[:-1], packed.shape[-1]), device="meta")
