"""The largest values of a program a few rows at a time, in a loop, so that they are never there whole.

Behind the last layer of a language model each value has a number for each word and each position: logits, what memories
mix into them, probabilities, their gradient. Operators that compute each row of their result from the same row of
their inputs (`pfl_mobile.programs.rowwise`) can do so for some rows after others. From the first of the largest values
to the last, a program becomes a loop over equal parts of its rows; what is summed over rows is added up from part to
part. That is exact, and a part's values stay in the processor's caches.

Weights of few bits are unpacked before the loop, once for all its parts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.blocks import peak
from pfl_mobile.programs.rowwise import SHAPED, sizes, sources
from pfl_mobile.programs.simplify import GraphWriter, copied, put_in_order, shape
from pfl_mobile.programs.trace import TracedProgram

from .graphs import constant_weight
from .loops import add_scan
from .names import TRACED_AS, traced_as

_aten = torch.ops.aten

#: Changes the graph of a loop's step in place.
Prepare = Callable[[fx.GraphModule], None] | None

#: Values of fewer bytes are computed at once.
LEAST_BYTES = 4 << 20
#: Most bytes of a value in a part, where there are as many parts.
MOST_BYTES = 4 << 20
#: Values of at least this share of the largest one's bytes are the large ones.
LARGE = 0.2
#: A loop is worth it that needs at most this share of the memory.
WORTH = 0.8


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.nbytes) if isinstance(value, Tensor) else 0


@dataclass
class _Region:
    """Operators that run on some rows after others.

    Attributes:
        nodes: in the order of the graph.
        parts: how many there are.
        axes: of nodes, and of inputs that are cut: along which axis.
        summed: nodes that are sums over rows.
    """

    nodes: list[fx.Node]
    parts: int
    axes: dict[fx.Node, int] = field(default_factory=dict)
    summed: set[fx.Node] = field(default_factory=set)

    def piece(self, node: fx.Node) -> list[int]:
        """Shape of a part of a node."""
        found = list(sizes(node))
        found[self.axes[node]] //= self.parts
        return found


def _between(graph: fx.GraphModule, large: set[fx.Node]) -> list[fx.Node]:
    """The operators on the ways from a large value to a large value, both included."""
    after: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node in large or (node.op == "call_function" and any(s in after for s in node.all_input_nodes)):
            after.add(node)
    before: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node in large or any(user in before for user in node.users):
            before.add(node)
    return [node for node in graph.graph.nodes if node in after and node in before]


def _cut(nodes: list[fx.Node], first: fx.Node, axis: int, parts: int) -> _Region | None:
    """The operators with the axis of each, starting from that of one of them; None where rows meet."""
    region, inside = _Region(nodes, parts), set(nodes)
    waiting: list[fx.Node] = []

    def give(node: fx.Node, along: int) -> bool:
        if node not in region.axes:
            size = sizes(node)[along]
            if size % parts or not size:
                return False
            region.axes[node] = along
            if node in inside:
                waiting.append(node)
        return region.axes[node] == along and node not in region.summed

    if not give(first, axis):
        return None
    while waiting:
        node = waiting.pop()
        found = sources(node, region.axes[node], parts)
        if found is None or not all(give(source, along) for source, along in found):
            return None
        for user in node.users:
            if user not in inside or user in region.axes or user in region.summed:
                continue
            along = _follows(user, node, region.axes[node], parts)
            if along is not None:
                if not give(user, along):
                    return None
            elif _sums(user, node, region.axes[node]):
                region.summed.add(user)
            else:
                return None
    return region if _whole(region, inside) else None


def _follows(user: fx.Node, node: fx.Node, axis: int, parts: int) -> int | None:
    """The axis of a result along which it is cut as an input is."""
    for along, size in enumerate(sizes(user)):
        if size and size % parts == 0:
            found = sources(user, along, parts)
            if found is not None and (node, axis) in found:
                return along
    return None


def _sums(user: fx.Node, node: fx.Node, axis: int) -> bool:
    """Whether a result is the sum of what it is for the parts of an input."""
    if user.target is _aten.sum.dim_IntList:
        given = len(shape(node))
        dims = user.args[1] or range(given)
        return axis in {d % given for d in dims}
    if user.target is _aten.mm.default:
        left, right = user.args
        return left is not right and axis == (1 if node is left else 0)
    return False


def _summands(node: fx.Node) -> list[tuple[fx.Node, int | None]]:
    """Inputs of a sum over rows, with the axis that those are cut along which have to be."""
    return (
        [(node.args[0], 1), (node.args[1], 0)] if node.target is _aten.mm.default else [(node.args[0], None)]
    )


def _whole(region: _Region, inside: set[fx.Node]) -> bool:
    """Whether all is consistent: each node has its axis, and nothing reads whole what is there in parts."""
    for node in region.nodes:
        if node in region.summed:
            cut = _summands(node)
            if any(user in inside for user in node.users):
                return False
            for source, along in cut:
                if source in inside and region.axes.get(source) is None:
                    return False
                if along is None:
                    continue
                if sizes(source)[along] % region.parts or region.axes.setdefault(source, along) != along:
                    return False
            continue
        if node not in region.axes:
            return False
        taken = {source for source, _ in sources(node, region.axes[node], region.parts) or []}
        if any(source in inside and source not in taken for source in node.all_input_nodes):
            return False
    return True


def _operators(graph: fx.GraphModule) -> list[fx.Node]:
    """What is computed of inputs: all but constants in another form, which no part of the rows makes smaller."""
    return [node for node in graph.graph.nodes if node.op == "call_function" and not _is_weight(node)]


def _is_weight(node: fx.Node) -> bool:
    """Whether a value is a weight as it is stored, or its transpose."""
    return constant_weight(node) or (node.target is _aten.permute.default and _is_weight(node.args[0]))


def _read_once(region: _Region) -> None:
    """Have the operators read each weight of few bits from one node, in place, where they read it from several."""
    known: dict[tuple[Any, ...], fx.Node] = {}

    def content(node: fx.Node) -> tuple[Any, ...]:
        if not _is_weight(node):
            return (node,)
        of = [content(each) if isinstance(each, fx.Node) else str(each) for each in node.args]
        return (node.op, node.target, *of)

    for node in region.nodes:
        for source in node.all_input_nodes:
            if _is_weight(source):
                node.replace_input_with(source, known.setdefault(content(source), source))


def _begun_at_once(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place: its backward pass, which begins with 1 in the shape of the loss, does not wait for
    the loss itself."""
    call = GraphWriter(graph)
    for node in _operators(graph):
        if node.target is _aten.full_like.default and node.meta["val"].numel() == 1:
            value = node.meta["val"]
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(
                    call(_aten.full.default, list(value.shape), node.args[1], dtype=value.dtype)
                )
            graph.graph.erase_node(node)
    return graph


def _regions(graph: fx.GraphModule) -> Iterator[_Region]:
    """What can run in parts, with more and more of them, as far as that gets."""
    operators = _operators(graph)
    most = max(map(_bytes, operators), default=0)
    large = {node for node in operators if _bytes(node) >= max(LARGE * most, LEAST_BYTES / 2)}
    ends = {user for node in large for user in node.users if user.op == "call_function"}
    ends |= {user for node in ends for user in node.users if user.target is operator.getitem}
    nodes = _between(graph, large | ends)
    if len(nodes) > len(operators) / 2:
        return  # nearly all: that is a smaller batch, which who exports can choose
    first = next(node for node in operators if _bytes(node) == most)
    for axis, size in enumerate(shape(first)):
        found = False
        for parts in range(2, size + 1):
            if size % parts == 0 and (region := _cut(nodes, first, axis, parts)) is not None:
                found = True
                yield region
                if most / parts <= MOST_BYTES:
                    return
        if found:
            return


class _Body:
    """The step of the loop: one part of the rows."""

    def __init__(self, region: _Region) -> None:
        self.region = region
        self.graph = fx.Graph()
        self.cut: dict[fx.Node, fx.Node] = {}
        self.fixed: dict[fx.Node, fx.Node] = {}
        self.known: dict[fx.Node, fx.Node] = {}
        inside = set(region.nodes)
        whole: list[fx.Node] = []
        for node in region.nodes:
            taken = {source for source, _ in _taken(region, node)}
            for source in node.all_input_nodes:
                if source in taken and source not in inside:
                    self.cut.setdefault(source, source)
                elif source not in taken:
                    whole.append(source)
        self.state = {
            node: self._given(f"sum_{n}", list(shape(node)), node) for n, node in enumerate(region.summed)
        }
        for n, node in enumerate(self.cut):
            self.cut[node] = self._given(f"part_{n}", region.piece(node), node)
        for n, node in enumerate(dict.fromkeys(whole)):
            self.fixed[node] = self._given(f"whole_{n}", list(shape(node)), node)

    def _given(self, name: str, size: list[int], like: fx.Node) -> fx.Node:
        place = self.graph.placeholder(name)
        place.meta["val"] = like.meta["val"].new_empty(size, device="meta")
        return place

    def write(self, results: list[fx.Node]) -> fx.GraphModule:
        """The graph: sums so far, parts, and what is whole, to the new sums and the results' parts."""
        for node in self.region.nodes:
            cut = {source for source, _ in _taken(self.region, node)}

            def own(source: fx.Node, cut: set[fx.Node] = cut) -> fx.Node:
                if source not in cut:
                    return self.fixed[source]
                return self.known[source] if source in self.known else self.cut[source]

            made = self.graph.node_copy(node, own)
            made.meta[TRACED_AS] = traced_as(node)
            if node in self.region.summed:
                made.meta["val"] = node.meta["val"]
                made = self.graph.call_function(_aten.add.Tensor, (self.state[node], made))
                made.meta["val"] = node.meta["val"]
            else:
                self._shrink(made, node)
            self.known[node] = made
        sums = [self.known[node] for node in self.state]
        self.graph.output((*sums, *(self.known[node] for node in results)))
        return fx.GraphModule(torch.nn.Module(), self.graph)

    def _shrink(self, made: fx.Node, node: fx.Node) -> None:
        """Say the shape of a part, and see to it that the operator gives it."""
        piece = self.region.piece(node)
        place = SHAPED.get(node.target)
        if place is not None:
            made.args = (*made.args[:place], piece, *made.args[place + 1 :])
        args, kwargs = fx.node.map_arg((made.args, dict(made.kwargs)), lambda each: each.meta["val"])
        if node.target is _aten.full.default:
            kwargs["device"] = "meta"
        made.meta["val"] = node.target(*args, **kwargs)
        if list(sizes(made)) != piece:
            raise AssertionError(f"{node} of {sizes(made)} in a part is not {piece}")


def _taken(region: _Region, node: fx.Node) -> list[tuple[fx.Node, int]]:
    """The inputs of an operator that it reads in parts."""
    if node in region.summed:
        return [(source, region.axes[source]) for source, _ in _summands(node)]
    return sources(node, region.axes[node], region.parts) or []


def _written(program: TracedProgram, region: _Region, prepare: Prepare, delegated: bool) -> TracedProgram:
    """The program with the region as a loop, in place."""
    module = program.graph
    inside = set(region.nodes)
    _read_once(region)
    results = [
        n for n in region.nodes if n not in region.summed and any(user not in inside for user in n.users)
    ]
    body = _Body(region)
    step = body.write(results)
    call = GraphWriter(module)

    def parted(node: fx.Node) -> fx.Node:
        """[parts, ...piece] of an input."""
        axis, size = region.axes[node], list(shape(node))
        if math.prod(size[:axis]) == 1:
            return call(_aten.reshape.default, node, [region.parts, *region.piece(node)])
        apart = call(_aten.reshape.default, node, [*size[:axis], region.parts, *region.piece(node)[axis:]])
        return call(_aten.permute.default, apart, [axis, *(d for d in range(len(size) + 1) if d != axis)])

    def joined(node: fx.Node, stacked: fx.Node) -> fx.Node:
        axis, size = region.axes[node], list(shape(node))
        if math.prod(size[:axis]) != 1:
            order = [*range(1, axis + 1), 0, *range(axis + 1, len(size) + 1)]
            stacked = call(_aten.permute.default, stacked, order)
        return call(_aten.reshape.default, stacked, size)

    with module.graph.inserting_before(region.nodes[0]):
        state = [call(_aten.full.default, list(shape(n)), 0.0, dtype=n.meta["val"].dtype) for n in body.state]
        steps = [parted(node) for node in body.cut]
        values = [*(n.meta["val"] for n in body.state)]
        for node in results:
            values.append(node.meta["val"].new_empty([region.parts, *region.piece(node)], device="meta"))
        loop = add_scan(module, step, state, steps, list(body.fixed), tuple(values), prepare, delegated)
        for number, node in enumerate((*body.state, *results)):
            item = module.graph.call_function(operator.getitem, (loop, number))
            item.meta["val"] = values[number]
            made = item if node in body.state else joined(node, item)
            node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in inside)
    for node in reversed(region.nodes):
        module.graph.erase_node(node)
    put_in_order(module)
    module.graph.eliminate_dead_code()  # weights that were read several times
    module.graph.lint()
    module.recompile()
    return replace(program, graph=module)


def in_rows(program: TracedProgram, *, prepare: Prepare = None, delegated: bool = False) -> TracedProgram:
    """The program with its largest values in parts of their rows; itself where that does not save enough.

    Args:
        program: as it was traced, which stays as it is.
        prepare: see `pfl_exporters.lowering.loops.as_scans`.
        delegated: see there too.
    """
    if max(map(_bytes, _operators(program.graph)), default=0) < LEAST_BYTES:
        return program
    own = replace(program, graph=_begun_at_once(copied(program.graph)))
    best = None
    for region in _regions(own.graph):
        best = region
    if best is None:
        return program
    made = _written(own, best, prepare, delegated)
    return made if _needs(made) <= WORTH * peak(program) else program


def _needs(program: TracedProgram) -> int:
    """Bytes that the values of a program take at most, with those inside its loops."""
    steps = [step for _, step in program.graph.named_children() if isinstance(step, fx.GraphModule)]
    return peak(program) + max((peak(replace(program, graph=step)) for step in steps), default=0)
