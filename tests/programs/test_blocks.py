"""Blocks that repeat are one part, and the parts compute what the whole computed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from typing_extensions import override

from pfl_mobile import LoRA
from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines.base import Array, EngineSession
from pfl_mobile.engines.schedule import ALIGNMENT, ScheduledSession, parse_schedule
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs.blocks import (
    LEAST_NODES,
    Recompute,
    Staged,
    _kept,
    longest_run,
    peak,
    prepare,
    stage,
)
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.programs.trace import TracedProgram, trace_programs

LENGTH, WIDTH, WORDS = 6, 16, 40


class Block(nn.Module):
    """Attention with a mask that all blocks share, and a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=n == 3) for n in range(4))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / WIDTH**0.5 + mask
        x = x + self.o(scores.softmax(-1) @ self.v(y))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, blocks: int, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(blocks)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -1e9).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(x)


def programs(model: nn.Module, targets: str = "*.q") -> dict[str, TracedProgram]:
    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH) % WORDS
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(2, LENGTH)}
    little = {"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])}
    return trace_programs(
        personalize(model, [LoRA(targets, rank=2)]), TokenTask(WORDS, specials=4), batch, little
    )


class InPyTorch(EngineSession):
    """Runs parts as they were traced."""

    name = "parts"

    def __init__(self, parts: Mapping[str, TracedProgram], specs: Sequence[ProgramSpec]) -> None:
        super().__init__(specs)
        self._parts = parts

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        part = self._parts[program]
        given = dict(zip(part.inputs, (torch.from_numpy(a.copy()) for a in inputs), strict=True))
        return [value.numpy() for value in part.run(given).values()]


def specs(found: Mapping[str, TracedProgram]) -> list[ProgramSpec]:
    def of(name: str, value: Tensor) -> TensorSpec:
        return TensorSpec.model_validate(
            {"name": name, "shape": tuple(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        )

    return [
        ProgramSpec(
            name=name,
            inputs=tuple(of(k, v) for k, v in program.inputs.items()),
            outputs=tuple(of(k, v) for k, v in program.run(program.inputs).items()),
        )
        for name, program in found.items()
    ]


def opened(staged: Staged, found: Mapping[str, TracedProgram], folder: Path) -> ScheduledSession:
    schedule, pieces = staged.schedule()
    with open(folder / "constants", "wb") as file:
        file.writelines(pieces)
    read = parse_schedule(schedule.to_json(), specs(found))
    return ScheduledSession(
        InPyTorch(staged.parts, read.parts), read, str(folder / "constants"), specs(found)
    )


def check(staged: Staged, found: Mapping[str, TracedProgram], folder: Path) -> None:
    """Parts and wholes give the same on values that tell blocks apart."""
    torch.manual_seed(1)
    session = opened(staged, found, folder)
    for name, program in found.items():
        inputs = {
            k: torch.randn(v.shape) if v.is_floating_point() and k not in program.batch else v
            for k, v in program.inputs.items()
        }
        got = session.run(name, {k: v.numpy() for k, v in inputs.items()})
        for key, want in program.run(inputs).items():
            torch.testing.assert_close(torch.from_numpy(got[key].copy()), want, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def traced() -> dict[str, TracedProgram]:
    return programs(Model(4))


@pytest.mark.parametrize("again", Recompute)
def test_parts_give_what_the_programs_give(
    traced: dict[str, TracedProgram], again: Recompute, tmp_path: Path
) -> None:
    before = {name: str(program.graph.graph) for name, program in traced.items()}
    staged = stage(prepare(traced), again)
    # nothing before the first block is trained, so that its norm keeps nothing for the backward pass
    assert staged.repeats["gradients"] == (3, 3)
    assert staged.repeats["evaluate"] == (4,)
    check(staged, traced, tmp_path)
    assert before == {name: str(program.graph.graph) for name, program in traced.items()}


def test_there_are_as_many_parts_for_many_blocks_as_for_few(traced: dict[str, TracedProgram]) -> None:
    few, many = stage(prepare(traced), Recompute.ALL), stage(prepare(programs(Model(7))), Recompute.ALL)
    assert len(few.parts) == len(many.parts)
    assert len(many.courses["gradients"].calls) - len(few.courses["gradients"].calls) == 6
    forms = [sorted(len(p.graph.graph.nodes) for p in s.parts.values()) for s in (few, many)]
    assert forms[0] == forms[1]


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        pytest.param(lambda: Model(3, tied=True), "*.q", id="tied"),
        pytest.param(lambda: Model(3), "blocks.1.[qv]", id="one block is trained"),
        pytest.param(lambda: _shared(Model(3)), "*.v", id="blocks share their layers"),
        pytest.param(lambda: Model(1), "*.q", id="one block"),
    ],
)
@pytest.mark.parametrize("again", [Recompute.CHEAP, Recompute.ALL])
def test_other_models_too(model: Any, targets: str, again: Recompute, tmp_path: Path) -> None:
    found = programs(model(), targets)
    check(stage(prepare(found), again), found, tmp_path)


class Flagged(Model):
    """A model whose blocks all read flags: as a constant, and as a value that is computed once."""

    class Hidden(nn.Module):
        """What a block does, where flags say."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, flags: Tensor, known: Tensor) -> Tensor:
            y = torch.where(flags, self.q(self.norm(x)), x).softmax(-1)
            return x + nn.functional.gelu(y.masked_fill(known, 0.5)) * y.tanh()

    def __init__(self) -> None:
        super().__init__(0)
        self.blocks = nn.ModuleList(self.Hidden() for _ in range(4))
        self.register_buffer("flags", torch.rand(300, LENGTH, WIDTH) > 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        known = (tokens > 3).unsqueeze(-1)
        for block in self.blocks:
            x = block(x, self.flags[: len(x)], known)
        return self.head(x)


def test_flags_go_from_part_to_part_as_numbers_that_every_phone_takes(tmp_path: Path) -> None:
    found = programs(Flagged())
    for again in Recompute:
        staged = stage(prepare(found), again)
        assert len(staged.courses["evaluate"].calls) > len({c.part for c in staged.courses["evaluate"].calls})
        carried = {spec.dtype for part in staged.signatures() for spec in (*part.inputs, *part.outputs)} | {
            str(value.dtype).removeprefix("torch.") for value in staged.constants.values()
        }
        assert "uint8" in carried
        assert "bool" not in carried
        check(staged, found, tmp_path)


def _shared(model: Model) -> Model:
    model.blocks[2] = model.blocks[0]
    return model


def test_what_is_computed_again_is_not_kept(traced: dict[str, TracedProgram]) -> None:
    """Between the blocks of the forward pass and those of the backward pass fewer bytes wait."""

    def waiting(again: Recompute) -> int:
        staged = stage(prepare(traced), again)
        parts = {part.name: part for part in staged.signatures()}
        calls = [call.part for call in staged.courses["gradients"].calls]
        block = next(name for name in calls if calls.count(name) == 3)
        return sum(int(np.prod(o.shape)) for o in parts[block].outputs)

    kept = [waiting(again) for again in Recompute]
    assert kept[0] > kept[1] >= kept[2] > kept[3]
    # what passes from block to block, and what the stretch in the middle reads of the last one
    assert kept[3] < 1.5 * 2 * LENGTH * WIDTH


def test_the_scores_of_attention_are_computed_again_before_products_with_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    length = 10 * LENGTH
    monkeypatch.setattr(f"{__name__}.LENGTH", length)
    found = programs(Model(4))
    made: dict[Recompute, list[tuple[int, ...]]] = {}
    products: dict[Recompute, int] = {}
    for again in Recompute:
        staged = stage(prepare(found), again)
        parts = {part.name: part for part in staged.signatures()}
        called = {call.part for call in staged.courses["gradients"].calls}
        made[again] = [output.shape for name in called for output in parts[name].outputs]
        products[again] = sum(
            node.target is torch.ops.aten.linear.default
            for name in called
            for node in staged.parts[name].graph.graph.nodes
        )
        check(staged, found, tmp_path)
    # what one block leaves for its own backward pass; the mask is a constant
    scores = {again: sum(shape[-2:] == (length, length) for shape in of) for again, of in made.items()}
    assert scores[Recompute.CHEAP] > 0
    assert scores[Recompute.ATTENTION] == 0
    assert products[Recompute.CHEAP] == products[Recompute.ATTENTION] < products[Recompute.ALL]


def test_constants_are_stored_once_and_aligned(traced: dict[str, TracedProgram]) -> None:
    schedule, pieces = stage(prepare(traced)).schedule()
    content = b"".join(pieces)
    ends = {e.offset + schedule.constant_bytes(n) for n, e in schedule.constants.items()}
    assert len(content) == max(ends)
    assert all(entry.offset % ALIGNMENT == 0 for entry in schedule.constants.values())
    assert len({entry.offset for entry in schedule.constants.values()}) == len(schedule.constants)


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(4, 9), min_size=LEAST_NODES, max_size=30),
    st.integers(2, 6),
    st.lists(st.integers(10, 13), max_size=30),
)
def test_the_run_that_covers_most_is_found(
    before: list[int], block: list[int], count: int, after: list[int]
) -> None:
    labels = np.array(before + block * count + after)
    found = longest_run(labels)
    assert found is not None
    covered = labels[found.start : found.end]
    assert (covered.reshape(found.count, found.period) == covered[: found.period]).all()
    # a shorter period may cover nearly as much
    assert len(covered) * 1.02 >= len(block) * count


def test_what_does_not_repeat_has_no_run() -> None:
    assert longest_run(np.arange(200)) is None
    assert longest_run(np.array([1, 2, 3] * (LEAST_NODES // 3 - 1))) is None


@settings(max_examples=60)
@given(st.data())
def test_the_fewest_bytes_are_kept(data: st.DataObject) -> None:
    """Against trying all choices, on graphs of seven values."""
    graph = fx.Graph()
    given_: dict[fx.Node, bool] = {}
    nodes: list[fx.Node] = []
    for _ in range(7):
        reads = data.draw(st.sets(st.sampled_from(nodes), max_size=2)) if nodes else set()
        node = graph.call_function(torch.add, tuple(sorted(reads, key=nodes.index)))
        node.meta["val"] = torch.empty(data.draw(st.integers(1, 9)), device="meta")
        given_[node] = data.draw(st.booleans()) or not reads
        nodes.append(node)
    needed = data.draw(st.lists(st.sampled_from(nodes), min_size=1, unique=True))

    def enough(kept: frozenset[fx.Node]) -> bool:
        def known(node: fx.Node) -> bool:
            return node in kept or (not given_[node] and all(map(known, node.all_input_nodes)))

        return all(map(known, needed))

    def size(kept: Sequence[fx.Node] | set[fx.Node] | frozenset[fx.Node]) -> int:
        return sum(node.meta["val"].numel() for node in kept)

    choices = (frozenset(c) for n in range(8) for c in itertools.combinations(nodes, n))
    found = _kept(needed, given_)
    assert enough(frozenset(found))
    assert size(found) == min(size(choice) for choice in choices if enough(choice))


def test_the_peak_of_a_part() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.ops.aten.exp.default, (x,))
    b = graph.call_function(torch.ops.aten.reshape.default, (a, [4]))  # lies where a does
    c = graph.call_function(torch.ops.aten.exp.default, (b,))
    d = graph.call_function(torch.ops.aten.sum.dim_IntList, (c, [0]))
    graph.output((d,))
    for node, shape in ((x, (2, 2)), (a, (2, 2)), (b, (4,)), (c, (4,)), (d, ())):
        node.meta["val"] = torch.empty(shape, device="meta")
    part = TracedProgram("part", fx.GraphModule({}, graph), {}, ("y",), ())
    assert peak(part) == 4 * (4 + 4)
