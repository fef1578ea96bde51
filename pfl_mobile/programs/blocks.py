"""Programs cut into parts, so that blocks which repeat are traced, lowered and stored once.

The blocks of a transformer are the same operators in the same order, with other weights. That shows in a traced graph
as a sequence of nodes with a period, forward and backward. Each stretch of the graph becomes a part, a program of its
own whose weights are inputs; stretches that are equal but for their weights share one part. What runs the parts is a
schedule (`pfl_mobile.engines.schedule`). No layer is looked up by name, so any model with repeating blocks gains.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines.schedule import ALIGNMENT, ConstantEntry, Course, PartCall, Schedule
from pfl_mobile.errors import UnknownNameError, near
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.slices import in_slices
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE, DEQUANTIZE_PACKED, for_parts

_aten = torch.ops.aten

#: Operators whose result lies where their argument does.
_ALIASES = {operator.getitem, _aten.reshape.default}

#: Blocks of fewer nodes are not worth a call of their own.
LEAST_NODES = 12
#: Larger constants are inputs of their part also where it is called once: they stay in the mapped file.
LARGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Staged:
    """Programs as parts and calls.

    Attributes:
        parts: by name; each is lowered as a program of its own.
        constants: the tensors that calls give to parts, by name.
        courses: the calls of each program.
        repeats: for each program, how often the blocks of each of its runs of equal blocks repeat.
    """

    parts: dict[str, TracedProgram]
    constants: dict[str, Tensor]
    courses: dict[str, Course]
    repeats: dict[str, tuple[int, ...]]

    def signatures(self) -> tuple[ProgramSpec, ...]:
        """Of the parts."""
        return tuple(
            ProgramSpec(
                name=name,
                inputs=tuple(_spec(key, value) for key, value in part.inputs.items()),
                outputs=tuple(
                    _spec(key, node.meta["val"])
                    for key, node in zip(part.outputs, _results(part.graph), strict=True)
                ),
            )
            for name, part in self.parts.items()
        )

    def schedule(self) -> tuple[Schedule, Iterator[memoryview]]:
        """The schedule, and the content of the file of constants piece by piece."""
        whole = _wholes(self.constants)
        starts: dict[str, int] = {}
        offset = 0
        for name, (base, _) in whole.items():
            if name == base:
                offset += -offset % ALIGNMENT
                starts[name] = offset
                offset += _size(self.constants[name])
        entries = {
            name: ConstantEntry(
                shape=tuple(tensor.shape),
                dtype=_dtype(tensor),
                offset=starts[whole[name][0]] + whole[name][1],
            )
            for name, tensor in self.constants.items()
        }
        schedule = Schedule(parts=self.signatures(), constants=entries, programs=self.courses)
        return schedule, _pieces([self.constants[name] for name in starts])


def _size(tensor: Tensor) -> int:
    return int(tensor.nbytes)


def _wholes(constants: Mapping[str, Tensor]) -> dict[str, tuple[str, int]]:
    """For each constant, the one that it is a stretch of in memory, and where in it; most are only of themselves."""
    found: dict[str, tuple[str, int]] = {}
    bases: list[tuple[int, int, str]] = []
    for name, tensor in sorted(constants.items(), key=lambda item: -_size(item[1])):
        start = tensor.data_ptr()
        base = next((b for b in bases if b[0] <= start and start + _size(tensor) <= b[1]), None)
        if tensor.is_contiguous() and _size(tensor):
            if base is not None and (start - base[0]) % ALIGNMENT == 0:
                found[name] = (base[2], start - base[0])
                continue
            bases.append((start, start + _size(tensor), name))
        found[name] = (name, 0)
    return {name: found[name] for name in constants}


def _pieces(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """The bytes of tensors, each from a multiple of ``ALIGNMENT`` on."""
    offset = 0
    for tensor in tensors:
        yield memoryview(bytes(-offset % ALIGNMENT))
        offset += -offset % ALIGNMENT
        yield memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        offset += _size(tensor)


def _dtype(tensor: Tensor) -> Any:
    return str(tensor.dtype).removeprefix("torch.")


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_dtype(tensor))


def _results(graph: fx.GraphModule) -> Sequence[fx.Node]:
    return next(n for n in graph.graph.nodes if n.op == "output").args[0]  # type: ignore[no-any-return]


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    values = value if isinstance(value, tuple | list) else [value]
    return sum([_size(v) for v in values if isinstance(v, Tensor)])


def peak(part: TracedProgram) -> int:
    """Bytes that the values inside a part take at most at once, without its inputs and constants."""
    last: dict[fx.Node, int] = {}
    nodes = list(part.graph.graph.nodes)

    def holder(node: fx.Node) -> fx.Node:
        """Whose memory a node's value lies in."""
        while node.target in _ALIASES:
            node = node.all_input_nodes[0]
        return node

    for number, node in enumerate(nodes):
        last |= {holder(source): number for source in (*node.all_input_nodes, node)}
    ends: dict[int, list[fx.Node]] = {}
    for node, number in last.items():
        ends.setdefault(number, []).append(node)
    alive = most = 0
    for number, node in enumerate(nodes):
        own = node.op == "call_function" and node.target not in _ALIASES
        alive += _bytes(node) if own else 0
        most = max(most, alive)
        alive -= sum(_bytes(n) for n in ends.get(number, []) if n.op == "call_function")
    return most


# -- where blocks repeat ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Equal stretches one after another: ``count`` of ``period`` nodes from node ``start``."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        """The node after the last."""
        return self.start + self.period * self.count

    @property
    def cuts(self) -> list[int]:
        """Where each begins, and the end."""
        return [self.start + self.period * n for n in range(self.count + 1)]


def _label(node: fx.Node) -> str:
    """What a node computes, but for which tensors it reads."""

    def plain(value: Any) -> Any:
        return "*" if isinstance(value, fx.Node) else value

    value = node.meta["val"]
    values = value if isinstance(value, tuple | list) else [value]
    made = [(v.dtype, tuple(v.shape)) for v in values if isinstance(v, Tensor)]
    read = [
        tuple(s.meta["val"].shape) if isinstance(s.meta.get("val"), Tensor) else ()
        for s in node.all_input_nodes
    ]
    return repr((str(node.target), made, read, fx.node.map_aggregate((node.args, dict(node.kwargs)), plain)))


def longest_run(labels: np.ndarray[Any, Any], least: int = LEAST_NODES) -> Run | None:
    """The run of equal stretches that covers most of a sequence; of those that cover the same, the shortest period.

    Args:
        labels: one number for each node, [n].
        least: shortest period.
    """
    best: Run | None = None
    for period in range(least, len(labels) // 2 + 1):
        if best is not None and len(labels) <= best.end - best.start:
            break
        same = labels[:-period] == labels[period:]
        ends = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(np.int8), [0]))))
        if not len(ends):
            continue
        lengths = ends[1::2] - ends[::2]
        longest = int(lengths.argmax())
        count = int(lengths[longest]) // period + 1
        covered = count * period
        if count > 1 and (best is None or covered > best.period * best.count * 1.02):
            # how far the equality goes beyond whole periods is where the cuts may be moved
            best = Run(int(ends[2 * longest]), period, count)
    return best


def runs(nodes: Sequence[fx.Node]) -> list[Run]:
    """The runs of repeating blocks among the operators of a graph, in order, cut where the fewest bytes pass."""
    known: dict[str, int] = {}
    labels = np.array([known.setdefault(_label(node), len(known)) for node in nodes])
    found: list[Run] = []

    def search(start: int, end: int) -> None:
        best = longest_run(labels[start:end])
        if best is None:
            return
        run = _well_cut(nodes, labels, Run(best.start + start, best.period, best.count), end)
        found.append(run)
        search(start, run.start)
        search(run.end, end)

    search(0, len(nodes))
    return sorted(found, key=lambda run: run.start)


def _well_cut(nodes: Sequence[fx.Node], labels: np.ndarray[Any, Any], run: Run, end: int) -> Run:
    """The run with its cuts where the fewest bytes go from one block to the next, and none between a result of
    several tensors and who takes it apart."""
    last = run.end
    while last < end and labels[last] == labels[last - run.period]:
        last += 1
    place = {node: number for number, node in enumerate(nodes)}
    crossing = np.zeros(last - run.start + 1)
    for number in range(run.start, last):
        node = nodes[number]
        readers = [place[user] for user in node.users if place.get(user, last) < last]
        if readers:
            size = float(_bytes(node)) if isinstance(node.meta["val"], Tensor) else np.inf
            crossing[number + 1 - run.start : max(readers) + 1 - run.start] += size
    offsets = range(min(run.period, last - run.start - run.period * (run.count - 1)))
    # the second block stands for all: what passes into the first comes from elsewhere
    best = min(offsets, key=lambda o: (crossing[o + run.period], o))
    count = (last - run.start - best) // run.period
    return Run(run.start + best, run.period, count)


# -- what is computed again ----------------------------------------------------------------------------------------


class Recompute(Enum):
    """What a backward part computes again in place of keeping it from the forward pass.

    ``NOTHING``: all is kept that the backward pass reads. ``CHEAP``: elementwise operators, norms, views and the like
    are computed again, results of products kept. ``ATTENTION``: also products of two results, as attention has them,
    whose size grows with the square of the length; what weights are multiplied with is kept (Korthikanti et al. 2022,
    arXiv:2205.05198). ``ALL``: only what passes from block to block is kept (Chen et al. 2016, arXiv:1604.06174, with
    the blocks for segments), for the price of a second forward pass.
    """

    NOTHING = "nothing"
    CHEAP = "cheap"
    ATTENTION = "attention"
    ALL = "all"

    @classmethod
    def of(cls, name: str) -> Recompute:
        """By its name.

        Raises:
            UnknownNameError: there is no such choice.
        """
        names = [choice.value for choice in cls]
        if name not in names:
            raise UnknownNameError(f"the backward pass cannot compute {name!r} again", mend=near(name, names))
        return cls(name)


#: Operators that cost more than reading what they made.
_COSTLY = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.linear.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
}


def _is_costly(node: fx.Node) -> bool:
    if node.target in (DEQUANTIZE, DEQUANTIZE_PACKED):
        return False
    own = getattr(node.target, "namespace", "aten") != "aten"  # recurrent layers, as one operator each
    return node.target in _COSTLY or own


def _is_kept(node: fx.Node, how: Recompute) -> bool:
    """Whether the result of an operator is not to be computed again, but to be kept where it is needed."""
    if how is Recompute.ALL or not _is_costly(node):
        return False
    return how is not Recompute.ATTENTION or any(map(_is_weight, node.all_input_nodes))


def _is_weight(node: fx.Node) -> bool:
    """Whether a tensor is what the program has or is given, in whatever form, and nothing computed of several."""
    while node.op == "call_function" and node.all_input_nodes:
        if node.target not in (DEQUANTIZE, DEQUANTIZE_PACKED) and len(node.all_input_nodes) > 1:
            return False
        node = node.all_input_nodes[0]
    return node.op in ("get_attr", "placeholder")


def _kept(needed: Sequence[fx.Node], given: Mapping[fx.Node, bool]) -> set[fx.Node]:
    """The values of fewest bytes from which all that is needed can be computed: a minimal cut; of several, the nearest.

    Args:
        needed: by the backward pass.
        given: the values that may be read, and whether each has to be kept to be had (else it is computed again).
    """
    import networkx  # type: ignore[import-untyped]

    flow = networkx.DiGraph()
    order = {node: number for number, node in enumerate(given)}
    stack, seen = list(needed), set(needed)
    while stack:
        node = stack.pop()
        number = order[node]
        whole = isinstance(node.meta["val"], Tensor)
        # without a capacity an edge is never cut
        flow.add_edge((number, 0), (number, 1), **({"capacity": _bytes(node)} if whole else {}))
        if given[node]:
            flow.add_edge("kept", (number, 0))
            continue
        for source in node.all_input_nodes:
            if source not in order:
                continue  # inputs and constants are there
            flow.add_edge((order[source], 1), (number, 0))
            if source not in seen:
                seen.add(source)
                stack.append(source)
    for node in needed:
        flow.add_edge((order[node], 1), "needed")
    if "kept" not in flow:
        return set()
    _, (_, near) = networkx.minimum_cut(flow, "kept", "needed")
    return {node for node in seen if (order[node], 0) not in near and (order[node], 1) in near}


def _computed_again(
    graph: fx.Graph, stretches: Sequence[list[fx.Node]], how: Recompute
) -> list[list[fx.Node]]:
    """The stretches, in which those of the backward pass compute anew what they would read from the forward pass.

    Args:
        graph: to change, in place.
        stretches: its operators in order.
        how: what is computed again.

    Returns:
        The stretches with their new operators.
    """
    loss = next(n for n in graph.nodes if n.op == "output").args[0][0]
    forward: set[fx.Node] = set()
    stack = [loss]
    while stack:
        node = stack.pop()
        if node not in forward:
            forward.add(node)
            stack.extend(node.all_input_nodes)
    where = {node: number for number, nodes in enumerate(stretches) for node in nodes}
    # what one stretch of the forward pass gives another is there anyway while the blocks go on
    passed = {
        n
        for n in where
        if n in forward and any(u in forward and where[u] != where[n] for u in n.users if u in where)
    }
    given = {n: n in passed or _is_kept(n, how) for n in where if n in forward}
    return [
        nodes if any(n in forward for n in nodes) else _with_own(graph, nodes, given) for nodes in stretches
    ]


def _with_own(graph: fx.Graph, nodes: list[fx.Node], given: Mapping[fx.Node, bool]) -> list[fx.Node]:
    """Operators of the backward pass, with copies of those of the forward pass that they need, each before its first
    reader."""
    needed = list(
        dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source in given)
    )
    kept = _kept(needed, given) if needed else set()
    copies: dict[fx.Node, fx.Node] = {}
    found: list[fx.Node] = []

    def own(node: fx.Node) -> fx.Node:
        if node not in given or node in kept:
            return node
        if node not in copies:
            for source in node.all_input_nodes:
                own(source)
            copies[node] = graph.node_copy(node, own)
            found.append(copies[node])
        return copies[node]

    for node in nodes:
        with graph.inserting_before(node):
            for source in node.all_input_nodes:
                own(source)
        node.args = fx.node.map_arg(node.args, own)
        node.kwargs = fx.node.map_arg(node.kwargs, own)
        found.append(node)
    return found


# -- cutting -----------------------------------------------------------------------------------------------------------


@dataclass
class _Stretch:
    """Consecutive operators of a program, and what they read from elsewhere, in the order of first use."""

    program: str
    nodes: list[fx.Node]
    reads: list[fx.Node] = field(default_factory=list)
    inside: dict[fx.Node, int] = field(default_factory=dict)
    form: str = ""


def _formed(stretch: _Stretch) -> _Stretch:
    """Note what the stretch reads, and its form: equal for stretches that are one program."""
    inside = stretch.inside = {node: number for number, node in enumerate(stretch.nodes)}
    slots: dict[fx.Node, int] = {}
    lines: list[str] = []

    def named(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value in inside:
            return f"%{inside[value]}"
        slot = slots.setdefault(value, len(slots))
        seen = value.meta["val"]
        return f"#{slot}:{seen.dtype}{list(seen.shape)}"

    for node in stretch.nodes:
        lines.append(repr((str(node.target), fx.node.map_aggregate((node.args, dict(node.kwargs)), named))))
    stretch.reads = list(slots)
    stretch.form = "\n".join(lines)
    return stretch


def _content(graph: fx.GraphModule, node: fx.Node) -> bytes:
    tensor = getattr(graph, node.target).detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(tensor.numpy().data).digest()


@dataclass(frozen=True)
class Cuttable:
    """Programs as they are cut, whatever is computed again.

    Attributes:
        programs: with large losses in slices, and weights of few bits as constants that parts can be given.
        digests: of the content of their constants, by place in memory; filled while they are cut.
    """

    programs: dict[str, TracedProgram]
    digests: dict[tuple[Any, ...], bytes] = field(default_factory=dict)


def prepare(programs: Mapping[str, TracedProgram]) -> Cuttable:
    """Do once what `stage` needs for each choice of what is computed again.

    Args:
        programs: traced programs, which stay as they are.
    """
    found = {}
    for name, program in programs.items():
        sliced = in_slices(program)
        graph = copied(sliced.graph)
        for_parts(graph)
        found[name] = replace(sliced, graph=graph)
    return Cuttable(found)


def stage(prepared: Cuttable, again: Recompute = Recompute.NOTHING) -> Staged:
    """Cut programs into parts.

    Args:
        prepared: the programs, which stay as they are.
        again: what the backward pass computes again.
    """
    programs = {
        name: replace(program, graph=copied(program.graph)) for name, program in prepared.programs.items()
    }
    graphs = {name: program.graph for name, program in programs.items()}
    stretches: dict[str, list[_Stretch]] = {}
    repeats: dict[str, tuple[int, ...]] = {}
    for name, graph in graphs.items():
        nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
        found = runs(nodes)
        repeats[name] = tuple(run.count for run in found)
        cuts = sorted({0, len(nodes), *(cut for run in found for cut in run.cuts)})
        pieces = [nodes[a:b] for a, b in pairwise(cuts)]
        if name == "gradients" and again is not Recompute.NOTHING:
            pieces = _computed_again(graph.graph, pieces, again)
        stretches[name] = [_formed(_Stretch(name, piece)) for piece in pieces]
    alike: dict[str, list[_Stretch]] = {}
    for each in (s for of in stretches.values() for s in of):
        alike.setdefault(each.form, []).append(each)
    constants = _Constants(graphs, prepared.digests)
    parts: dict[str, TracedProgram] = {}
    made: dict[str, _Part] = {}
    for form, group in alike.items():
        made[form] = part = _part(f"part_{len(parts) + 1}", group, graphs, constants)
        parts[part.program.name] = part.program
    courses = {name: _course(programs[name], stretches[name], made, constants) for name in programs}
    return Staged(parts, constants.tensors, courses, repeats)


class _Constants:
    """The constants that calls give to parts, equal ones once, whatever program reads them."""

    def __init__(self, graphs: Mapping[str, fx.GraphModule], digests: dict[tuple[Any, ...], bytes]) -> None:
        self._graphs = graphs
        self._digests = digests
        self._names: dict[tuple[Any, ...], str] = {}
        self.tensors: dict[str, Tensor] = {}

    def tensor(self, program: str, node: fx.Node) -> Tensor:
        found = getattr(self._graphs[program], str(node.target))
        assert isinstance(found, Tensor)
        return found

    def digest(self, program: str, node: fx.Node) -> tuple[Any, ...]:
        """What tells constants apart: their content and form."""
        tensor = self.tensor(program, node)
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if place not in self._digests or not tensor.data_ptr():
            self._digests[place] = _content(self._graphs[program], node)
        return (tuple(tensor.shape), tensor.dtype, self._digests[place])

    def baked(self, slot: int, group: Sequence[_Stretch]) -> bool:
        """Whether what stretches of one form read there is one small constant, which can be in the part itself."""
        nodes = [stretch.reads[slot] for stretch in group]
        if any(node.op != "get_attr" or _bytes(node) > LARGE_BYTES for node in nodes):
            return False
        return len({self.digest(s.program, n) for s, n in zip(group, nodes, strict=True)}) == 1

    def name(self, program: str, node: fx.Node) -> str:
        """The name of a constant that a call gives to a part."""
        key = self.digest(program, node)
        if key not in self._names:
            tensor = self.tensor(program, node)
            self._names[key] = f"c{len(self._names)}"
            self.tensors[self._names[key]] = tensor.to(_CARRIED.get(tensor.dtype, tensor.dtype))
        return self._names[key]


#: How tensors go from part to part that some runtimes for phones cannot be given: as the same numbers.
_CARRIED = {torch.bool: torch.uint8, torch.int16: torch.int32}


def _converted(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The node as another type, or the node itself where it is of that type."""
    if node.meta["val"].dtype == dtype:
        return node
    found = graph.call_function(_aten._to_copy.default, (node,), {"dtype": dtype})
    found.meta["val"] = node.meta["val"].to(dtype)
    return found


@dataclass(frozen=True)
class _Part:
    """A part, and which of the things that a stretch reads, and of the values it makes, are its inputs and outputs."""

    program: TracedProgram
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _part(
    name: str, group: Sequence[_Stretch], graphs: Mapping[str, fx.GraphModule], constants: _Constants
) -> _Part:
    """One part for stretches of the same form."""
    first = group[0]
    outputs = sorted(
        {
            number
            for stretch in group
            for number, node in enumerate(stretch.nodes)
            if any(user not in stretch.inside for user in node.users)
        }
    )
    root = graphs[first.program]
    graph, known = fx.Graph(), {}
    kept = [slot for slot in range(len(first.reads)) if not constants.baked(slot, group)]
    examples: dict[str, Tensor] = {}
    for slot in kept:
        node = first.reads[slot]
        value = node.meta["val"]
        # what the program itself is given comes as it is
        given = any(stretch.reads[slot].op == "placeholder" for stretch in group)
        carried = value.dtype if given else _CARRIED.get(value.dtype, value.dtype)
        place = graph.placeholder(f"x{slot}")
        place.meta["val"] = value.to(carried)
        known[node] = _converted(graph, place, value.dtype)
        example = constants.tensor(first.program, node) if node.op == "get_attr" else torch.zeros(value.shape)
        examples[f"x{slot}"] = example.to(carried)
    tensors: dict[str, Any] = {}
    for node in first.reads:
        if node not in known:
            tensors[str(node.target)] = getattr(root, str(node.target))
            known[node] = graph.get_attr(str(node.target))
            known[node].meta["val"] = node.meta["val"]
    for node in first.nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    results = [known[first.nodes[number]] for number in outputs]
    kinds = [node.meta["val"].dtype for node in results]
    graph.output(
        tuple(_converted(graph, n, _CARRIED.get(kind, kind)) for n, kind in zip(results, kinds, strict=True))
    )
    module = fx.GraphModule(tensors, graph)
    program = TracedProgram(name, module, examples, tuple(f"y{n}" for n in range(len(outputs))), ())
    return _Part(program, tuple(kept), tuple(outputs))


def _course(
    program: TracedProgram, stretches: Sequence[_Stretch], made: Mapping[str, _Part], constants: _Constants
) -> Course:
    """The calls of a program."""
    inputs = [n for n in program.graph.graph.nodes if n.op == "placeholder"]
    known = {node: f"input:{name}" for node, name in zip(inputs, program.inputs, strict=True)}
    calls: list[PartCall] = []
    count = 0

    def reference(node: fx.Node) -> str:
        if node.op == "get_attr":
            return f"constant:{constants.name(program.name, node)}"
        return known[node]

    for stretch in stretches:
        part = made[stretch.form]
        numbers = tuple(range(count, count + len(part.outputs)))
        count += len(part.outputs)
        read = tuple(reference(stretch.reads[slot]) for slot in part.inputs)
        known |= {stretch.nodes[place]: f"value:{n}" for place, n in zip(part.outputs, numbers, strict=True)}
        calls.append(PartCall(part=part.program.name, inputs=read, outputs=numbers))
    return Course(calls=tuple(calls), outputs=tuple(reference(node) for node in _results(program.graph)))
