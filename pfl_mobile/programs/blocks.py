"""Programs cut into parts, so that blocks which repeat are traced, lowered and stored once.

The blocks of a transformer are the same operators in the same order, with other weights. That shows in a traced graph
as a sequence of nodes with a period, forward and backward. Each stretch of the graph becomes a part, a program of its
own whose weights are inputs; stretches that are equal but for their weights share one part. What runs the parts is a
schedule (`pfl_mobile.engines.schedule`). No layer is looked up by name, so any model with repeating blocks gains.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines.schedule import ALIGNMENT, PartCall, ConstantEntry, Course, Schedule
from pfl_mobile.programs.trace import TracedProgram

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

    def schedule(self) -> tuple[Schedule, Iterator[bytes]]:
        """The schedule, and the content of the file of constants piece by piece."""
        entries: dict[str, ConstantEntry] = {}
        offset = 0
        for name, tensor in self.constants.items():
            offset += -offset % ALIGNMENT
            entries[name] = ConstantEntry(shape=tuple(tensor.shape), dtype=_dtype(tensor), offset=offset)
            offset += tensor.numel() * tensor.element_size()
        specs = tuple(
            ProgramSpec(
                name=name,
                inputs=tuple(_spec(key, value) for key, value in part.inputs.items()),
                outputs=tuple(
                    _spec(key, node.meta["val"]) for key, node in zip(part.outputs, _results(part.graph), strict=True)
                ),
            )
            for name, part in self.parts.items()
        )
        schedule = Schedule(parts=specs, constants=entries, programs=self.courses)
        return schedule, self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        offset = 0
        for tensor in self.constants.values():
            yield bytes(-offset % ALIGNMENT)
            offset += -offset % ALIGNMENT
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            yield memoryview(data)  # type: ignore[misc]  # bytes-like
            offset += len(data)


def _dtype(tensor: Tensor) -> Any:
    return str(tensor.dtype).removeprefix("torch.")


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_dtype(tensor))


def _results(graph: fx.GraphModule) -> Sequence[fx.Node]:
    return next(n for n in graph.graph.nodes if n.op == "output").args[0]  # type: ignore[no-any-return]


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    values = value if isinstance(value, tuple | list) else [value]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


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
    read = [tuple(s.meta["val"].shape) if isinstance(s.meta.get("val"), Tensor) else () for s in node.all_input_nodes]
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


def stage(programs: Mapping[str, TracedProgram]) -> Staged:
    """Cut programs into parts.

    Args:
        programs: traced programs.
    """
    graphs = {name: program.graph for name, program in programs.items()}
    stretches: dict[str, list[_Stretch]] = {}
    repeats: dict[str, tuple[int, ...]] = {}
    for name, graph in graphs.items():
        nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
        found = runs(nodes)
        repeats[name] = tuple(run.count for run in found)
        cuts = sorted({0, len(nodes), *(cut for run in found for cut in run.cuts)})
        stretches[name] = [_formed(_Stretch(name, nodes[a:b])) for a, b in pairwise(cuts)]
    alike: dict[str, list[_Stretch]] = {}
    for each in (s for of in stretches.values() for s in of):
        alike.setdefault(each.form, []).append(each)
    constants = _Constants(graphs)
    parts: dict[str, TracedProgram] = {}
    made: dict[str, _Part] = {}
    for form, group in alike.items():
        made[form] = part = _part(f"part_{len(parts) + 1}", group, graphs, constants)
        parts[part.program.name] = part.program
    courses = {
        name: _course(programs[name], stretches[name], made, constants) for name in programs
    }
    return Staged(parts, constants.tensors, courses, repeats)


class _Constants:
    """The constants that calls give to parts, equal ones once, whatever program reads them."""

    def __init__(self, graphs: Mapping[str, fx.GraphModule]) -> None:
        self._graphs = graphs
        self._digests: dict[tuple[Any, ...], bytes] = {}
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
            self._names[key] = f"c{len(self._names)}"
            self.tensors[self._names[key]] = self.tensor(program, node)
        return self._names[key]


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
        known[node] = graph.placeholder(f"x{slot}")
        known[node].meta["val"] = node.meta["val"]
        value = node.meta["val"]
        examples[f"x{slot}"] = (
            constants.tensor(first.program, node)
            if node.op == "get_attr"
            else torch.zeros(value.shape, dtype=value.dtype)
        )
    tensors: dict[str, Any] = {}
    for node in first.reads:
        if node not in known:
            tensors[str(node.target)] = getattr(root, str(node.target))
            known[node] = graph.get_attr(str(node.target))
            known[node].meta["val"] = node.meta["val"]
    for node in first.nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[first.nodes[number]] for number in outputs))
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
