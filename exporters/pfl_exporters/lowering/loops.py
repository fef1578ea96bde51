"""Recurrent operators as loops that toolchains know: PyTorch's ``scan``, with the step as a graph of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.closed_forms import decompositions
from pfl_mobile.programs.forms.recurrences import Loop, loop_of
from pfl_mobile.programs.simplify import copied, simplify
from pfl_mobile.programs.trace import TracedProgram

from .graphs import export_graph, export_traced

_aten = torch.ops.aten


def has_loops(graph: fx.GraphModule) -> bool:
    """Whether the graph has recurrent operators."""
    return any(loop_of(node.target, node.args) is not None for node in graph.graph.nodes)


def as_scans(
    graph: fx.GraphModule, *, prepare: Callable[[fx.GraphModule], None] | None = None, delegated: bool = False
) -> None:
    """Replace recurrent operators by scans, in place, without the results that nobody takes.

    Args:
        graph: each node's ``meta["val"]`` says shape and dtype (see `pfl_mobile.programs.simplify.annotate`).
        prepare: changes the graph of a step in place; what is then the same in every step moves before the loop.
        delegated: whether constants belong to the step, where delegates look for their weights, and a value may be
            both the new state and a result.
    """
    for node in list(graph.graph.nodes):
        loop = loop_of(node.target, node.args)
        if loop is not None:
            _replace(graph, node, loop, prepare, delegated)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def add_scan(
    graph: fx.GraphModule,
    body: fx.GraphModule,
    state: list[fx.Node],
    steps: list[fx.Node],
    fixed: list[fx.Node],
    values: tuple[Tensor, ...],
    prepare: Callable[[fx.GraphModule], None] | None,
    delegated: bool,
) -> fx.Node:
    """A scan, where the graph is told to insert.

    Args:
        graph: to add it to, in place.
        body: the step: state, inputs of the step and what is fixed, to the new state and the results.
        state: before the first step.
        steps: inputs with a first axis of steps.
        fixed: inputs that are the same in every step.
        values: what the scan gives, as ``meta["val"]``.
        prepare: see `as_scans`.
        delegated: see `as_scans`.
    """
    if delegated:
        fixed = _own_constants(graph, body, fixed)
    else:
        _give_each_once(body)
    if prepare is not None:
        prepare(body)
        fixed = _hoist(graph, body, fixed)
    name = f"step_{sum(1 for _ in graph.children())}"
    graph.add_submodule(name, body)
    scan = graph.graph.call_function(
        torch.ops.higher_order.scan, (graph.graph.get_attr(name), state, steps, tuple(fixed))
    )
    scan.meta["val"] = values
    return scan


def export_with_loops(program: TracedProgram) -> torch.export.ExportedProgram:
    """As :func:`export_traced`, with recurrent operators as scans, which toolchains know.

    Raises:
        ExportError: ``torch.export`` refuses the graph.
    """
    if not has_loops(program.graph):
        return export_traced(program)
    graph = copied(program.graph)
    as_scans(graph)
    return export_graph(program, graph)


def _replace(
    graph: fx.GraphModule,
    node: fx.Node,
    loop: Loop,
    prepare: Callable[[fx.GraphModule], None] | None,
    delegated: bool,
) -> None:
    states = len(loop.state)
    users: list[Any] = list(node.users)
    taken = sorted({user.args[1] for user in users if user.args[1] >= states})
    body = _body(loop, [place - states for place in taken])

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
        values = tuple(node.meta["val"][place] for place in (*range(states), *taken))
        scan = add_scan(graph, body, loop.state, steps, loop.fixed, values, prepare, delegated)
        for user in users:
            place = user.args[1]
            of_step = place >= states
            result = graph.graph.call_function(
                operator.getitem, (scan, states + taken.index(place) if of_step else place)
            )
            result.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(backwards(result) if of_step else result)
            graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def _fixed_places(body: fx.GraphModule, count: int) -> list[fx.Node]:
    """Placeholders of what is the same in every step."""
    places = [n for n in body.graph.nodes if n.op == "placeholder"]
    return places[len(places) - count :]


def _own_constants(graph: fx.GraphModule, body: fx.GraphModule, fixed: list[fx.Node]) -> list[fx.Node]:
    """Give the step its constants; what remains comes from outside."""
    left = []
    for place, source in zip(_fixed_places(body, len(fixed)), fixed, strict=True):
        if source.op != "get_attr":
            left.append(source)
            continue
        name = f"_own_{place.name}"
        body.register_buffer(name, getattr(graph, str(source.target)).detach())
        with body.graph.inserting_before(place):
            constant = body.graph.get_attr(name)
        constant.meta["val"] = place.meta["val"]
        place.replace_all_uses_with(constant)
        body.graph.erase_node(place)
    first = next(n for n in body.graph.nodes if n.op not in ("placeholder", "get_attr"))
    for node in [n for n in body.graph.nodes if n.op == "get_attr"]:
        first.prepend(node)
    return left


def _hoist(graph: fx.GraphModule, body: fx.GraphModule, fixed: list[fx.Node]) -> list[fx.Node]:
    """Compute before the loop what is the same in every step, in place; what the step then takes from outside."""
    outside: dict[fx.Node, fx.Node] = dict(zip(_fixed_places(body, len(fixed)), fixed, strict=True))
    last = [n for n in body.graph.nodes if n.op == "placeholder"][-1]
    for node in list(body.graph.nodes):
        sources = node.all_input_nodes
        if node.op != "call_function" or not sources or any(s not in outside for s in sources):
            continue
        moved = graph.graph.node_copy(node, outside.__getitem__)
        with body.graph.inserting_after(last):
            last = body.graph.placeholder(f"{node.name}_before")
        last.meta = dict(node.meta)
        outside[last] = moved
        node.replace_all_uses_with(last)
        body.graph.erase_node(node)
    for place in [place for place in outside if not place.users]:
        del outside[place]
        body.graph.erase_node(place)
    body.recompile()
    return list(outside.values())


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
    return body


def _give_each_once(body: fx.GraphModule) -> None:
    """A value that is the new state and a result too becomes two values, as ONNX wants it, in place."""
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
