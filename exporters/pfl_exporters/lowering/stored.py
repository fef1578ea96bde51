"""Weights that are stored in fewer bits, as the targets' toolchains take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.simplify import copied, shape
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE, DEQUANTIZE_PACKED, dequantize

from .expand import expand

_aten = torch.ops.aten


def has_stored(graph: fx.GraphModule) -> bool:
    """Whether a weight of the graph is stored in fewer bits."""
    return any(node.target in (DEQUANTIZE, DEQUANTIZE_PACKED) for node in graph.graph.nodes)


def _plain(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:  # noqa: ARG001  (not packed)
    return dequantize(numbers, scales)


def in_plain_operators(program: TracedProgram) -> TracedProgram:
    """The program with numbers of one byte each, multiplied by their scales in operators of PyTorch."""
    if not has_stored(program.graph):
        return program
    graph = copied(program.graph)
    expand(graph, {DEQUANTIZE: lambda _: _plain})
    return replace(program, graph=graph)


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
