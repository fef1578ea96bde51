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
import numpy as np
import torch
from coremltools.converters.mil import converter, mil
from coremltools.converters.mil.backend.mil import load as backend
from coremltools.converters.mil.frontend.torch import ops as frontend
from coremltools.converters.mil.frontend.torch.torch_op_registry import (
    _TORCH_OPS_REGISTRY,
    register_torch_op,
)
from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from coremltools.converters.mil.mil.passes import pass_pipeline
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from torch import Tensor, fx
from torch._export.verifier import Verifier

from pfl_mobile.engines.coreml.wire import Function
from pfl_mobile.errors import ExportError, UnsupportedOperatorError
from pfl_mobile.programs.forms.recurrences import LAYERS, loop_of
from pfl_mobile.programs.simplify import annotate, copied, shape
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE

from . import mixed
from .expand import (
    Choice,
    Form,
    convolution,
    elu,
    expand,
    expm1,
    group_norm,
    hardtanh,
    inverse_root,
    layer_norm,
    log1p,
    log_softmax,
    reciprocal,
    tanh_gelu,
    unroll,
    whole_clamp,
    with_alpha,
    with_constant_weight,
)
from .files import Lowered, Report
from .graphs import code_when_called, export_graph
from .obstacles import Obstacle, first_line, refused, uses, without
from .quiet import quiet

_aten = torch.ops.aten

#: What else there is on iOS.
ELSEWHERE = "or export with --target onnx or --target android, whose engines run on iOS too"
#: Where a package keeps its program and its weights.
_PROGRAM, _WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
#: Passes that a program cannot do without, or that save bytes or work at no risk for the numbers.
_PASSES = (
    "const_elimination",
    "sanitize_input_output_names",
    "remove_symbolic_reshape",
    "add_conv_transpose_output_shape",
    "expand_high_rank_reshape_and_transpose",
    "expand_dynamic_linear",
    "guard_negative_gather_indices",
    "const_deduplication",
    "dedup_op_and_var_names",
    "dead_code_elimination",
)
#: Steps of recurrent layers in one program, forward and backward and of all layers: 1000 take a minute.
MOST_STEPS = 1200
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
    """Without bars of its own for each program: its steps are ours to tell. Names are counted anew, which a conversion
    that failed before would leave where they were."""
    converter._reset_conversion_state()
    stock = frontend._tqdm, pass_pipeline.tqdm
    frontend._tqdm = pass_pipeline.tqdm = partial(stock[0], disable=True)
    try:
        with quiet(), code_when_called():
            yield
    finally:
        frontend._tqdm, pass_pipeline.tqdm = stock


def _layer_norm(node: fx.Node) -> Form | None:
    """coremltools binds the first result only, and takes constant scales and shifts only."""
    computed = any(isinstance(n, fx.Node) and n.op != "get_attr" for n in node.args[2:4])
    return layer_norm if computed or any(user.args[1] for user in node.users) else None


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
    """Of flags only: a bitwise operator is a logical one, which Core ML has."""
    return lambda node: form if node.meta["val"].dtype == torch.bool else None


def _gathered_flags(x: Tensor, dim: int, index: Tensor, **_: Any) -> Tensor:
    """Core ML gathers numbers only."""
    return torch.gather(x.to(torch.int32), dim, index) != 0


def _with_alpha(node: fx.Node) -> Form | None:
    """coremltools drops the factor of the second operand."""
    return None if node.kwargs.get("alpha", 1) == 1 else with_alpha(node.target)


def _gelu(node: fx.Node) -> Form | None:
    """coremltools drops which gelu it is."""
    return tanh_gelu if node.kwargs.get("approximate", "none") == "tanh" else None


def _clamp(node: fx.Node) -> Form | None:
    """Whole numbers stay whole: Core ML clamps real ones only, and its toolchain makes them real without a word."""
    return None if node.meta["val"].is_floating_point() else whole_clamp


def _between(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:  # noqa: A002
    """Its ``clamp`` by tensors takes the wrong bound where the lower one is above the upper one."""
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _always(form: Form) -> Choice:
    return lambda _: form


#: What is written in other operators for Core ML.
FORMS: Mapping[Any, Choice] = {
    _aten.clamp.default: _clamp,
    _aten.clamp_min.default: _clamp,
    **dict.fromkeys((_aten.add.Tensor, _aten.sub.Tensor, _aten.add.Scalar, _aten.sub.Scalar), _with_alpha),
    _aten.gelu.default: _gelu,
    _aten.elu.default: _always(elu),
    _aten.clamp.Tensor: _always(_between),
    # Core ML adds a little to what it takes the inverse or the logarithm of
    _aten.reciprocal.default: _always(reciprocal),
    _aten.rsqrt.default: _always(inverse_root),
    _aten._log_softmax.default: _always(log_softmax),
    _aten.log1p.default: _always(log1p),
    _aten.expm1.default: _always(expm1),
    _aten.hardtanh.default: _always(hardtanh),
    _aten.native_group_norm.default: _always(group_norm),
    _aten.native_layer_norm.default: _layer_norm,
    _aten.convolution.default: _convolution,
    _aten.full_like.default: _filled,
    _aten.bitwise_and.Tensor: _logical(torch.logical_and),
    _aten.bitwise_or.Tensor: _logical(torch.logical_or),
    _aten.bitwise_xor.Tensor: _logical(torch.logical_xor),
    _aten.bitwise_not.default: _logical(torch.logical_not),
    _aten.gather.default: _logical(_gathered_flags),
}


def _prepared(program: TracedProgram, scale: float) -> fx.GraphModule:
    """The graph in operators that coremltools has right, with inputs named by their number."""
    for obstacle in _too_long({program.name: program}):
        raise UnsupportedOperatorError(
            f"Core ML does not take {obstacle.operator} in program {program.name!r}: {obstacle.why}",
            mend=f"give the layer fewer steps, {ELSEWHERE}",
        )
    graph = copied(program.graph)
    annotate(graph, list(program.inputs.values()))
    for name, value in program.inputs.items():
        if not value.dim():
            raise UnsupportedOperatorError(
                f"input {name!r} of program {program.name!r} is a single number, which Core ML does not take",
                mend="give it shape [1]",
            )
    unroll(graph)
    expand(graph, FORMS)
    _check_options(program.name, graph)
    _outputs_of_their_own(graph)
    if scale != 1:
        mixed.scale_loss(graph, list(program.inputs).index("weight"), scale)
    for number, node in enumerate(n for n in graph.graph.nodes if n.op == "placeholder"):
        node.target = node.name = f"in_{number}"
    graph.recompile()
    return graph


def _read_stored(context: Any, node: Any) -> None:
    """A weight of few bits, as coremltools calls it: a constant that the system makes of numbers and scales."""
    numbers, scales, bits = frontend._get_inputs(context, node)
    kind = types.np_int4_dtype if bits.val == 4 else np.int8
    data, scale = numbers.val.astype(kind), scales.val.astype(np.float32)
    if is_current_opset_version_compatible_with(ct.target.iOS18):
        shape = (*scale.shape, *(1,) * (data.ndim - scale.ndim))
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scale.reshape(shape), name=node.name)
    elif bits.val == 4:
        raise ValueError("systems before iOS 18 have no weights of 4 bits")
    else:
        weight = mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=np.int8(0), scale=scale.reshape(-1), axis=0, name=node.name
        )
    context.add(weight)


register_torch_op(_read_stored, torch_alias=[sanitize_op_kind(DEQUANTIZE.name())], override=True)


#: Options that coremltools reads, or that do not change a number.
_READ = frozenset(
    {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "rounding_mode"}
)


def _check_options(program: str, graph: fx.GraphModule) -> None:
    """coremltools drops options of operators without a word, so only known ones may be left.

    Raises:
        UnsupportedOperatorError: another one has a value that is not its default.
    """
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        defaults = {a.name: a.default_value for a in node.target._schema.arguments}
        for name, value in node.kwargs.items():
            if name not in _READ and value is not None and value != defaults.get(name):
                raise UnsupportedOperatorError(
                    f"Core ML cannot express {node.target} with {name}={value!r} in program {program!r}",
                    mend=f"write it without that option, {ELSEWHERE}",
                )
        constants = [getattr(graph, s.target) for s in node.all_input_nodes if s.op == "get_attr"]
        largest = [int(c.abs().max()) for c in constants if c.dtype == torch.int64 and c.numel()]
        if "slice" not in node.target.name():  # whose end may be as far as there are numbers
            largest += [abs(a) for a in node.args if isinstance(a, int)]
        if max(largest, default=0) >= 2**31:
            raise UnsupportedOperatorError(
                f"program {program!r} has a constant beyond 32 bits, which Core ML does not have",
                mend=f"use smaller numbers, {ELSEWHERE}",
            )


def _outputs_of_their_own(graph: fx.GraphModule) -> None:
    """An input or a constant that is an output, or one value that is two, gets a step of its own, in place."""
    output = next(n for n in graph.graph.nodes if n.op == "output")
    seen: set[fx.Node] = set()
    results = []
    for node in output.args[0]:
        if node in seen or node.op in ("placeholder", "get_attr"):
            with graph.graph.inserting_before(output):
                node = graph.graph.call_function(_aten.add.Tensor, (node, 0))
        seen.add(node)
        results.append(node)
    output.args = (tuple(results),)


def check_functions(functions: Mapping[str, Function]) -> None:
    """Refuse what Core ML does not run, though it is written without a word.

    Raises:
        UnsupportedOperatorError: a tensor has more than five dimensions or one of length 0, or an output is a single
            number or flags.
    """
    for name, function in functions.items():
        for operation in function.operations:
            for what, kind in operation.outputs:
                if kind is not None and (len(kind.shape) > 5 or 0 in kind.shape):
                    raise UnsupportedOperatorError(
                        f"Core ML runs no tensor of shape {list(kind.shape)}: {operation.type} {what!r} of {name!r}",
                        mend=f"use at most five dimensions, none of them 0, {ELSEWHERE}",
                    )
                if what in function.outputs and kind is not None and (not kind.shape or kind.dtype == "bool"):
                    shown = "flags" if kind.dtype == "bool" else "a single number"
                    raise UnsupportedOperatorError(
                        f"{name!r} gives {shown}, which Core ML does not: {operation.type}",
                        mend=f"give numbers of shape [1] or more, {ELSEWHERE}",
                    )


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
    try:
        # its operators are those of a decomposed program, as they were traced as one
        exported = exported._update(exported.graph_module, exported.graph_signature, verifiers=[Verifier])
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
            f"Core ML cannot express program {program.name!r}: {first_line(error)}",
            mend=f"express the operator in other PyTorch operators, {ELSEWHERE}",
        ) from error


def written_out(program: TracedProgram) -> list[tuple[fx.Node, int]]:
    """Recurrent operators and the steps of each; Core ML's translator has no loops, so each step stands in the file."""
    nodes = program.graph.graph.nodes
    loops = [(node, loop_of(node.target, node.args)) for node in nodes]
    return [(node, shape(loop.steps[0])[0]) for node, loop in loops if loop is not None]


def _too_long(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """Programs of more recurrent steps than can be written out."""
    found = []
    for name, program in programs.items():
        loops = written_out(program)
        total = sum(steps for _, steps in loops)
        if total > MOST_STEPS:
            node = max(loops, key=lambda loop: loop[1])[0]
            why = (
                f"it has no loops, so each of the program's {total} recurrent steps would stand in the file, and "
                f"{MOST_STEPS} are what it takes: make the rows shorter"
            )
            found.append(Obstacle(name, node.name, LAYERS[node.target], why))
    return found


def missing(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """The operators that coremltools has no translation for, looked up in its registry, and loops that are too long;
    nothing is lowered."""
    known = _TORCH_OPS_REGISTRY.name_to_func_mapping
    found = _too_long(programs)
    for use in uses(programs):
        target: Any = use.node.target
        if target in FORMS and FORMS[target](use.node) is not None:
            continue
        if isinstance(target, torch._ops.OpOverload) and sanitize_op_kind(target.name()) not in known:
            found.append(use.obstacle("coremltools has no translation of it"))
    return found


def trial(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """What coremltools refuses: one use of each operator is translated."""

    def attempt(program: TracedProgram) -> None:
        with _toolchain():
            _function(program, ct.target.iOS18, 1.0)

    found = missing(programs)
    return found + [
        use.obstacle(f"coremltools refuses it: {first_line(error)}")
        for use, error in refused(without(uses(programs), found), attempt)
    ]


def _write(whole: Any, package: Path, version: int) -> dict[str, Path]:
    """Write a package and give its files by what they are for.

    By hand, so that equal programs give equal files: coremltools names the parts anew each time.
    """
    weights = package / _WEIGHTS
    weights.parent.mkdir(parents=True)
    try:
        model = backend.load(
            whole, str(weights.parent), specification_version=version, convert_to="mlprogram"
        )
    except (NotImplementedError, ValueError, TypeError) as error:
        raise UnsupportedOperatorError(
            f"Core ML has no place for the programs' inputs or outputs: {error}",
            mend=f"give float32 or int64 tensors, {ELSEWHERE}",
        ) from error
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
    written = {"package": manifest, **{use.removesuffix(".mlmodel"): path for use, path in parts.items()}}
    check_functions(mixed.read(written))
    return written


def _converted(programs: Mapping[str, TracedProgram], system: Any, report: Report, scale: float = 1.0) -> Any:
    """One program of Core ML with a function for each of ours; the loss of ``gradients`` scaled inside."""
    whole = mil.Program()
    for name, program in programs.items():
        total = sum(steps for _, steps in written_out(program))
        report(f"ios: {name}" + (f", {total} recurrent steps, one by one" if total else ""))
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
        if not halved or errors[-1] > mixed.LIMIT:
            continue
        apart = mixed.trained_apart(functions["gradients"], gradients, report)
        if apart <= mixed.FARTHEST:
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
        f"the model does not bear mixed precision: an output is off by {min(errors):.2g} relative to its largest "
        f"entry (allowed {mixed.LIMIT:g}), or training ends more than {mixed.FARTHEST:g} of its way elsewhere",
        mend="export with --target ios, which computes in 32 bits",
    )
