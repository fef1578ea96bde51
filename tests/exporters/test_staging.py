"""Models whose blocks repeat, exported as parts: the numbers are those of whole programs, and memory is bounded."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pfl_exporters.export import export_bundle
from pfl_exporters.lowering.files import waiting
from pfl_exporters.staging import as_parts
from pfl_mobile import Bundle, LoRA
from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines import open_session
from pfl_mobile.engines.schedule import CONSTANTS, SCHEDULE, Course, PartCall, parse_schedule
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.blocks import Recompute
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import TokenTask
from tests.programs.test_blocks import LENGTH, WORDS, Model


def deployment(blocks: int = 4) -> Deployment:
    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH) % WORDS
    return Deployment(
        name="blocks",
        model=personalize(Model(blocks), [LoRA("*.q", rank=2)]),
        task=TokenTask(WORDS, specials=4),
        batch={"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(2, LENGTH)},
        predict_batch={"tokens": tokens[:1], "position": torch.tensor([LENGTH - 1])},
        plan=Plan(phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),)),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("staged") / "bundle"
    done = export_bundle(deployment(), ["android", "onnx"], out, blocks=True)
    assert max(error["grad_max_rel_err"] for error in done.errors.values()) < 1e-5
    return Bundle.open(out)


def test_engines_share_the_schedule_and_the_constants(bundle: Bundle) -> None:
    files = [entry.files for entry in bundle.manifest.engines.values()]
    assert files[0][SCHEDULE] == files[1][SCHEDULE]
    assert files[0][CONSTANTS] == files[1][CONSTANTS]
    weights = sum(p.numel() * 4 for p in Model(4).parameters())
    # a second time only what is too small for a product to read it both ways
    assert bundle.manifest.files[files[0][CONSTANTS]].bytes < 1.6 * weights


@pytest.mark.parametrize("engine", ["executorch", "onnxruntime"])
def test_the_golden_calls_come_out(bundle: Bundle, engine: str) -> None:
    from pfl_mobile.engines.compare import golden_check

    with open_session(bundle, engine, trusted=True) as session:
        assert golden_check(bundle, session).grad_max_rel_err < 1e-5


@pytest.mark.parametrize("weights", ["int8", "int4:16"])
def test_weights_of_few_bits_are_given_to_parts_as_they_are_stored(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and scales lie in the file of constants, packed, for forward and backward pass of all blocks."""
    monkeypatch.setattr("pfl_mobile.programs.weights.SMALLEST", 100)
    # small ones lie in the parts
    monkeypatch.setattr("pfl_mobile.programs.blocks.LARGE_BYTES", 0)
    done = export_bundle(
        replace(deployment(), weights=weights),
        ["android", "onnx"],
        tmp_path / "b",
        blocks=True,
        memory=16 << 20,
    )
    assert max(error["grad_max_rel_err"] for error in done.errors.values()) < 1e-5
    bundle = Bundle.open(tmp_path / "b")
    schedule = parse_schedule((tmp_path / "b/parts/schedule.json").read_bytes(), bundle.manifest.programs)
    stored = [e for e in schedule.constants.values() if e.dtype == "int8"]
    held = sum(m.weight.numel() for m in Model(4).modules() if isinstance(m, nn.Linear | nn.Embedding))
    assert sum(math.prod(e.shape) for e in stored) == held // (2 if weights.startswith("int4") else 1)


def test_a_small_model_stays_whole_unless_it_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    from pfl_mobile.programs.trace import trace_programs

    d = deployment()
    programs = trace_programs(d.model, d.task, dict(d.batch), dict(d.inputs_of_predict()))
    assert as_parts(programs, 1000, tmp_path) is None
    assert as_parts(programs, 1 << 30, tmp_path, wanted=False) is None
    whole = as_parts(programs, 1 << 30, tmp_path)
    assert whole is None, "the run of three blocks in gradients is too short to pay"
    tight = as_parts(programs, 1000, tmp_path / "tight", most=42_000)
    loose = as_parts(programs, 1000, tmp_path / "loose", most=1 << 30)
    assert tight is not None
    assert loose is not None
    nodes = [sum(len(p.graph.graph.nodes) for p in s.staged.parts.values()) for s in (tight, loose)]
    assert nodes[0] > nodes[1], "what does not fit is computed again"


def test_a_bound_that_cannot_be_kept_is_named_before_anything_is_lowered(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(
        ConfigError, match=r"needs [0-9,]+ bytes of memory besides the mapped weights"
    ) as refused:
        export_bundle(deployment(), ["android"], tmp_path / "b", memory=1000, report=said.append)
    assert "--length" in refused.value.mend
    assert not any("lower" in line for line in said)
    with pytest.raises(ConfigError, match="target ios runs each program as a whole") as refused:
        export_bundle(deployment(), ["ios"], tmp_path / "b", memory=1 << 30)
    assert "android, onnx" in refused.value.mend
    assert "SDK for iOS" in refused.value.mend


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_a_bound_that_the_toolchain_does_not_keep_is_named(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfl_exporters.staging.peak", lambda _: 0)
    with pytest.raises(
        ConfigError, match=rf"plans [0-9,]+ bytes of memory on target {target}; allowed are 30,000"
    ):
        export_bundle(deployment(), [target], tmp_path / "b", memory=30_000)
    assert not (tmp_path / "b").exists()


def test_more_is_computed_again_where_the_toolchain_needs_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def too_much_at_first(*_: object) -> int:
        nonlocal asked
        asked += 1
        return 1 << (30 if asked <= 6 else 10)  # three programs, with each choice

    monkeypatch.setattr("pfl_exporters.lowering.onnx.memory", too_much_at_first)
    said: list[str] = []
    done = export_bundle(
        deployment(), ["android", "onnx"], tmp_path / "b", memory=16 << 20, report=said.append
    )
    assert sum("compute more again" in line for line in said) == 2
    assert asked == 9
    lowered = [line for line in said if line == "android: lower for XNNPACK"]
    assert len(lowered) == 2, "the target that refused is asked first"
    # nothing is compared before all targets fit
    compares = [n for n, line in enumerate(said) if line.endswith("loss and every gradient")]
    assert len(compares) == 2
    assert compares[0] > max(n for n, line in enumerate(said) if "lower" in line)
    assert max(error["grad_max_rel_err"] for error in done.errors.values()) < 1e-5
    assert Bundle.open(tmp_path / "b").manifest.measured.planned_memory_bytes <= 16 << 20


def test_what_is_computed_again_can_be_said(tmp_path: Path) -> None:
    kept = []
    for again in (Recompute.NOTHING, Recompute.ALL):
        done = export_bundle(deployment(), ["onnx"], tmp_path / again.value, recompute=again)
        written = (tmp_path / again.value / "parts/schedule.json").read_bytes()
        course = parse_schedule(written, done.manifest.programs).programs["gradients"]
        kept.append(sum(len(call.outputs) for call in course.calls))
    assert kept[1] < kept[0]
    with pytest.raises(ConfigError, match="with nothing computed again; allowed are") as refused:
        export_bundle(deployment(), ["onnx"], tmp_path / "b", recompute=Recompute.NOTHING, memory=30_000)
    assert "--recompute all" in refused.value.mend
    with pytest.raises(ConfigError, match="target ios runs each program as a whole"):
        export_bundle(deployment(), ["ios"], tmp_path / "b", recompute=Recompute.ALL)
    with pytest.raises(UnknownNameError, match="cannot compute 'atention' again") as unknown:
        Recompute.of("atention")
    assert "attention" in unknown.value.mend


def _chain() -> tuple[tuple[ProgramSpec, ...], Course]:
    def spec(name: str, size: int) -> TensorSpec:
        return TensorSpec(name=name, shape=(size,), dtype="float32")

    part = ProgramSpec(name="part", inputs=(spec("x", 4),), outputs=(spec("y", 4),))
    other = ProgramSpec(name="other", inputs=(spec("x", 4), spec("z", 4)), outputs=(spec("y", 2),))
    course = Course(
        calls=(
            PartCall(part="part", inputs=("input:a",), outputs=(0,)),
            PartCall(part="part", inputs=("value:0",), outputs=(1,)),
            PartCall(part="part", inputs=("value:1",), outputs=(2,)),
            PartCall(part="other", inputs=("value:0", "value:2"), outputs=(3,)),
        ),
        outputs=("value:3",),
    )
    return (part, other), course


def test_what_waits_between_calls_and_the_part_that_runs() -> None:
    parts, course = _chain()
    # at the third call values 0, 1 and 2 are there, at the fourth 0, 2 and 3
    assert waiting(course, parts, [100, 100, 100, 10]) == 3 * 16 + 100
    assert waiting(course, parts, [0, 0, 0, 200]) == 2 * 16 + 8 + 200


def test_the_memory_of_methods_lies_in_one_place() -> None:
    from pfl_exporters.lowering.executorch import _BYTES_OF_METHOD, _BYTES_OF_RUNTIME, memory

    parts, course = _chain()
    always = _BYTES_OF_RUNTIME + 2 * _BYTES_OF_METHOD
    # of the larger plan its own result is elsewhere
    arenas = {"part": 16 + 64, "other": 300}
    assert memory(arenas, {"part": [], "other": []}, parts, course) == 3 * 16 + 292 + always
    # all share the largest workspace
    assert memory(arenas, {"part": [50], "other": [20, 30]}, parts, course) == 3 * 16 + 292 + 50 + always


def test_a_workspace_that_grows_is_there_twice_for_a_moment() -> None:
    from pfl_exporters.lowering.executorch import memory

    parts, course = _chain()
    arenas = {"part": 0, "other": 0}
    largest_first = memory(arenas, {"part": [80, 50], "other": [10]}, parts, course)
    # at the first call, when one value waits
    assert memory(arenas, {"part": [50, 80], "other": [10]}, parts, course) == largest_first - 2 * 16 + 50
    # at the last one, when two wait and the result is made
    grown = memory(arenas, {"part": [80], "other": [100]}, parts, course)
    assert grown == largest_first - 16 + 8 + 100


def test_both_engines_say_what_a_step_takes(bundle: Bundle) -> None:
    for engine in bundle.manifest.engines.values():
        planned = {
            name: engine.measured[f"planned_{name}_bytes"] for name in ("gradients", "evaluate", "predict")
        }
        assert planned["gradients"] > planned["predict"] > 0


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3)), min_size=1, max_size=40))
def test_an_arena_takes_no_less_than_what_lies_in_it_and_is_one_hole_at_the_end(
    pieces: list[tuple[int, int]],
) -> None:
    """Of pieces with how many come and go before they go."""
    from pfl_exporters.lowering.onnx import _Arena

    arena, there, most = _Arena(), {}, 0
    for number, (size, stays) in enumerate(pieces):
        arena.take(str(number), size)
        there[number] = (size, number + stays)
        most = max(most, sum(-(-size // 256) * 256 for size, _ in there.values()))
        places = sorted(arena._taken.values())
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))
        for name in [n for n, (_, end) in there.items() if end <= number]:
            arena.give_back(str(name))
            del there[name]
    assert arena.touched >= most
    for name in there:
        arena.give_back(str(name))
    assert arena._holes == [(0, 1 << 60)]
    again = _Arena()
    for number, (size, _) in enumerate(pieces):
        again.take(str(number), size)
        again.give_back(str(number))
    assert again.touched == max(-(-size // 256) * 256 for size, _ in pieces)
