"""Weights that are stored in fewer bits, as the targets' toolchains take them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

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
    not from the forward pass to the backward pass."""
    for node in [n for n in graph.graph.nodes if n.target is DEQUANTIZE]:
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
        ids: Any = node.args[1]
        with graph.graph.inserting_before(node):
            rows = graph.graph.call_function(_aten.embedding.default, (numbers, ids))
            sizes = graph.graph.call_function(_aten.embedding.default, (scales, ids))
            read = graph.graph.call_function(DEQUANTIZE, (rows, sizes, bits))
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
