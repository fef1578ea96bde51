"""Graph passes that some targets need, and the step from a traced graph to ``torch.export``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.export import decomp_utils

from pfl_mobile.errors import ExportError
from pfl_mobile.programs.simplify import shape
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE, dequantize

from .names import TRACED_AS, traced_as

_aten = torch.ops.aten

#: View operators and their forms that own their result. Phone runtimes have no aliasing views, and a transposed
#: view cannot be reshaped without a copy, so graphs for them say the copy.
OWNING: dict[Any, Any] = {
    _aten.reshape.default: _aten.view_copy.default,
    _aten.permute.default: _aten.permute_copy.default,
    _aten.slice.Tensor: _aten.slice_copy.Tensor,
    _aten.select.int: _aten.select_copy.int,
}
#: Views of another shape, whose copies the toolchain would decompose: for that it traces a program anew, and cannot
#: where there is a loop.
_RESHAPING = (_aten.unsqueeze.default, _aten.squeeze.dims)


class _WrittenWhenAsked:
    """The ``forward`` of a graph module whose code is not written yet: a descriptor that writes it."""

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self
        _write_code(module)
        return module.forward


_write_code = fx.GraphModule.recompile


@contextmanager
def code_when_called() -> Iterator[None]:
    """Write the Python code of graph modules when they are called, and not after each change of their graph.

    Toolchains run their passes by interpreting graphs, and have code written after each pass that nothing calls: a
    fifth of the time of an export to Android.
    """

    def later(module: fx.GraphModule) -> None:
        # what the original does besides writing code
        if isinstance(module._graph._codegen, fx.graph._PyTreeCodeGen):
            module._in_spec = module._graph._codegen.pytree_info.in_spec
            module._out_spec = module._graph._codegen.pytree_info.out_spec
        module._code = ""
        type(module).forward = _WrittenWhenAsked()
        module._recompile_submodules()

    fx.GraphModule.recompile = later
    try:
        yield
    finally:
        fx.GraphModule.recompile = _write_code


_collect = decomp_utils._collect_all_valid_cia_ops
#: What `_collect` found, by the operators that were registered then.
_collected: tuple[Any, Any] = (None, None)


def _collect_once() -> Any:
    global _collected
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    if registered != _collected[0]:
        _collected = registered, _collect()
    return _collected[1]


@contextmanager
def operators_listed_once() -> Iterator[None]:
    """Keep PyTorch from going through all operators that there are, each time that a program may be decomposed.

    They are gone through again where more were registered since.
    """
    decomp_utils._collect_all_valid_cia_ops = _collect_once
    try:
        yield
    finally:
        decomp_utils._collect_all_valid_cia_ops = _collect


@contextmanager
def hints_read_once(module: Any) -> Iterator[None]:
    """Keep toolchains from reading the types of a class's fields anew for each object that they write or read.

    Args:
        module: whose ``get_type_hints`` they call: ``typing``, or one of theirs that imported it by name.
    """
    read = module.get_type_hints
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def read_once(of: Any, globalns: Any = None, localns: Any = None, include_extras: bool = False) -> Any:
        if not isinstance(of, type):  # functions come and go
            return read(of, globalns, localns, include_extras)
        key = of, id(globalns), id(localns), include_extras
        if key not in known:
            known[key] = read(of, globalns, localns, include_extras)
        return dict(known[key])

    module.get_type_hints = read_once
    try:
        yield
    finally:
        module.get_type_hints = read


def decomposed_once(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, for which decomposing is free where nothing is left to decompose; changed in place.

    Toolchains decompose every program they are given, some of them three times, each time by tracing it anew. Ours
    were decomposed when they were traced, so that usually nothing is left to do; where something is, it is done.
    """
    trace_again = program.run_decompositions

    def run_decompositions(table: Any = None, **options: Any) -> torch.export.ExportedProgram:
        left = table is None or any(node.target in table for node in program.graph.nodes)
        return trace_again(table, **options) if left else program

    program.run_decompositions = run_decompositions
    return program


def traced_alone(
    node: fx.Node, form: Callable[..., Any], table: Mapping[Any, Callable[..., Any]]
) -> fx.GraphModule:
    """What a form makes of a node's arguments, as a graph of its own; its inputs are those of the node.

    Args:
        node: whose inputs say in ``meta["val"]`` what they are.
        form: takes the node's arguments.
        table: decompositions.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    sources = node.all_input_nodes

    def of_tensors(*tensors: Tensor) -> Any:
        given = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), given.__getitem__)
        return form(*args, **kwargs)

    examples = [torch.empty(source.meta["val"].shape, dtype=source.meta["val"].dtype) for source in sources]
    with tracing(TracingContext(FakeTensorMode())):
        made: fx.GraphModule = make_fx(of_tensors, decomposition_table=dict(table), tracing_mode="fake")(
            *examples
        )
    return made


def own_views(graph: fx.GraphModule) -> None:
    """Replace views by copies, in place."""
    for node in graph.graph.nodes:
        if node.target in _RESHAPING:
            node.target, node.args = _aten.reshape.default, (node.args[0], list(node.meta["val"].shape))
        if node.op == "call_function" and node.target in OWNING:
            node.target = OWNING[node.target]
    graph.recompile()


def constant_weight(node: fx.Node) -> bool:
    """Whether a value is a constant of the graph, or one that is stored in fewer bits."""
    return node.op == "get_attr" or (node.target is DEQUANTIZE and node.args[0].op == "get_attr")


def constant_value(node: fx.Node) -> Tensor:
    """What a constant is (see `constant_weight`), in float32 if it is stored in fewer bits."""
    if node.target is DEQUANTIZE:
        numbers, scales = (constant_value(each) for each in node.all_input_nodes)
        return dequantize(numbers, scales)
    value: Tensor = getattr(node.graph.owning_module, str(node.target))
    return value


def unfuse_dynamic_linear(graph: fx.GraphModule, keep: Callable[[fx.Node], bool]) -> None:
    """Write ``linear`` with a weight that is no constant (a LoRA factor) as a product with its transpose, in place.

    The delegate does not take it and would have it decomposed later, program by program.

    Args:
        graph: to change.
        keep: tells of a weight that is no constant whether the delegate takes it.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _aten.linear.default or constant_weight(node.args[1]) or keep(node.args[1]):
            continue
        x, weight, *bias = node.args
        with graph.graph.inserting_before(node):
            turned = _made_for(node, _aten.permute.default, shape(weight)[::-1], weight, [1, 0])
            if bias and bias[0] is not None:
                product = _made_for(node, _aten.addmm.default, shape(node), bias[0], x, turned)
            else:
                product = _made_for(node, _aten.mm.default, shape(node), x, turned)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def weights_in_rows(graph: fx.GraphModule, wanted: Callable[[fx.Node, fx.Node], bool]) -> None:
    """Write ``x W.T`` as ``(W x.T).T`` where W has at least twice as many rows as x, in place.

    A runtime that copies the right side of a product, if it is no constant, to another order at each call, reads the
    left side as it lies.

    Args:
        graph: to change.
        wanted: tells of an x and a W whether the target wants it.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _aten.linear.default or len(node.args) != 2:
            continue
        x, weight = node.args
        rows, outputs = math.prod(shape(x)[:-1]), shape(weight)[0]
        if 2 * rows > outputs or not wanted(x, weight):
            continue
        with graph.graph.inserting_before(node):
            flat = _made_for(node, _aten.reshape.default, (rows, shape(x)[-1]), x, [rows, shape(x)[-1]])
            product = _made_for(node, _aten.linear.default, (outputs, rows), weight, flat)
            turned = _made_for(node, _aten.permute.default, (rows, outputs), product, [1, 0])
            whole = _made_for(node, _aten.reshape.default, shape(node), turned, list(shape(node)))
        node.replace_all_uses_with(whole)
        graph.graph.erase_node(node)
    graph.recompile()


def _made_for(node: fx.Node, target: Any, form: Sequence[int], *args: Any) -> fx.Node:
    """A step of what takes the place of a node, of that shape; a reshape of what has the shape already is none."""
    if target is _aten.reshape.default and shape(args[0]) == tuple(form):
        return args[0]
    step = node.graph.call_function(target, args)
    step.meta[TRACED_AS] = traced_as(node)
    step.meta["val"] = torch.empty(form, dtype=node.meta["val"].dtype, device="meta")
    return step


_exported: WeakKeyDictionary[fx.GraphModule, torch.export.ExportedProgram] = WeakKeyDictionary()


def export_traced(program: TracedProgram) -> torch.export.ExportedProgram:
    """The program as it was traced as an ``ExportedProgram`` to be read or changed, exported once for all targets.

    Returns:
        a copy of its own, whose constants are the same tensors.

    Raises:
        ExportError: ``torch.export`` refuses the graph.
    """
    found = _exported.get(program.graph)
    if found is None:
        found = _exported[program.graph] = export_graph(program)
    return found._update(copy.deepcopy(found.graph_module), copy.deepcopy(found.graph_signature))


def export_graph(program: TracedProgram, graph: fx.GraphModule | None = None) -> torch.export.ExportedProgram:
    """The program as an ``ExportedProgram``.

    It is what ``torch.export`` would make of a graph that is already one of ATen operators on tensors of fixed shapes,
    but for unused constants and results; that traces the graph anew, which takes a fifth of a whole export.

    Args:
        program: as it was traced.
        graph: the program's graph as a target changed it.

    Raises:
        ExportError: a node cannot be run with these shapes.
    """
    module = program.graph if graph is None else graph
    try:
        return _exported_program(module, list(program.inputs.values()), len(program.outputs))
    except Exception as error:
        raise ExportError(
            f"program {program.name!r} cannot be exported: {type(error).__name__}: {error}",
            mend="report the model's operator; rewriting it in plain tensor operations helps",
        ) from error


def _describe_step(scan: fx.Node, mode: Any) -> None:
    """Note the values inside the step of a scan, as they were noted for the graph around it."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    parts: Any = scan.args
    body = getattr(scan.graph.owning_module, parts[0].target)
    state, steps, fixed = ([node.meta["val"] for node in part] for part in parts[1:])
    with mode:
        # engines hand over copies, also of what is a view here
        given = [value.contiguous() for value in (*state, *(x[0] for x in steps), *fixed)]
    FakeTensorProp(body, mode).propagate_dont_convert_inputs(*given)


def _exported_program(
    module: fx.GraphModule, inputs: list[Tensor], outputs: int
) -> torch.export.ExportedProgram:
    from torch._export.verifier import TrainingIRVerifier
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import ExportedProgram
    from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
    from torch.export.graph_signature import (
        ExportGraphSignature,
        InputKind,
        InputSpec,
        OutputKind,
        OutputSpec,
        TensorArgument,
    )
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp
    from torch.utils._pytree import tree_structure

    lifted = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    read = {n.target: getattr(module, n.target) for n in module.graph.nodes if n.op == "get_attr"}
    bodies = {name: value for name, value in read.items() if isinstance(value, fx.GraphModule)}
    constants = {name: value for name, value in read.items() if name not in bodies}
    # parameters first, as everybody who reads exported programs expects
    order = sorted(constants, key=lambda name: not isinstance(constants[name], nn.Parameter))
    places = {}
    specs = []
    for name in order:
        kind = InputKind.PARAMETER if isinstance(constants[name], nn.Parameter) else InputKind.BUFFER
        places[name] = lifted.placeholder(f"{'p' if kind is InputKind.PARAMETER else 'b'}_{name}")
        persistent = None if kind is InputKind.PARAMETER else True
        specs.append(InputSpec(kind, TensorArgument(places[name].name), name, persistent))
    for node in module.graph.nodes:
        if node.op == "placeholder":
            known[node] = lifted.placeholder(node.name)
            specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(known[node].name), None))
        elif node.op == "get_attr":
            known[node] = places.get(node.target) or lifted.get_attr(node.target)
        elif node.op == "output":
            results = fx.node.map_arg(node.args[0], known.__getitem__)
            lifted.output(tuple(results))
        else:
            packet = getattr(node.target, "overloadpacket", node.target)
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
            known[node] = lifted.create_node("call_function", node.target, args, kwargs, packet.__name__)
            known[node].meta[TRACED_AS] = traced_as(node)
    values = [constants[name] for name in order] + inputs
    root = fx.GraphModule(bodies, lifted)
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
    FakeTensorProp(root, mode).propagate(*values)
    for node in root.graph.nodes:
        if node.target is torch.ops.higher_order.scan:
            _describe_step(node, mode)
    names = [n.name for n in root.graph.nodes if n.op == "placeholder"][len(order) :]
    signature = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=tree_structure((tuple(inputs), {})),
        out_spec=tree_structure((0,) * outputs),
        forward_arg_names=names,
    )
    return ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=ExportGraphSignature(
            specs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(r.name), None) for r in results]
        ),
        state_dict={name: constants[name] for name in order},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", signature)],
        example_inputs=(tuple(inputs), {}),
        verifiers=[TrainingIRVerifier],
    )
