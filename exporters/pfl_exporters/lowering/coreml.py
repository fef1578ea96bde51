"""Core ML: ML Programs whose functions share the frozen weights, each stored once.

Core ML names what goes in and out and does not number it, and takes fewer names than PyTorch gives: inputs are called
``in_0``, ``in_1`` and so on, outputs ``out_0`` and so on, in the order of the manifest. It has no whole numbers of 64
bits: ids go in and out as int32.

coremltools translates operator by operator. What it binds wrongly or refuses is written in other operators first
(``FORMS``), and of its passes only those are run that a program needs; the compiler on the phone has its own.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil import mil
from coremltools.converters.mil.converter import mil_convert
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from torch import Tensor, fx

from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.programs.simplify import annotate
from pfl_mobile.programs.trace import TracedProgram

from .expand import Choice, Form, convolution, expand, layer_norm, with_constant_weight
from .files import Lowered, Report
from .graphs import code_when_called, export_graph, shared_copy

_aten = torch.ops.aten

#: Where a package keeps its program and its weights.
_PROGRAM, _WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
#: Passes that a program cannot do without, or that save bytes or work at no risk for the numbers.
_PASSES = (
    "common::const_elimination",
    "common::sanitize_input_output_names",
    "common::remove_symbolic_reshape",
    "common::noop_elimination",
    "common::add_conv_transpose_output_shape",
    "common::expand_high_rank_reshape_and_transpose",
    "common::expand_dynamic_linear",
    "common::const_deduplication",
    "common::dedup_op_and_var_names",
    "common::dead_code_elimination",
)
#: Larger constants are not computed ahead: a second layout of a weight would be stored twice.
_FOLD_LIMIT = 4096


def _layer_norm(node: fx.Node) -> Form | None:
    """coremltools binds the first result only."""
    return layer_norm if any(user.args[1] for user in node.users) else None


def _convolution(node: fx.Node) -> Form | None:
    return None if with_constant_weight(node) else convolution


def _filled(node: fx.Node) -> Form:
    """Its ``full_like`` takes the type of the number, not of the tensor."""
    value = node.meta["val"]
    shape, dtype = list(value.shape), value.dtype

    def filled(_: Tensor, number: float, **__: Any) -> Tensor:
        return torch.full(shape, torch.tensor(number, dtype=dtype).item(), dtype=dtype)

    return filled


def _logical(form: Form) -> Choice:
    """Of flags, a bitwise operator is a logical one, which Core ML has."""
    return lambda node: form if node.meta["val"].dtype == torch.bool else None


#: What is written in other operators for Core ML.
FORMS: Mapping[Any, Choice] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.convolution.default: _convolution,
    _aten.full_like.default: _filled,
    _aten.bitwise_and.Tensor: _logical(torch.logical_and),
    _aten.bitwise_or.Tensor: _logical(torch.logical_or),
    _aten.bitwise_xor.Tensor: _logical(torch.logical_xor),
    _aten.bitwise_not.default: _logical(torch.logical_not),
}


@contextmanager
def _toolchain() -> Iterator[None]:
    """Keep the toolchain's own warnings and bars, which name its internals, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), code_when_called():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _prepared(program: TracedProgram) -> fx.GraphModule:
    """The graph in operators that coremltools has right, with inputs named by their number."""
    graph = shared_copy(program.graph)
    annotate(graph, list(program.inputs.values()))
    expand(graph, FORMS)
    for number, node in enumerate(n for n in graph.graph.nodes if n.op == "placeholder"):
        node.target = node.name = f"in_{number}"
    graph.recompile()
    return graph


def _pipeline() -> ct.PassPipeline:
    pipeline = ct.PassPipeline(list(_PASSES), "programs")
    pipeline.set_options("common::const_elimination", {"skip_const_by_size": str(_FOLD_LIMIT)})
    return pipeline


def _function(program: TracedProgram, system: Any) -> Any:
    """The program in Core ML's intermediate language.

    Raises:
        UnsupportedOperatorError: coremltools has no translation of an operator.
    """
    exported = export_graph(program, _prepared(program)).run_decompositions({})
    try:
        return ct.convert(
            exported,
            convert_to="milinternal",
            minimum_deployment_target=system,
            compute_precision=ct.precision.FLOAT32,
            outputs=[ct.TensorType(name=f"out_{i}") for i in range(len(program.outputs))],
            pass_pipeline=_pipeline(),
        )
    except Exception as error:  # its own errors share no base
        raise UnsupportedOperatorError(
            f"Core ML cannot express program {program.name!r}: {type(error).__name__}: {error}",
            mend="express the operator in other PyTorch operators, or export with --engine executorch or "
            "--engine onnxruntime, which run on iOS too",
        ) from error


def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``coreml/model.mlpackage`` with one function for each program.

    Raises:
        ExportError: a program cannot be exported.
        UnsupportedOperatorError: Core ML has no form of an operator.
    """
    system = ct.target.iOS18
    whole = mil.Program()
    with _toolchain():
        for name, program in programs.items():
            report(f"ios: {name}")
            whole.add_function(name, _function(program, system).functions["main"])
        report("ios: share the weights and write")
        PASS_REGISTRY["common::const_deduplication"]._deduplicate_const_across_functions(whole)
        whole.default_function_name = next(iter(programs))
        whole.skip_all_passes = True
        whole.export_as_multifunction = True
        model = mil_convert(
            whole,
            convert_to="mlprogram",
            convert_from="milinternal",
            specification_version=system.value,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )
        place = folder / "coreml" / "model.mlpackage"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        model.save(str(place))
    inner = {"package": "Manifest.json", "model": _PROGRAM, "weights": _WEIGHTS}
    files = {use: f"coreml/model.mlpackage/{path}" for use, path in inner.items()}
    paths = {path: folder / path for path in files.values()}
    measured = {"model_bytes": sum(path.stat().st_size for path in paths.values())}
    return Lowered(files, paths, measured, at_least="18.0")
