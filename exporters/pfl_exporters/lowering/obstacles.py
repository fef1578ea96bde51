"""What keeps a target from taking a program, found before it is lowered.

A program repeats its operators: of each operator, with each kind of arguments, one use stands for all. They are looked
up in what the runtime says it has, or put in one small program, a sample, that the target's translator is tried on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pfl_mobile.programs.forms.recurrences import LOOPS
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE

from .graphs import constant_value, constant_weight, traced_alone
from .names import TRACED_AS

_aten = torch.ops.aten
#: Name of a program that is a sample.
SAMPLE = "sample"


@dataclass(frozen=True)
class Obstacle:
    """Something that a target does not take.

    Attributes:
        program: in which it is.
        node: its name in the traced graph; None where it is no operator.
        operator: as PyTorch calls it, for instance ``erfinv``; empty where it is none.
        why: what the target lacks.
    """

    program: str
    node: str | None
    operator: str
    why: str


@dataclass(frozen=True)
class Use:
    """A use of an operator that stands for all that are like it."""

    program: str
    node: fx.Node

    @property
    def operator(self) -> str:
        """As PyTorch calls it."""
        return operator_name(self.node.target)

    def obstacle(self, why: str) -> Obstacle:
        """That the target does not take it."""
        return Obstacle(self.program, self.node.name, self.operator, why)


def without(chosen: Sequence[Use], found: Sequence[Obstacle]) -> list[Use]:
    """The uses that are no obstacles already: a translator need not be tried on those."""
    known = {(obstacle.program, obstacle.node) for obstacle in found}
    return [use for use in chosen if (use.program, use.node.name) not in known]


def operator_name(target: Any) -> str:
    """An operator as PyTorch's users call it, with its overload where that says something."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return str(getattr(target, "__name__", target))
    overload = target._overloadname
    name = target._schema.name.removeprefix("aten::")
    return name if overload in ("default", "Tensor") else f"{name}.{overload}"


def uses(programs: Mapping[str, TracedProgram]) -> list[Use]:
    """One use of each operator with each kind of arguments, in the order of the programs.

    Recurrent operators are none, nor is reading a weight of few bits: each target writes those in what it has.
    """
    found: dict[Any, Use] = {}
    for name, program in programs.items():
        for node in program.graph.graph.nodes:
            if (
                node.op == "call_function"
                and node.target is not operator.getitem
                and node.target not in LOOPS
                and node.target is not DEQUANTIZE
            ):
                found.setdefault(_kind(node), Use(name, node))
    return list(found.values())


def _kind(node: fx.Node) -> Any:
    def described(source: fx.Node) -> Any:
        value = source.meta["val"]
        if not isinstance(value, Tensor):
            return "several"
        return str(value.dtype), tuple(value.shape), constant_weight(source)

    picked = sorted(user.args[1] for user in node.users if user.target is operator.getitem)
    args = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: f"<{described(n)}>")
    return node.target, repr(args), tuple(picked)


def steps(node: fx.Node, target: Any, table: Mapping[Any, Callable[..., Any]]) -> list[Any]:
    """The operators that a node becomes when it is decomposed.

    Args:
        node: of a program.
        target: its operator, as the toolchain writes it.
        table: the toolchain's decompositions.
    """
    if target not in table:
        return [target]
    inner = traced_alone(node, target, table)
    return [
        step.target
        for step in inner.graph.nodes
        if step.op == "call_function" and step.target is not operator.getitem
    ]


def sample(chosen: Sequence[Use], name: str = SAMPLE) -> TracedProgram:
    """A program of the uses alone: what others compute for them comes in, and what they compute goes out.

    Each node says in ``meta`` which use it stands for, as ``program/node``.
    """
    graph, root = fx.Graph(), nn.Module()
    inputs: dict[str, Tensor] = {}
    constants: dict[fx.Node, fx.Node] = {}
    generator = torch.Generator().manual_seed(0)
    calls: list[tuple[Use, Any]] = []
    for use in chosen:
        given: dict[fx.Node, Any] = {}
        for source in use.node.all_input_nodes:
            if constant_weight(source):
                if source not in constants:
                    label = f"constant_{len(constants)}"
                    root.register_buffer(label, constant_value(source))
                    constants[source] = graph.get_attr(label)
                given[source] = constants[source]
            else:
                value = source.meta["val"]
                whole = value.shape or (1,)
                label = f"x{len(inputs)}"
                flags = value.dtype == torch.bool
                kind = torch.float32 if flags else value.dtype
                inputs[label] = (
                    torch.rand(whole, generator=generator).to(kind) + 0.5
                    if kind.is_floating_point
                    else torch.zeros(whole, dtype=kind)
                )
                given[source] = (label, flags, not value.shape)
        calls.append((use, given))
    places = {label: graph.placeholder(label) for label in inputs}
    outputs: list[fx.Node] = []
    for use, given in calls:
        ready = {source: _read(graph, places, g) for source, g in given.items()}
        args, kwargs = fx.node.map_arg((use.node.args, dict(use.node.kwargs)), ready.__getitem__)
        made = graph.call_function(use.node.target, args, kwargs)
        made.meta[TRACED_AS] = f"{use.program}/{use.node.name}"
        if isinstance(use.node.meta["val"], Tensor):
            outputs.append(made)
            continue
        picked = {user.args[1] for user in use.node.users if user.target is operator.getitem}
        for index in sorted(picked) or [0]:
            outputs.append(graph.call_function(operator.getitem, (made, index)))
    graph.output(tuple(outputs))
    # placeholders come first, and constants were asked for before them
    for node in list(graph.nodes):
        if node.op == "get_attr":
            first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
            first.prepend(node)
    module = fx.GraphModule(root, graph)
    names = tuple(f"y{number}" for number in range(len(outputs)))
    return TracedProgram(name, module, inputs, names, ())


def _read(graph: fx.Graph, places: Mapping[str, fx.Node], given: Any) -> fx.Node:
    """An input of the sample as the use takes it: programs take no flags and no single numbers everywhere."""
    if isinstance(given, fx.Node):
        return given
    label, flags, single = given
    node = places[label]
    if single:
        node = graph.call_function(_aten.reshape.default, (node, []))
    return graph.call_function(_aten.ne.Scalar, (node, 0)) if flags else node


def refused(
    chosen: Sequence[Use], attempt: Callable[[TracedProgram], object]
) -> Iterator[tuple[Use, Exception]]:
    """Which uses a translator refuses, and how; all of them and not the first only.

    Args:
        chosen: of operators.
        attempt: translates a program, or raises.
    """
    left = list(chosen)
    while left:
        try:
            attempt(sample(left))
        except Exception as error:  # whatever translators raise
            name = blamed(error)
            guilty = next((u for u in left if f"{u.program}/{u.node.name}" == name), None)
            if guilty is None and len(left) > 1:
                half = len(left) // 2
                yield from refused(left[:half], attempt)
                yield from refused(left[half:], attempt)
                return
            guilty = guilty or left[0]
            yield guilty, error
            left.remove(guilty)
        else:
            return


def blamed(error: BaseException) -> str | None:
    """The node that was being translated when an error was raised, as the graph it was traced in calls it.

    Toolchains name it in their logs at best. It is read from the frames of the traceback, the innermost first.
    """
    for each in _chain(error):
        frames = []
        trace = each.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):
            for name in ("node", "n", "fx_node"):
                meta = getattr(frame.f_locals.get(name), "meta", None)
                if isinstance(meta, Mapping) and TRACED_AS in meta:
                    return str(meta[TRACED_AS])
    return None


def _chain(error: BaseException) -> Iterable[BaseException]:
    """The error and what it was raised from, the first cause first."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or each.__context__
    return reversed(found)


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line without the toolchain's advice."""
    causes = [str(e).strip() for e in _chain(error)]
    said = next((text for text in causes if text), type(error).__name__)
    line = next((part.strip() for part in said.splitlines() if part.strip()), type(error).__name__)
    return line if len(line) <= most else f"{line[:most]}..."
