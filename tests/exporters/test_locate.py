"""A target whose numbers are wrong: the operator that makes them so is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pfl_exporters import locate
from pfl_exporters.locate import NotFoundError, difference, first_wrong, giving_out
from pfl_exporters.lowering.files import Lowered
from pfl_exporters.targets import Target, resolve
from pfl_mobile.programs.trace import TracedProgram, trace_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

aten = torch.ops.aten


def chain(length: int) -> TracedProgram:
    """Many steps one after the other, some of which agree whatever goes before them; ``tanh`` is in the middle."""

    def function(_: object, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = values["x"]
        flags = x > 0.0
        for step in range(length):
            x = x.tanh() if step == length // 2 else x.cos() * 1.5
        low, places = x.sort(-1)
        return {"right": flags.float().sum().reshape(1), "y": low.sum().reshape(1) + places[0, 0]}

    return trace_function("evaluate", function, {}, {"x": torch.rand(3, 4)}, ())


def spoiled(target: str, spoil: Callable[[TracedProgram], TracedProgram]) -> Target:
    """A target that lowers another program than it is given."""
    (found,) = resolve([target])
    found.load()

    def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Callable[[str], None]) -> Lowered:
        return found.lower({name: spoil(each) for name, each in programs.items()}, folder, report)

    return Target(found.name, found.engine, found.tools, lower, found.compared_by)


def with_sine(program: TracedProgram) -> TracedProgram:
    """The hyperbolic tangent is lowered as a sine."""
    nodes = list(program.graph.graph.nodes)
    copy = giving_out(program, next(n for n in nodes if n.op == "output").args[0])
    for node in copy.graph.graph.nodes:
        if node.target is aten.tanh.default:
            node.target = aten.sin.default
    copy.graph.recompile()
    return TracedProgram(program.name, copy.graph, copy.inputs, program.outputs, program.batch)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "android", "ios"])
def test_the_wrong_operator_is_found(target: str) -> None:
    program = chain(6)
    steps: list[str] = []
    wrong = first_wrong(spoiled(target, with_sine), program, program.inputs, "y", 2e-4, steps.append)
    assert (wrong.operator, wrong.shape) == ("tanh", (3, 4))
    assert next(n for n in program.graph.graph.nodes if n.name == wrong.node).target is aten.tanh.default
    assert 1e-3 < wrong.error < 1
    assert steps[0].startswith("look for the wrong operator: ")


@pytest.mark.parametrize("seed", range(4))
def test_a_long_program_is_searched_in_parts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the error fades and comes back on its way through the chain, which depends on the values."""
    monkeypatch.setattr(locate, "AT_ONCE", 8)
    torch.manual_seed(seed)
    program = chain(40)
    steps: list[str] = []
    wrong = first_wrong(spoiled("torch", with_sine), program, program.inputs, "y", 2e-4, steps.append)
    assert wrong.operator == "tanh"
    assert 2 <= len(steps) <= 14


def test_values_that_cannot_go_out_together_go_out_in_several_programs() -> None:
    def picky(program: TracedProgram) -> TracedProgram:
        if len(program.outputs) > 5:
            raise MemoryError("too many")
        return with_sine(program)

    program = chain(6)
    wrong = first_wrong(spoiled("torch", picky), program, program.inputs, "y", 2e-4, lambda _: None)
    assert wrong.operator == "tanh"


def fused(program: TracedProgram) -> TracedProgram:
    """Wrong only where nobody looks."""
    return with_sine(program) if program.outputs == ("right", "y") else program


def fails(program: TracedProgram) -> TracedProgram:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("spoil", "budget", "words"),
    [
        (fused, 60.0, "the toolchain fuses them"),
        (fails, 60.0, r"some values cannot be given out \(RuntimeError\)"),
        (with_sine, -1.0, "took too long"),
    ],
)
def test_a_search_that_finds_nothing_says_why(
    spoil: Callable[[TracedProgram], TracedProgram], budget: float, words: str
) -> None:
    program = chain(6)
    with pytest.raises(NotFoundError, match=words):
        first_wrong(spoiled("torch", spoil), program, program.inputs, "y", 2e-4, lambda _: None, budget)


def test_what_a_mask_hides_on_both_sides_is_no_difference() -> None:
    want = np.array([1.0, -np.inf, 2.0, -3.4e38], np.float32)
    assert difference(np.array([1.0, -3.4e38, 2.0, -np.inf], np.float32), want) == 0
    assert difference(np.array([1.0, -np.inf, 2.2, -np.inf], np.float32), want) == pytest.approx(0.1)
    assert difference(np.array([1.0, np.inf, 2.0, -np.inf], np.float32), want) == np.inf
    assert difference(np.array([1.0, np.nan, 2.0, -np.inf], np.float32), want) == np.inf
