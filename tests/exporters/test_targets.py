"""Every backbone through every engine: loss and every gradient equal PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_exporters.export import frozen_bytes
from pfl_exporters.targets import resolve, with_engines
from pfl_exporters.verify import Case, cases, check_engine, check_traced, open_lowered, program_specs
from pfl_mobile.engines import arm64
from pfl_mobile.engines.isolated import ChildProcess
from pfl_mobile.errors import ConfigError, EngineUnavailableError
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from tests.exporters.models import DEPLOYMENTS


@cache
def traced(name: str) -> tuple[Deployment, dict[str, TracedProgram], list[Case]]:
    """A deployment, its programs and what PyTorch gives for them, made once for all targets."""
    torch.set_num_threads(1)
    d = DEPLOYMENTS[name]()
    predict = d.inputs_of_predict()
    programs = trace_programs(d.model, d.task, d.batch, predict)
    reference = cases(d.model, d.task, d.batch, predict)
    check_traced(programs, reference)
    return d, programs, reference


@pytest.fixture(scope="module")
def on_phones() -> Iterator[Callable[[str], ChildProcess]]:
    """One ARM64 process of each engine for all models: emulating the start of a runtime takes longer than a model."""
    children: dict[str, ChildProcess] = {}

    def child(engine: str) -> ChildProcess:
        if (
            engine not in children or children[engine].process is None
        ):  # the programs of another test ended it
            children[engine] = arm64.start_arm64(engine)
        return children[engine]

    yield child
    for each in children.values():
        each.close()


#: Models whose other two programs only compute what those of another model here do: the program with forward and
#: backward pass stands for them.
SAME_OUTPUTS = {
    "1-d cnn",
    "gru",
    "lstm",
    "encoder",
    "stock encoder",
    "decoder with prompt",
    "rmsnorm, rope, swiglu, gqa",
    "mixture of experts",
}


# the targets of a model one after the other, so that one process traces it once
@pytest.mark.parametrize(
    "target",
    ["onnx", "torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("android", "ios"))],
)
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_loss_and_every_gradient_equal_pytorch(
    name: str, target: str, tmp_path: Path, on_arm64: bool, on_phones: Callable[[str], ChildProcess]
) -> None:
    _, programs, reference = traced(name)
    if name in SAME_OUTPUTS:
        programs = {"gradients": programs["gradients"]}
        reference = [case for case in reference if case.program == "gradients"]
    (found,) = resolve([target])
    found.load()
    lowered = found.lower(programs, tmp_path, lambda _: None)
    with open_lowered(found, lowered, program_specs(programs)) as session:
        errors = [check_engine(session, reference)]
    if on_arm64 and found.engine in arm64.engines():
        files = {use: str(lowered.paths[inner]) for use, inner in lowered.files.items()}
        with arm64.open_arm64(
            found.engine, files, program_specs(programs), child=on_phones(found.engine)
        ) as session:
            errors.append(check_engine(session, reference))
    for error in errors:
        assert error["loss_rel_err"] < 1e-5
        assert error["grad_max_rel_err"] < 1e-5


def test_onnx_programs_share_one_weight_file(tmp_path: Path) -> None:
    d, programs, _ = traced("decoder with sdpa")
    (target,) = resolve(["onnx"])
    target.load()
    lowered = target.lower(programs, tmp_path, lambda _: None)
    big = sum(v.numel() * 4 for v in d.model.frozen_tensors().values() if v.numel() * 4 >= 1024)
    stored = lowered.paths["onnx/weights.bin"].stat().st_size
    assert big <= stored < big + 4096 * 40  # offsets are page-aligned


def test_weights_of_one_place_and_equal_ones_of_others_are_written_once(tmp_path: Path) -> None:
    from onnxscript import ir
    from torch.onnx._internal.exporter._core import TorchTensor

    from pfl_exporters.lowering.onnx import ALIGNMENT, _WeightFile

    weights = _WeightFile(tmp_path / "weights.bin")
    x = torch.randn(300, 2)
    given = [x, x, x.clone(), x.t(), x[:, :1], x.bfloat16(), torch.arange(600)]
    moved = []
    for number, tensor in enumerate(given):
        # as the exporter makes them: gone, and their memory free for others, as soon as they are written
        moved.append(
            weights.move(f"w{number}", TorchTensor(tensor.contiguous() + 0 if number > 3 else tensor))
        )
    weights.finish()
    assert [m.offset // ALIGNMENT for m in moved] == [0, 0, 0, 1, 2, 3, 4]
    for entry, tensor in zip(moved, given, strict=True):
        found = ir.ExternalTensor(
            entry.location,
            entry.offset,
            entry.length,
            entry.dtype,
            shape=entry.shape,
            name="w",
            base_dir=tmp_path,
        )
        assert np.array_equal(found.numpy(), TorchTensor(tensor).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android", "ios"])
def test_every_frozen_weight_is_stored_once(target: str, tmp_path: Path) -> None:
    """Also one that the embedding and the output share: three methods, both directions, one copy."""
    from pfl_mobile import LoRA
    from pfl_mobile.modules.personalize import personalize
    from pfl_mobile.programs.tasks import TokenTask
    from tests.backbones import Decoder
    from tests.exporters.models import PLAN

    torch.manual_seed(0)
    backbone = Decoder(vocabulary=20000, width=128, heads=4, tied=True).eval()
    x = torch.randint(4, 20000, (2, 8))
    d = Deployment(
        "tied",
        personalize(backbone, [LoRA("*.attn.[qv]", rank=2)]),
        TokenTask(20000),
        {"tokens": x, "labels": x.roll(-1, 1), "weight": torch.ones(2, 8)},
        PLAN,
        predict_batch={"tokens": x[:1], "position": torch.tensor([3])},
    )
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    needed = frozen_bytes(programs)
    assert needed == pytest.approx(4 * sum(p.numel() for p in backbone.parameters()), rel=0.01)
    (found,) = resolve([target])
    found.load()
    lowered = found.lower(programs, tmp_path, lambda _: None)
    assert lowered.measured["model_bytes"] <= 1.05 * needed
    with open_lowered(found, lowered, program_specs(programs)) as session:
        check_engine(session, cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=1))


def test_unknown_targets_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'android'"):
        resolve(["androi"])


def test_all_means_every_engine_once() -> None:
    assert [t.name for t in resolve(["onnx", "all"])] == ["onnx", "android", "ios", "torch"]
    assert [t.name for t in resolve(["ios17", "all", "onnx"])] == ["ios17", "android", "onnx", "torch"]


def test_two_targets_of_one_engine_are_refused() -> None:
    with pytest.raises(ConfigError, match="'ios' and 'ios17' both make the files of engine 'coreml'"):
        resolve(["ios", "ios17"])


def test_other_engines_of_a_targets_systems_come_along() -> None:
    def names(targets: list[str], engines: list[str]) -> list[str]:
        return [t.name for t in with_engines(resolve(targets), engines)]

    assert names(["ios"], ["onnxruntime", "executorch"]) == ["ios", "onnx", "android"]
    assert names(["ios17"], ["coreml"]) == ["ios17"]
    assert names(["android", "ios"], ["onnxruntime", "executorch"]) == ["android", "ios", "onnx"]
    with pytest.raises(ConfigError, match="'coreml' does not run on the systems of android") as caught:
        names(["android"], ["coreml"])
    assert caught.value.mend == "choose of executorch, onnxruntime, or name target 'ios'"
    with pytest.raises(EngineUnavailableError, match="did you mean 'onnxruntime'"):
        names(["ios"], ["onnxruntim"])
