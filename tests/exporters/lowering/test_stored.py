"""Weights of few bits in the files of each engine: right, in one copy, small, and read as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from executorch.runtime import Runtime
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from pfl_exporters.export import ExportReport, export_bundle
from pfl_exporters.lowering import executorch as executorch_target
from pfl_exporters.lowering import onnx as onnx_target
from pfl_exporters.lowering.obstacles import sample, uses
from pfl_exporters.lowering.stored import has_stored, in_plain_operators
from pfl_mobile.bundle.read import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.engines.coreml.wire import read_program
from pfl_mobile.errors import ConfigError
from pfl_mobile.programs.simplify import annotate
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from pfl_mobile.programs.weights import DEQUANTIZE, DEQUANTIZE_PACKED, dequantize, pack
from tests.programs.test_weights import mixed

WORDS, WIDTH = 4096, 64
#: Bytes of programs without weights, all three of them together.
GRAPHS = 120_000


@dataclass(frozen=True)
class Exported:
    """A model of each kind of layer, for all engines."""

    weights: str
    folder: Path
    report: ExportReport


@pytest.fixture(scope="module", params=["int8", "int4"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Every output and gradient was compared with PyTorch's, or there would be none."""
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    report = export_bundle(mixed(request.param, WORDS, WIDTH), ["onnx", "android", "ios"], folder)
    return Exported(request.param, folder, report)


def test_all_engines_agree_with_pytorch_in_float32(exported: Exported) -> None:
    assert set(exported.report.errors) == {"onnxruntime", "executorch", "coreml-reference"}
    for errors in exported.report.errors.values():
        assert max(errors.values()) < 1e-5


def test_files_are_small_with_one_copy_of_the_numbers(exported: Exported) -> None:
    """The table alone is 1 MB in float32, is embedded and multiplied with, forward and backward, by three programs."""
    whole = 4 * (WORDS * WIDTH + 5 * WIDTH * WIDTH)
    most = {"int8": 0.30, "int4": 0.18}[exported.weights]
    for name, entry in exported.report.manifest.engines.items():
        # XNNPACK has the convolution in float32, once for forward and once for backward
        left = 2 * 4 * 3 * WIDTH * WIDTH if name == "executorch" else 0
        assert entry.measured["model_bytes"] < most * whole + left + GRAPHS, name


def test_the_distance_is_told(exported: Exported) -> None:
    found, told = exported.report.manifest.weights, exported.report.to_json()["weights"]
    assert found is not None
    assert found.kind == exported.weights
    assert found.group == (32 if exported.weights == "int4" else None)
    assert set(found.tensors) == {"embed.weight", "twice.weight", "conv.weight", "turned.weight"}
    assert found.tensors == {name: tensor["rel_err"] for name, tensor in told["tensors"].items()}
    low, high = {"int8": (0.001, 0.02), "int4": (0.02, 0.2)}[exported.weights]
    assert low < found.tensors["embed.weight"] < high
    assert found.output_rel_err is not None
    assert low / 10 < found.output_rel_err < high * 2
    assert found.loss != found.loss_float32
    assert abs(found.loss - found.loss_float32) < 0.1 * found.loss_float32
    bits = {"int8": 8, "int4": 4}[exported.weights]
    numbers = WORDS * WIDTH + 2 * WIDTH * WIDTH
    assert exported.report.frozen_bytes > numbers * bits // 8
    assert exported.report.frozen_bytes < numbers * bits // 8 * 1.4 + 20_000


def test_onnx_runtime_reads_a_weight_anew_for_each_use_and_rounds_no_activation(
    exported: Exported, tmp_path: Path
) -> None:
    """It takes two equal steps for one, which would keep every weight in float32 from forward to backward; and some
    products with weights of few bits for ones of 8 bits on both sides."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(exported.folder / "onnx/gradients.onnx"), options)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert not {"MatMulNBits", "MatMulInteger", "DynamicQuantizeLinear"} & set(kinds)
    read = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    for node in read:
        assert sum(node.output[0] in user.input for user in graph.node) == 1
    # once forward, once backward at least: the output's table, the layer that is called twice, and the turned one
    assert len(read) >= 6
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in floats) <= max(WORDS * WIDTH // 32, WORDS)


def test_core_ml_reads_constants_that_the_system_makes(exported: Exported) -> None:
    package = exported.folder / "coreml/model.mlpackage/Data/com.apple.CoreML"
    functions = read_program(str(package / "model.mlmodel"), str(package / "weights/weight.bin"))
    for function in functions.values():
        made = [o for o in function.operations if o.type == "constexpr_blockwise_shift_scale"]
        assert len(made) == 4
        constants = [o.value for o in function.operations if o.type == "const"]
        large = [c for c in constants if isinstance(c, np.ndarray) and c.size >= WIDTH * WIDTH]
        assert all(c.dtype == np.int8 or c.size <= WORDS * WIDTH // 32 for c in large)


@pytest.mark.parametrize("engine", ["onnxruntime", "executorch"])
def test_a_bundle_trains_with_its_golden_numbers(exported: Exported, engine: str) -> None:
    bundle = Bundle.open(exported.folder)
    golden = bundle.golden()["gradients"]
    with open_session(bundle, engine, trusted=True) as session:
        got = session.run("gradients", golden.inputs)
    for name, want in golden.outputs.items():
        np.testing.assert_allclose(got[name], want, atol=2e-4 * max(1e-6, float(np.abs(want).max())))


def test_the_reference_target_multiplies_in_operators_of_pytorch() -> None:
    d = mixed("int4")
    with d.stored():
        programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    program = programs["gradients"]
    plain = in_plain_operators(program)
    assert has_stored(program.graph)
    assert not has_stored(plain.graph)
    want = program.run(program.inputs)
    for name, value in plain.run(plain.inputs).items():
        np.testing.assert_allclose(value, want[name], rtol=1e-6)
    # as an obstacle is looked for, a weight of few bits counts as a constant
    graph = sample(uses(programs)).graph
    assert not has_stored(graph)


@pytest.mark.parametrize(
    ("target", "weights"), [("ios17", "int4"), ("ios-mixed", "int8"), ("ios-mixed", "int4")]
)
def test_a_target_that_lacks_them_says_so_before_anything_is_traced(target: str, weights: str) -> None:
    d = replace(mixed(weights), batch={})  # which a trace would refuse
    with pytest.raises(ConfigError, match=f"target '{target}' takes no weights of {weights}") as refused:
        export_bundle(d, [target], "nowhere")
    assert "android" in refused.value.mend
    assert "ios" in refused.value.mend


@pytest.mark.parametrize("groups", [2, 3])
def test_each_byte_is_unpacked_exactly(groups: int, tmp_path: Path) -> None:
    """The scales tell groups apart; with three of them the second lies in both halves of a row."""
    packed = torch.arange(-128, 128).repeat(groups).reshape(16, -1).to(torch.int8)
    scales = torch.rand(16, groups, generator=torch.Generator().manual_seed(0)) + 0.5
    graph = fx.Graph()
    given = [graph.placeholder(name) for name in ("packed", "scales")]
    graph.output((graph.call_function(DEQUANTIZE_PACKED, tuple(given)),))
    module = fx.GraphModule({}, graph)
    annotate(module, (packed, scales))
    program = TracedProgram("unpack", module, {"packed": packed, "scales": scales}, ("weight",), ())
    want = program.run(program.inputs)["weight"]
    assert len(np.unique(np.round(want / np.repeat(scales.numpy(), 32, 1)))) == 16
    onnx_target.lower({"unpack": program}, tmp_path, lambda _: None)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/unpack.onnx"))
    (got,) = session.run(None, {"packed": packed.numpy(), "scales": scales.numpy()})
    np.testing.assert_array_equal(got, want)
    executorch_target.lower({"unpack": program}, tmp_path, lambda _: None)
    method = Runtime.get().load_program(tmp_path / "model.pte").load_method("unpack")
    np.testing.assert_array_equal(method.execute([packed, scales])[0].numpy(), want)


def stored(rows: int, groups: int, size: int) -> tuple[Tensor, Tensor]:
    """Numbers of 4 bits and scales of a weight [rows, groups * size]."""
    torch.manual_seed(rows + groups)
    return torch.randint(-8, 8, (rows, groups * size), dtype=torch.int8), torch.rand(rows, groups) + 0.5


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([2, 16, 18]), st.integers(1, 4))
def test_halves_multiply_as_the_whole_weight_does(rows: int, pairs: int, size: int, count: int) -> None:
    numbers, scales = stored(rows, 2 * pairs, size)
    weight = dequantize(numbers, scales).double()
    columns = weight.shape[1]
    for (operator, place), form in executorch_target._IN_HALVES.items():
        left, right = {
            (torch.ops.aten.linear.default, 0): (weight, torch.randn(count, columns)),
            (torch.ops.aten.linear.default, 1): (torch.randn(count, 3, columns), weight),
            (torch.ops.aten.mm.default, 0): (weight, torch.randn(columns, count)),
            (torch.ops.aten.mm.default, 1): (torch.randn(count, rows), weight),
        }[operator, place]
        got = form(pack(numbers), scales, (right, left)[place])
        want = operator(left.double(), right.double())
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.slow  # lowers
@pytest.mark.parametrize("weights", ["float32", "int8", "int4 in halves", "int4 in three groups"])
@pytest.mark.parametrize("count", [1, 70])
def test_a_large_weight_that_is_given_multiplies_in_the_delegate(
    weights: str, count: int, tmp_path: Path
) -> None:
    """Forward on either side, as there are few or many rows of x, and backward; nothing puts halves side by side."""
    numbers, scales = stored(288, 3 if "three" in weights else 4, 64)
    if weights == "int8":
        scales = scales[:, :1].contiguous()
    weight = dequantize(numbers, scales)
    given_ = {
        "float32": {"weight": weight},
        "int8": {"numbers": numbers, "scales": scales},
    }.get(weights, {"packed": pack(numbers), "scales": scales})
    values = given_ | {"x": torch.randn(count, weight.shape[1]), "g": torch.randn(count, 288)}
    graph = fx.Graph()
    placed = {name: graph.placeholder(name) for name in values}
    stored_ = [placed[name] for name in given_]

    def read() -> fx.Node:
        if weights == "float32":
            return placed["weight"]
        bits = (8,) if weights == "int8" else ()
        return graph.call_function(DEQUANTIZE if bits else DEQUANTIZE_PACKED, (*stored_, *bits))

    forward = graph.call_function(torch.ops.aten.linear.default, (placed["x"], read()))
    backward = graph.call_function(torch.ops.aten.mm.default, (placed["g"], read()))
    graph.output((forward, backward))
    module = fx.GraphModule({}, graph)
    annotate(module, tuple(values.values()))
    program = TracedProgram("multiply", module, values, ("y", "dx"), ())
    lowered = executorch_target.lower({"multiply": program}, tmp_path, lambda _: None)
    method = Runtime.get().load_program(lowered.paths["model.pte"]).load_method("multiply")
    got = method.execute(list(values.values()))
    torch.testing.assert_close(got[0], values["x"] @ weight.T, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(got[1], values["g"] @ weight, rtol=1e-5, atol=1e-3)
    file = lowered.paths["model.pte"].read_bytes()
    assert b"aten::mm" not in file
    assert (b"aten::cat" in file) is False


def test_a_weight_times_itself_stays_whole() -> None:
    numbers, scales = stored(64, 2, 32)
    graph = fx.Graph()
    given_ = [graph.placeholder(name) for name in ("packed", "scales")]
    weight = graph.call_function(DEQUANTIZE_PACKED, tuple(given_))
    graph.output((graph.call_function(torch.ops.aten.mm.default, (weight, weight)),))
    module = fx.GraphModule({}, graph)
    annotate(module, (pack(numbers), scales))
    executorch_target._multiply_halves(module)
    whole = dequantize(numbers, scales)
    torch.testing.assert_close(module(pack(numbers), scales)[0], whole @ whole)
