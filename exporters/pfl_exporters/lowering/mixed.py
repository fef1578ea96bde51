"""Mixed precision for Core ML: products in 16 bits where their numbers fit, all else in 32.

After Micikevicius and others (2018), *Mixed precision training*: losses are scaled, so that gradients are not too small
for 16 bits, and what does not fit stays in 32. What fits is looked up and not guessed: the program is run in 32 bits by
the interpreter of its saved package, and a product goes over when its operands and results keep away from the largest
number of 16 bits, and next to nothing of them lies below the smallest normal one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource
from torch import Tensor, fx

from pfl_mobile.engines.compare import GRADIENT, TOLERANCE, OutputError, output_errors, relative_error
from pfl_mobile.engines.coreml.reference import Watch, interpret, numbered
from pfl_mobile.engines.coreml.wire import Function, Operation, read_program
from pfl_mobile.errors import GradientMismatchError
from pfl_mobile.local.update import mean_gradients, update
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.programs.trace import TracedProgram

from .files import Report

#: What takes the time and the weights; the rest is cheap and often delicate.
PRODUCTS = frozenset({"linear", "matmul", "conv", "conv_transpose", "gather"})
#: Largest error of an output, relative to its largest entry, with which mixed precision is written.
LIMIT = 2e-2
#: Error that a device may see: its processor may add in 16 bits, where the interpreter adds in 32.
ALLOWED = 5e-2
#: How far from training in 32 bits it may end, relative to the way.
FARTHEST = 0.1
#: Powers of two, so that scaling is exact.
SCALES = (1.0, 2.0**6, 2.0**12)
#: How often fewer products are tried.
TRIES = 4
#: Steps of the comparison with training in 32 bits.
STEPS = 50

_LARGEST, _SMALLEST = 65504.0 / 4, 2.0**-14
#: How much of a tensor, in its norm, may lie below the smallest normal number.
_LOST = 1e-3
_PRODUCTS_OF_TORCH = frozenset({"mm", "bmm", "addmm", "linear", "convolution", "baddbmm"})


def inputs_of(program: TracedProgram, seed: int = 0) -> dict[str, Tensor]:
    """The example batch with tensors of the device that moved: at their start many gradients vanish."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        if name not in program.batch and value.is_floating_point()
        else value
        for name, value in program.inputs.items()
    }


def strain(value: Any) -> float:
    """How badly a tensor fits 16 bits: above 1 it does not."""
    array = np.abs(np.asarray(value, np.float64)).ravel()
    if array.dtype.kind != "f" or not array.any():
        return 0.0
    finite = array[np.isfinite(array)]
    if finite.size != array.size:
        return float("inf")
    lost = np.sqrt(np.square(finite[finite < _SMALLEST]).sum() / np.square(finite).sum())
    return float(max(finite.max() / _LARGEST, lost / _LOST))


def loss_scale(program: TracedProgram) -> float:
    """The smallest scale with which most products of ``gradients`` fit."""
    if "weight" not in program.inputs:
        return 1.0
    values = inputs_of(program)

    def scaled(scale: float) -> dict[str, Tensor]:
        return {k: v * scale if k == "weight" else v for k, v in values.items()}

    one = program.run(values)

    def in_proportion(scale: float) -> bool:
        """Whether everything grows with the weights, which a loss of the user's own need not do."""
        return all(
            relative_error((other[k] / factor).numpy(), one[k].numpy()) < TOLERANCE
            for factor in (scale, scale / 100, scale * 100)
            for other in [program.run(scaled(factor))]
            for k in one
        )

    def fitting(scale: float) -> int:
        seen: list[float] = []

        class Watch(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if str(n.target).split(".")[1:2] and str(n.target).split(".")[1] in _PRODUCTS_OF_TORCH:
                    tensors = [
                        v for v in (*self.fetch_args_kwargs_from_env(n)[0], result) if isinstance(v, Tensor)
                    ]
                    seen.append(max(strain(t.numpy()) for t in tensors))
                return result

        with torch.no_grad():
            Watch(program.graph).run(*scaled(scale).values())
        return sum(s <= 1 for s in seen)

    fit = {scale: fitting(scale) for scale in SCALES if scale == 1 or in_proportion(scale)}
    return min(scale for scale in fit if fit[scale] == max(fit.values()))


def scale_loss(graph: fx.GraphModule, weight: int, scale: float) -> None:
    """Scale the weights of a batch, and so the loss and its gradients, and what comes out back again, in place.

    Args:
        graph: of ``gradients``; every output is a sum with the weights as factors.
        weight: number of the input with the weights.
        scale: a power of two.
    """
    if scale == 1.0:
        return
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    node, last = placeholders[weight], placeholders[-1]
    with graph.graph.inserting_after(last):
        scaled = graph.graph.call_function(torch.ops.aten.mul.Tensor, (node, scale))
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    output = next(n for n in graph.graph.nodes if n.op == "output")
    with graph.graph.inserting_before(output):
        back = [graph.graph.call_function(torch.ops.aten.mul.Tensor, (n, 1 / scale)) for n in output.args[0]]
    output.args = (tuple(back),)
    graph.recompile()


def strains(functions: Mapping[str, Function], programs: Mapping[str, TracedProgram]) -> dict[str, float]:
    """Of each product, how badly its operands and results fit, by the name of its result.

    Raises:
        GradientMismatchError: in 32 bits already the package does not compute what PyTorch computes.
    """
    found: dict[str, float] = {}

    def note(operation: Operation, arguments: Mapping[str, Any], results: Sequence[Any]) -> None:
        if operation.type in PRODUCTS:
            tensors = [v for v in (*arguments.values(), *results) if getattr(v, "dtype", None) == np.float32]
            name = operation.outputs[0][0]
            found[name] = max(found.get(name, 0.0), *map(strain, tensors))

    for name, program in programs.items():
        for output in _errors(functions[name], program, TOLERANCE, note):
            if output.error > TOLERANCE:
                raise GradientMismatchError(
                    f"Core ML: output {output.name!r} of program {name!r} differs from PyTorch by "
                    f"{output.error:.2g} before any number has 16 bits",
                    mend="the operator behind it is lowered wrongly: rewrite it in plainer PyTorch",
                )
    return found


def chosen(found: Mapping[str, float], number: int) -> frozenset[str]:
    """The products for 16 bits in one of the tries: all that fit, then fewer, those that fit best."""
    fitting = sorted((s, name) for name, s in found.items() if s <= 1)
    return frozenset(name for _, name in fitting[: len(fitting) * (TRIES - number) // TRIES])


def halve(whole: Any, names: frozenset[str]) -> None:
    """Have the named products compute in 16 bits, their constants stored in 16 bits, in place."""
    FP16ComputePrecision(op_selector=lambda op: op.outputs[0].name in names)(whole)
    with mb.scope(ScopeInfo(source=ScopeSource.COREMLTOOLS_GRAPH_PASS, data=["fold_casts"])):
        for function in whole.functions.values():
            _fold_casts(function)


def _fold_casts(function: Any) -> None:
    """Store constants as what they are cast to."""
    with function:
        for op in list(function.operations):
            source = op.x.op if op.op_type == "cast" else None
            if source is not None and source.op_type == "const":
                constant = mb.const(val=op.outputs[0].val, name=f"{op.name}_folded", before_op=op)
                function.replace_uses_of_var_after_op(
                    anchor_op=op, old_var=op.outputs[0], new_var=constant, force_replace=True
                )
                function.remove_ops([op])


def run(
    function: Function, program: TracedProgram, values: Mapping[str, np.ndarray], watch: Watch | None = None
) -> dict[str, np.ndarray]:
    """What the interpreter computes from a saved function, by the program's names."""
    got = interpret(function, numbered((name, values[name]) for name in program.inputs), watch)
    return {name: got[f"out_{number}"] for number, name in enumerate(program.outputs)}


def _errors(
    function: Function, program: TracedProgram, tolerance: float, watch: Watch | None = None
) -> Iterator[OutputError]:
    """How far each output is from PyTorch's."""
    tensors = inputs_of(program)
    values = {k: v.numpy() for k, v in tensors.items()}
    want = {k: v.numpy() for k, v in program.run(tensors).items()}
    return output_errors(run(function, program, values, watch), want, values.get("weight"), tolerance)


def worst(functions: Mapping[str, Function], programs: Mapping[str, TracedProgram]) -> float:
    """The largest error of an output."""
    return max(
        output.error
        for name, program in programs.items()
        for output in _errors(functions[name], program, LIMIT)
    )


def trained_apart(function: Function, program: TracedProgram, report: Report) -> float:
    """How far training in mixed precision ends from training in PyTorch: relative to the way that was gone.

    ``STEPS`` steps of AdamW on the example batch, by the update rule of devices.
    """
    start = {k: v.numpy().copy() for k, v in program.inputs.items() if f"{GRADIENT}{k}" in program.outputs}
    rule = AdamW(lr=1e-3)
    ends: list[dict[str, np.ndarray]] = []
    for mixed in (False, True):
        values = dict(start)
        state: dict[str, np.ndarray] = {}
        for step in range(STEPS):
            if mixed and step % 10 == 0:
                report(f"ios: train in mixed precision, step {step} of {STEPS}")
            given = {k: v.numpy() for k, v in program.inputs.items()} | values
            if mixed:
                out = run(function, program, given)
            else:
                tensors = {k: torch.from_numpy(v) for k, v in given.items()}
                out = {k: v.numpy() for k, v in program.run(tensors).items()}
            sums = {k: out[f"{GRADIENT}{k}"] for k in values}
            values, state = update(values, mean_gradients(sums, float(out["weight_sum"][0])), rule, state)
        ends.append(values)
    way = sum(float(np.square(ends[0][k] - start[k], dtype=np.float64).sum()) for k in start)
    apart = sum(float(np.square(ends[1][k] - ends[0][k], dtype=np.float64).sum()) for k in start)
    return float(np.sqrt(apart / way)) if way else 0.0


def read(files: Mapping[str, Path]) -> dict[str, Function]:
    """The functions of a package that was written."""
    return read_program(str(files["model"]), str(files["weights"]) if "weights" in files else None)
