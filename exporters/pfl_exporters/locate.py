"""Which operator is it, when a target's numbers are wrong: the first value of the graph that differs.

The program is lowered again so that it gives out the values in between. Each is compared with what PyTorch's operator
makes of the *engine's* own values before it, so that an error is found where it is made and not where it arrives. Of a
long program a few values spread over it are looked at first, and then those between the last that is right and the
first that is wrong.
"""

from __future__ import annotations

import operator
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from typing_extensions import override

from pfl_mobile.engines.compare import relative_error
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.trace import TracedProgram

from .lowering.files import Report
from .lowering.obstacles import operator_name
from .targets import Target
from .verify import open_lowered, program_specs

_aten = torch.ops.aten
#: Values that a program gives out at once.
AT_ONCE = 250
#: Seconds that the search may take; the lowering under way is ended first.
BUDGET_S = 120.0
#: Error of a value that is not the order of a sum.
CLEARLY = 1e-2
#: Bytes of values in between that are kept.
_MOST_BYTES = 1 << 30
#: Fewer values that cannot be lowered together are left out.
_FEWEST = 4


#: Entries beyond it are those that a mask hides, whether by the least number or by infinity.
_HIDDEN = 1e30


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """As ``relative_error``, but entries that both hide, of one sign, are equal."""
    one, other = np.asarray(got, np.float64), np.asarray(want, np.float64)
    hidden = (np.abs(one) > _HIDDEN) & (np.abs(other) > _HIDDEN) & (np.sign(one) == np.sign(other))
    return relative_error(np.where(hidden, 0, one), np.where(hidden, 0, other))


@dataclass(frozen=True)
class Wrong:
    """The first value that differs.

    Attributes:
        node: its name in the traced graph.
        operator: that computes it.
        error: relative to its largest entry.
        shape: of the value.
    """

    node: str
    operator: str
    error: float
    shape: tuple[int, ...]


class NotFoundError(Exception):
    """The search ended without an operator; the text says why."""


def first_wrong(
    target: Target,
    program: TracedProgram,
    inputs: Mapping[str, Tensor],
    output: str,
    tolerance: float,
    report: Report,
    budget_s: float = BUDGET_S,
) -> Wrong:
    """The first operator that a target computes wrongly.

    Args:
        target: that lowered the program.
        program: as it was traced.
        inputs: of a call that gave a wrong output.
        output: its name.
        tolerance: largest error of a value that is right.
        report: told about each step.
        budget_s: seconds after which no more is lowered.

    Raises:
        NotFoundError: there is none, or it could not be looked for.
    """
    search = _Search(target, program, inputs, tolerance, report, time.monotonic() + budget_s)
    return search.of(output)


@dataclass
class _Search:
    target: Target
    program: TracedProgram
    inputs: Mapping[str, Tensor]
    tolerance: float
    report: Report
    deadline: float
    rounds: int = 0
    trouble: str = ""
    _values: dict[fx.Node, Any] = field(default_factory=dict)

    def of(self, output: str) -> Wrong:
        nodes = list(self.program.graph.graph.nodes)
        outputs = next(n for n in nodes if n.op == "output").args[0]
        last = dict(zip(self.program.outputs, outputs, strict=True))[output]
        self._run()
        behind = _before(last)
        every = [n for n in nodes if n in behind and _is_value(n)]
        suspects = self._narrowed(every)
        # an error can fade and come back, so that the suspects are the wrong ones: then all, part by part
        parts = [suspects, *(every[i : i + AT_ONCE] for i in range(0, len(every), AT_ONCE))]
        why: NotFoundError | None = None
        for part in parts[: 1 if len(every) <= AT_ONCE else None]:
            try:
                return self._among(part)
            except NotFoundError as found:
                why = found
        raise why or NotFoundError("there are no values in between")

    def _narrowed(self, left: list[fx.Node]) -> list[fx.Node]:
        """Those among which the first wrong value is, as few as can be given out at once; none where that fails."""
        while len(left) > AT_ONCE:
            step = len(left) / AT_ONCE
            picked = sorted({int(i * step) for i in range(AT_ONCE)} | {len(left) - 1})
            got = self._given([left[i] for i in picked])
            errors = {n: difference(got[n], self._values[n].numpy()) for n in got}
            wrong = next((n for n in left if errors.get(n, 0.0) > self.tolerance), None)
            if wrong is None:
                return []
            known: set[fx.Node] = set()
            for node, error in errors.items():  # in the order of the graph; later ones may be right again
                if node is wrong:
                    break
                if error <= self.tolerance:
                    known |= _before(node)
            before = _before(wrong)
            fewer = [n for n in left if n in before and n not in known]
            if len(fewer) >= len(left):
                return []
            left = fewer
        return left

    def _among(self, left: Sequence[fx.Node]) -> Wrong:
        """The first of these that is wrong for the values that it was computed from."""
        wanted = dict.fromkeys(left)
        for node in left:
            wanted |= dict.fromkeys(_sources(node))
        order = [n for n in self.program.graph.graph.nodes if n in wanted]
        got = self._given(order)
        errors: dict[fx.Node, float] = {}
        for node in left:
            if node not in got or any(s not in got for s in _sources(node)):
                continue
            errors[node] = difference(got[node], self._alone(node, got))
        for limit in (max(CLEARLY, self.tolerance), self.tolerance):
            for node, error in errors.items():
                if error > limit:
                    call = node.args[0] if node.target is operator.getitem else node
                    return Wrong(call.name, operator_name(call.target), error, tuple(got[node].shape))
        raise NotFoundError(self._all_right(len(errors)))

    def _all_right(self, count: int) -> str:
        if not count:
            return self.trouble or "no value in between can be given out"
        more = f"; {self.trouble}" if self.trouble else ""
        return (
            f"each of {count} values in between is right when it is given out: the toolchain fuses them{more}"
        )

    def _run(self) -> None:
        """Keep what PyTorch has for each value."""
        total = sum(
            n.meta["val"].numel() * n.meta["val"].element_size()
            for n in self.program.graph.graph.nodes
            if _is_value(n)
        )
        if total > _MOST_BYTES:
            raise NotFoundError(f"the values in between take {total / 1e9:.1f} GB")
        kept = self._values

        class Keep(fx.Interpreter):
            @override
            def run_node(self, n: fx.Node) -> Any:
                kept[n] = result = super().run_node(n)
                return result

        with torch.no_grad():
            Keep(self.program.graph).run(*(self.inputs[name] for name in self.program.inputs))

    def _alone(self, node: fx.Node, got: Mapping[fx.Node, np.ndarray]) -> np.ndarray:
        """What PyTorch's operator makes of the engine's values."""

        def value(source: fx.Node) -> Any:
            if source in got:
                want = self._values[source]
                return torch.from_numpy(np.array(got[source])).to(want.dtype).reshape(want.shape)
            return self._values[source]

        call = node.args[0] if node.target is operator.getitem else node
        args, kwargs = fx.node.map_arg((call.args, dict(call.kwargs)), value)
        with torch.no_grad():
            result = call.target(*args, **kwargs)
        result = result[node.args[1]] if node.target is operator.getitem else result
        return np.asarray(result.numpy())

    def _given(self, nodes: Sequence[fx.Node]) -> dict[fx.Node, np.ndarray]:
        """The engine's values; in several programs where one is too much for it."""
        if not nodes:
            return {}
        if time.monotonic() > self.deadline:
            raise NotFoundError("the search took too long")
        self.rounds += 1
        self.report(f"look for the wrong operator: {len(nodes)} values, program {self.rounds}")
        try:
            return self._called(nodes)
        except NotFoundError:
            raise
        except Exception as error:  # whatever a toolchain raises: the search must not fail with it
            self.trouble = f"some values cannot be given out ({type(error).__name__})"
            if len(nodes) <= _FEWEST:
                return {}
            half = len(nodes) // 2
            return self._given(nodes[:half]) | self._given(nodes[half:])

    def _called(self, nodes: Sequence[fx.Node]) -> dict[fx.Node, np.ndarray]:
        giving = giving_out(self.program, nodes)
        programs = {giving.name: giving}
        with tempfile.TemporaryDirectory(prefix="pfl-locate-") as folder:
            lowered = self.target.lower(programs, Path(folder), lambda _: None)
            with open_lowered(self.target, lowered, program_specs(programs)) as session:
                given = {name: self.inputs[name].numpy() for name in giving.inputs}
                got = session.run(giving.name, given)
        return {
            node: np.array(got[name]).reshape(node.meta["val"].shape)
            for node, name in zip(nodes, giving.outputs, strict=True)
        }


def giving_out(program: TracedProgram, nodes: Sequence[fx.Node]) -> TracedProgram:
    """The program with these values as its outputs; flags go out as 0 and 1, single numbers with shape [1]."""
    graph = copied(program.graph)
    same = dict(zip(program.graph.graph.nodes, graph.graph.nodes, strict=True))
    end = next(n for n in graph.graph.nodes if n.op == "output")
    results = []
    for node in nodes:
        value, result = node.meta["val"], same[node]
        with graph.graph.inserting_before(end):
            if value.dtype == torch.bool:
                result = graph.graph.call_function(
                    _aten._to_copy.default, (result,), {"dtype": torch.float32}
                )
            if not value.shape:
                result = graph.graph.call_function(_aten.reshape.default, (result, [1]))
        results.append(result)
    end.args = (tuple(results),)
    graph.graph.eliminate_dead_code()
    inputs: dict[str, Tensor] = {}
    for place, (name, value) in zip(
        [n for n in graph.graph.nodes if n.op == "placeholder"], program.inputs.items(), strict=True
    ):
        if place.users:
            inputs[name] = value
        else:
            graph.graph.erase_node(place)
    graph.recompile()
    names = tuple(f"value{number}" for number in range(len(nodes)))
    batch = tuple(name for name in program.batch if name in inputs)
    return TracedProgram(program.name, graph, inputs, names, batch)


def _is_value(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.meta["val"], Tensor)
        and bool(node.meta["val"].numel())
        and not node.meta["val"].is_complex()
    )


def _sources(node: fx.Node) -> list[fx.Node]:
    """The computed values that a value is computed from."""
    call = node.args[0] if node.target is operator.getitem else node
    return [source for source in call.all_input_nodes if source.op == "call_function"]


def _before(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += each.all_input_nodes
    return found
