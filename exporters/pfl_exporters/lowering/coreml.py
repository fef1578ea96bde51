"""Core ML: ML Programs whose functions share the frozen weights, each stored once.

Core ML names what goes in and out and does not number it, and takes fewer names than PyTorch gives: inputs are called
``in_0``, ``in_1`` and so on, outputs ``out_0`` and so on, in the order of the manifest. It has no whole numbers of 64
bits: ids go in and out as int32.

coremltools translates operator by operator. What it binds wrongly or refuses is written in other operators first
(``FORMS``), and of its passes only those are run that a program needs; the compiler on the phone has its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil import mil
from coremltools.converters.mil.backend.mil import load as backend
from coremltools.converters.mil.frontend.torch import ops as frontend
from coremltools.converters.mil.mil.passes import pass_pipeline
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from torch import Tensor, fx
from torch._export.verifier import Verifier

from pfl_mobile.errors import ExportError, UnsupportedOperatorError
from pfl_mobile.programs.simplify import annotate
from pfl_mobile.programs.trace import TracedProgram

from . import mixed
from .expand import Choice, Form, convolution, expand, layer_norm, with_constant_weight
from .files import Lowered, Report
from .graphs import code_when_called, export_graph, shared_copy
from .quiet import quiet

_aten = torch.ops.aten

#: Where a package keeps its program and its weights.
_PROGRAM, _WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
#: Passes that a program cannot do without, or that save bytes or work at no risk for the numbers.
_PASSES = (
    "const_elimination",
    "sanitize_input_output_names",
    "remove_symbolic_reshape",
    "noop_elimination",
    "add_conv_transpose_output_shape",
    "expand_high_rank_reshape_and_transpose",
    "expand_dynamic_linear",
    "const_deduplication",
    "dedup_op_and_var_names",
    "dead_code_elimination",
)
#: After casts were put in.
_PASSES_AFTER_CASTS = (
    "cast_optimization",
    "const_deduplication",
    "dedup_op_and_var_names",
    "dead_code_elimination",
)
#: Larger constants are not computed ahead: a second layout of a weight would be stored twice.
_FOLD_LIMIT = 4096


@contextmanager
def _toolchain() -> Iterator[None]:
    """Without bars of its own for each program: its steps are ours to tell."""
    stock = frontend._tqdm, pass_pipeline.tqdm
    frontend._tqdm = pass_pipeline.tqdm = partial(stock[0], disable=True)
    try:
        with quiet(), code_when_called():
            yield
    finally:
        frontend._tqdm, pass_pipeline.tqdm = stock


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


def _prepared(program: TracedProgram, scale: float) -> fx.GraphModule:
    """The graph in operators that coremltools has right, with inputs named by their number."""
    graph = shared_copy(program.graph)
    annotate(graph, list(program.inputs.values()))
    expand(graph, FORMS)
    if scale != 1:
        mixed.scale_loss(graph, list(program.inputs).index("weight"), scale)
    for number, node in enumerate(n for n in graph.graph.nodes if n.op == "placeholder"):
        node.target = node.name = f"in_{number}"
    graph.recompile()
    return graph


def _pass(name: str) -> Any:
    """One of coremltools' passes. Its own way to run them checks the whole program before and after each, which takes
    longer than all else; here the interpreter checks what comes out."""
    found = PASS_REGISTRY[f"common::{name}"]
    if name == "const_elimination":
        found.skip_const_by_size = str(_FOLD_LIMIT)
    return found


def _function(program: TracedProgram, system: Any, scale: float) -> Any:
    """The program in Core ML's intermediate language.

    Raises:
        UnsupportedOperatorError: coremltools has no translation of an operator.
    """
    exported = export_graph(program, _prepared(program, scale))
    exported.graph_module.graph.eliminate_dead_code()  # results that nobody takes
    # its operators are those of a decomposed program, as they were traced as one
    exported = exported._update(exported.graph_module, exported.graph_signature, verifiers=[Verifier])
    try:
        return ct.convert(
            exported,
            convert_to="milinternal",
            minimum_deployment_target=system,
            compute_precision=ct.precision.FLOAT32,
            outputs=[ct.TensorType(name=f"out_{i}") for i in range(len(program.outputs))],
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
    except Exception as error:  # its own errors share no base
        raise UnsupportedOperatorError(
            f"Core ML cannot express program {program.name!r}: {type(error).__name__}: {error}",
            mend="express the operator in other PyTorch operators, or export with --engine executorch or "
            "--engine onnxruntime, which run on iOS too",
        ) from error


def _write(whole: Any, package: Path, version: int) -> dict[str, Path]:
    """Write a package and give its files by what they are for.

    By hand, so that equal programs give equal files: coremltools names the parts anew each time.
    """
    weights = package / _WEIGHTS
    weights.parent.mkdir(parents=True)
    model = backend.load(whole, str(weights.parent), specification_version=version, convert_to="mlprogram")
    program = package / _PROGRAM
    program.write_bytes(model.SerializeToString(deterministic=True))
    parts = {"model.mlmodel": program}
    if weights.exists():  # small constants stand in the program
        parts["weights"] = weights
    entries = {
        str(uuid.uuid5(uuid.NAMESPACE_OID, name)): {
            "author": "com.apple.CoreML",
            "description": f"CoreML Model {'Weights' if name == 'weights' else 'Specification'}",
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
        for name in parts
    }
    manifest = package / "Manifest.json"
    text = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": str(uuid.uuid5(uuid.NAMESPACE_OID, "model.mlmodel")),
    }
    manifest.write_text(json.dumps(text, indent=4))
    return {"package": manifest, **{use.removesuffix(".mlmodel"): path for use, path in parts.items()}}


def _converted(programs: Mapping[str, TracedProgram], system: Any, report: Report, scale: float = 1.0) -> Any:
    """One program of Core ML with a function for each of ours; the loss of ``gradients`` scaled inside."""
    whole = mil.Program()
    for name, program in programs.items():
        report(f"ios: {name}")
        whole.add_function(
            name, _function(program, system, scale if name == "gradients" else 1.0).functions["main"]
        )
    for each in _PASSES:
        _pass(each)(whole)
    return whole


def lower(
    programs: Mapping[str, TracedProgram], folder: Path, report: Report, *, together: bool = True
) -> Lowered:
    """Write ``coreml/model.mlpackage`` with one function for each program, or a package for each.

    Args:
        programs: by name.
        folder: to write to.
        report: told about each step.
        together: False for systems before iOS 18, which know one function only; the weights are then stored in each
            package that needs them.

    Raises:
        ExportError: a program cannot be exported.
        UnsupportedOperatorError: Core ML has no form of an operator.
    """
    place = folder / "coreml"
    shutil.rmtree(place, ignore_errors=True)
    files: dict[str, Path] = {}
    with _toolchain():
        if together:
            whole = _converted(programs, ct.target.iOS18, report)
            report("ios: share the weights and write")
            files = _write_together(whole, place / "model.mlpackage")
        else:
            for name, program in programs.items():
                one = _converted({"main": program}, ct.target.iOS17, report)
                written = _write(one, place / f"{name}.mlpackage", ct.target.iOS17.value)
                files |= {f"{use}.{name}": path for use, path in written.items()}
    return _lowered(folder, files)


def _write_together(whole: Any, package: Path, *, last: bool = True) -> dict[str, Path]:
    """Write a package of several functions; when it is the last one of a program, equal constants once."""
    if last:
        _pass("const_deduplication")._deduplicate_const_across_functions(whole)
    whole.default_function_name = next(iter(whole.functions))
    whole.export_as_multifunction = True
    return _write(whole, package, ct.target.iOS18.value)


def _lowered(folder: Path, files: Mapping[str, Path], precision: dict[str, Any] | None = None) -> Lowered:
    inner = {use: path.relative_to(folder).as_posix() for use, path in files.items()}
    measured = {"model_bytes": sum(path.stat().st_size for path in files.values())}
    return Lowered(inner, {inner[use]: path for use, path in files.items()}, measured, precision=precision)


def lower_mixed(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """As `lower`, with products in 16 bits where that is safe (see :mod:`.mixed`).

    Raises:
        ExportError: a program cannot be exported, or errs too much with even a few products in 16 bits.
        UnsupportedOperatorError: Core ML has no form of an operator.
    """
    place, gradients = folder / "coreml", programs["gradients"]
    report("ios: look for a scale of the loss")
    scale = mixed.loss_scale(gradients)
    fits: dict[str, float] | None = None
    errors = []
    for number in range(mixed.TRIES):
        with _toolchain():
            whole = _converted(programs, ct.target.iOS18, report, scale)
            if fits is None:
                report("ios: look which products fit 16 bits")
                with tempfile.TemporaryDirectory(prefix="pfl-full-") as full:
                    wide = mixed.read(_write_together(whole, Path(full) / "model.mlpackage", last=False))
                    fits = mixed.strains(wide, programs)
            halved = mixed.chosen(fits, number)
            mixed.halve(whole, halved)
            for each in _PASSES_AFTER_CASTS:
                _pass(each)(whole)
            shutil.rmtree(place, ignore_errors=True)
            report("ios: share the weights and write")
            files = _write_together(whole, place / "model.mlpackage")
        functions = mixed.read(files)
        errors.append(mixed.worst(functions, programs))
        if halved and errors[-1] <= mixed.LIMIT:
            apart = mixed.trained_apart(functions["gradients"], gradients, report)
            return _lowered(
                folder,
                files,
                {
                    "kind": "mixed",
                    "loss_scale": scale,
                    "products": len(halved),
                    "of_products": len(fits),
                    "tolerance": mixed.ALLOWED,
                    "steps": mixed.STEPS,
                    "trained_rel_err": apart,
                },
            )
    raise ExportError(
        f"in mixed precision an output is off by {min(errors):.2g} relative to its largest entry "
        f"(allowed {mixed.LIMIT:g})",
        mend="export with --target ios, which computes in 32 bits",
    )
