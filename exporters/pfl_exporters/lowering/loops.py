"""Recurrent operators as loops that toolchains know: PyTorch's ``scan``, with the step as a graph of its own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.closed_forms import decompositions
from pfl_mobile.programs.forms.recurrences import LOOPS, Loop, loop_of, run
from pfl_mobile.programs.simplify import simplify

from .expand import expand

_aten = torch.ops.aten


def has_loops(graph: fx.GraphModule) -> bool:
    """Whether the graph has recurrent operators."""
    return any(loop_of(node.target, node.args) is not None for node in graph.graph.nodes)


def as_scans(graph: fx.GraphModule) -> None:
    """Replace recurrent operators by scans, in place, without the results that nobody takes.

    Args:
        graph: each node's ``meta["val"]`` says shape and dtype (see `pfl_mobile.programs.simplify.annotate`).
    """
    for node in list(graph.graph.nodes):
        loop = loop_of(node.target, node.args)
        if loop is not None:
            _replace(graph, node, loop)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def unroll(graph: fx.GraphModule) -> None:
    """Replace recurrent operators by all their steps, in place."""
    forms = {kind: lambda *args, loop=loop: run(loop(*args)) for kind, loop in LOOPS.items()}
    expand(graph, {kind: lambda node: forms[node.target] for kind in LOOPS})


def _replace(graph: fx.GraphModule, node: fx.Node, loop: Loop) -> None:
    states = len(loop.state)
    users: list[fx.Node] = list(node.users)
    taken = sorted({user.args[1] for user in users if user.args[1] >= states})  # type: ignore[operator, type-var]
    body = _body(loop, [place - states for place in taken])  # type: ignore[operator]
    name = f"step_{sum(1 for _ in graph.children())}"
    graph.add_submodule(name, body)

    def backwards(source: fx.Node) -> fx.Node:
        """Along time, by whole steps: engines copy them at once."""
        if not loop.reverse:
            return source
        order = torch.arange(source.meta["val"].shape[0] - 1, -1, -1)
        constant = f"_order_{order.numel()}"
        if not hasattr(graph, constant):
            graph.register_buffer(constant, order)
        index = graph.graph.get_attr(constant)
        index.meta["val"] = order.to("meta")
        turned = graph.graph.call_function(_aten.index_select.default, (source, 0, index))
        turned.meta["val"] = source.meta["val"]
        return turned

    with graph.graph.inserting_before(node):
        steps = [backwards(x) for x in loop.steps]
        scan = graph.graph.call_function(
            torch.ops.higher_order.scan, (graph.graph.get_attr(name), loop.state, steps, tuple(loop.fixed))
        )
        scan.meta["val"] = tuple(node.meta["val"][place] for place in (*range(states), *taken))
        for user in users:
            place: Any = user.args[1]
            of_step = place >= states
            result = graph.graph.call_function(
                operator.getitem, (scan, states + taken.index(place) if of_step else place)
            )
            result.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(backwards(result) if of_step else result)
            graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def _body(loop: Loop, results: list[int]) -> fx.GraphModule:
    """One step: state, inputs of the step and what is fixed, to the new state and the results that are taken."""
    from torch.fx.experimental.proxy_tensor import make_fx

    states, steps = len(loop.state), len(loop.steps)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        state, given = list(tensors[:states]), list(tensors[states : states + steps])
        after, found = loop.step(state, given, list(tensors[states + steps :]))
        return (*after, *(found[place] for place in results))

    kinds = [n.meta["val"] for n in (*loop.state, *loop.steps, *loop.fixed)]
    shapes = [tuple(k.shape) for k in kinds]
    shapes[states : states + steps] = [s[1:] for s in shapes[states : states + steps]]
    examples = [torch.zeros(s, dtype=k.dtype) for s, k in zip(shapes, kinds, strict=True)]
    body = make_fx(flat, decomposition_table=decompositions())(*examples)
    simplify(body, examples)
    _give_each_once(body)
    return body


def _give_each_once(body: fx.GraphModule) -> None:
    """A value that is the new state and a result too becomes two values, as loops want it, in place."""
    output = next(node for node in body.graph.nodes if node.op == "output")
    given: list[fx.Node] = []
    for value in output.args[0]:
        if value in given:
            with body.graph.inserting_before(output):
                copied = body.graph.call_function(_aten.clone.default, (value,))
            copied.meta["val"] = value.meta["val"]
            value = copied
        given.append(value)
    output.args = (tuple(given),)
    body.recompile()
