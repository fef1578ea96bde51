"""ExecuTorch for Android: one ``.pte`` with all programs, lowered for XNNPACK.

Three things decide size and speed. Frozen weights reach XNNPACK as constants in the layout they are stored in, so
forward, backward and all methods share one copy of the bytes. The graph arrives simplified
(``pfl_mobile.programs.simplify``), so few operators stay outside the delegate. And a weight that both the delegate
and a kernel outside of it read (a tied embedding) passes through the delegate for the latter, or it would be stored
twice.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import (
    AddmmConfig,
    GEMMConfig,
    LinearConfig,
    MMConfig,
)
from executorch.backends.xnnpack.partition.config.node_configs import MaxDimConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import ConstantDataOffset
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import CONSTANT_TENSOR_ALIGNMENT
from executorch.backends.xnnpack.utils.utils import get_param_tensor, is_param_node
from executorch.backends.xnnpack.utils.xnnpack_constants import UINT64_MAX
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    lowered_backend_module,
    to_edge_transform_and_lower,
)
from executorch.exir._serialize import _dataclass
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.canonical_partitioners.group_partitioner import GroupBasedPartitioner
from executorch.exir.backend.partitioner import PartitionResult
from executorch.exir.graph_module import get_control_flow_submodules
from executorch.exir.operator.convert import to_out_variant
from executorch.exir.passes.dim_order_ops_registry import DimOrderOpsMap
from executorch.exir.passes.legalize_portable_dim_order_pass import LegalizePortableDimOrderPass
from executorch.exir.passes.memory_format_ops_pass import MemoryFormatOpsPass
from executorch.exir.passes.memory_planning_pass import MemoryPlanningPass
from executorch.exir.passes.normalize_transpose_pass import NormalizeTransposePass
from executorch.exir.passes.remove_mixed_type_operators import RemoveMixedTypeOperators
from executorch.exir.passes.replace_broken_ops_with_function_ops_pass import (
    ReplaceBrokenOpsWithFunctionalOpsPass,
)
from executorch.exir.passes.sym_to_tensor_pass import SymToTensorPass
from executorch.exir.tracer import _default_decomposition_table
from torch import Tensor, fx
from torch._export.passes import ReplaceViewOpsWithViewCopyOpsPass
from torch._export.passes.replace_view_ops_with_view_copy_ops_pass import (
    get_view_copy_of_view_op,
    is_view_op,
)
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.utils.fuser_utils import validate_partition

from pfl_mobile.bundle.consistency import tensor_bytes
from pfl_mobile.bundle.versions import release
from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.programs.simplify import copied, put_in_order, shape
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import (
    DEQUANTIZE,
    DEQUANTIZE_PACKED,
    dequantize,
    one_for_each_use,
    pack,
    rows_first,
)

from .expand import Form, convolution, expand, with_constant_weight
from .files import Lowered, Report, waiting
from .graphs import (
    OWNING,
    code_when_called,
    constant_value,
    decomposed_once,
    export_graph,
    hints_read_once,
    operators_listed_once,
    own_views,
    unfuse_dynamic_linear,
    weights_in_rows,
)
from .in_rows import in_rows
from .loops import as_scans
from .names import TRACED_AS, traced_as
from .obstacles import Obstacle, first_line, steps, uses
from .quiet import quiet
from .stored import has_stored, other_constant, packed_table
from .workspace import in_order, workspaces_noted

if TYPE_CHECKING:
    from pfl_mobile.bundle.manifest import ProgramSpec
    from pfl_mobile.engines.schedule import Course

_aten = torch.ops.aten

#: A tied weight smaller than this is cheaper to store twice than to copy at every call.
TIED_BYTES = 1 << 18


#: Matrices of fewer entries stay outside the delegate where they are no constants: a call of it costs more.
DYNAMIC_ENTRIES = 1 << 15

#: A matrix with more numbers than so many times those of the other side is the left side of their product.
_MUCH_MORE = 16


class _LargeToo:
    """A product whose right side is a constant, or a large matrix that the program is given, or computes, or what such
    a matrix on the left is multiplied by.

    The delegate packs the right side anew at each call where it is no constant, which for 64 rows costs a quarter of
    the product; the kernel outside of it takes twice as long.
    """

    weight_idx: int
    force_non_static_weights_for_f32_linear: bool

    def get_deps(self, node: fx.Node, ep: Any) -> Any:
        left, weight = node.args[self.weight_idx - 1], node.args[self.weight_idx]
        given = isinstance(weight, fx.Node) and not is_param_node(ep, weight)
        self.force_non_static_weights_for_f32_linear = given and (
            _large(weight) or _has_much_more(left, weight) or any(map(_of_numbers, (left, weight)))
        )
        # not the search for linear modules that makes the stock classes quadratic in the size of the graph: our
        # graphs have no source modules to find
        return GEMMConfig.get_deps(self, node, ep)


class _Linear(_LargeToo, LinearConfig):
    pass


class _MatMul(_LargeToo, MMConfig):
    pass


class _AddMatMul(_LargeToo, AddmmConfig):
    pass


def _large(weight: Any) -> bool:
    """Whether a matrix that is no constant is worth a call of the delegate."""
    value = weight.meta["val"]
    return value.dtype is torch.float32 and value.dim() == 2 and value.numel() >= DYNAMIC_ENTRIES


def _has_much_more(weight: Any, x: Any) -> bool:
    """Whether a large matrix is by far larger than what it multiplies, which then costs nothing to pack."""
    return _large(weight) and weight.meta["val"].numel() > _MUCH_MORE * x.meta["val"].numel()


def _of_numbers(node: Any) -> bool:
    """Whether a value is made of stored numbers (``_of_8``, ``_of_4``)."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if "dequantize_per_tensor" in str(node.target):
            return True
        first = node.args[0] if node.args else None
        node = first[0] if isinstance(first, list | tuple) and first else first
    return False


class _Inside:
    """A program as the partitioner sees it, with the graph of a loop's step in the place of its own."""

    def __init__(self, program: Any, step: fx.GraphModule) -> None:
        self._program = program
        self.graph_module, self.graph = step, step.graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


def _only_delegate(node: fx.Node, program: Any) -> str | None:
    """The delegate that alone reads a large weight. It may keep the bytes also where it does not multiply by them (see
    `_route_tied`), so that they are those of the delegates that do."""
    value = node.meta.get("val")
    if not is_param_node(program, node) or value.dtype is not torch.float32 or value.nbytes < TIED_BYTES:
        return None
    tags = {user.meta.get("delegation_tag") for user in node.users}
    return tags.pop() if len(tags) == 1 else None


class _LoopsToo(XnnpackPartitioner):
    """The partitioner, which by itself does not look into the steps of loops."""

    def partition(self, exported_program: Any) -> PartitionResult:
        result = super().partition(exported_program)
        for node in exported_program.graph.nodes:
            if node.op == "placeholder" and (tag := _only_delegate(node, exported_program)) is not None:
                node.meta["delegation_tag"] = tag
            # numbers of weights go into each delegate from outside: all read the same bytes, lookups in tables too
            if node.op == "placeholder" and getattr(node.meta.get("val"), "dtype", None) == torch.int8:
                node.meta.pop("delegation_tag", None)
        for name, step, _ in get_control_flow_submodules(exported_program.graph_module):
            for part in self.generate_partitions(_Inside(exported_program, step)):
                tag = f"{name}_{part.id}"
                for node in part.nodes:
                    node.meta["delegation_tag"] = tag
                result.partition_tags[tag] = self.delegation_spec
        return result


class _Maximum(MaxDimConfig):
    """``max`` along a dimension where XNNPACK can write it; the stock class also takes what it then fails at."""

    def check_constraints(self, node: fx.Node, ep: Any) -> bool:
        kept = len(node.args) == 3 and node.args[1] in (2, 3) and node.args[2] is True
        return kept and bool(super().check_constraints(node, ep))


def partitioner() -> XnnpackPartitioner:
    """The XNNPACK partitioner with our rules for matrix products and maxima."""
    ours = {
        LinearConfig: _Linear,
        MMConfig: _MatMul,
        AddmmConfig: _AddMatMul,
        MaxDimConfig: _Maximum,
    }
    return _LoopsToo(configs=[ours.get(config, config) for config in ALL_PARTITIONER_CONFIGS])


#: Operators whose arguments the toolchain brings to one type.
_PROMOTES = {
    _aten.add.Tensor,
    _aten.mul.Tensor,
    _aten.sub.Tensor,
    _aten.div.Tensor,
    _aten.div.Tensor_mode,
    _aten.minimum.default,
}

#: XNNPACK's own passes and the operators (parts of their names) without which they have nothing to do. Each pass
#: interprets the whole partition again, so running all of them on every partition took most of the export's time.
_CHANNELS_LAST = ("convolution", "pool", "upsample", "prelu", "mean", "batch_norm")
_NEEDED_FOR = {
    "XNNPACKRemoveCloneOpsTransform": ("clone",),
    "DimOrderOpsRevertPass": ("dim_order",),
    "ConvertToUpsampleBilinear2d": ("upsample", "index"),
    "ConvertToLinearPass": ("addmm", "mm.default"),
    "ConvertToSDPAPass": ("scaled_dot_product",),
    "FuseBatchNormPass": ("batch_norm",),
    "DecomposeBatchNorm": ("batch_norm",),
    "FuseActivationPass": ("relu", "hardtanh", "clamp"),
    "DecomposeConcatenate": ("cat",),
    "RemoveGetItemPass": ("getitem",),
    "InsertPadQDQPass": ("pad",),
    "Conv1dUnsqueezePass": ("convolution",),
    "PReLUReshapePass": ("prelu",),
    "ChannelsLastTaggedReshapePass": _CHANNELS_LAST,
    "PropagateCustomMetaPass": ("quantize",),
    "RemoveRedundantCopyPass": ("_to_copy", *_CHANNELS_LAST),  # the pass before it inserts copies
}


class _LeanPassManager(XNNPACKPassManager):
    """XNNPACK's pass manager without the passes whose operators a partition does not have."""

    passes: list[Any]

    def __init__(self, exported_program: Any, passes: Any = None) -> None:
        super().__init__(exported_program, passes)
        nodes = exported_program.graph.nodes
        present = {str(node.target) for node in nodes if node.op == "call_function"}
        folds = any(_constant(node) for node in nodes)
        self.passes = [p for p in self.passes if self._applies(p.__name__, present, folds)]

    @staticmethod
    def _applies(name: str, present: set[str], folds: bool) -> bool:
        if name == "ConstPropPass":
            return folds
        needed = _NEEDED_FOR.get(name)
        return needed is None or any(part in target for target in present for part in needed)


def _constant(node: fx.Node) -> bool:
    """Whether the node reads no input, so that its value could be computed now."""
    return node.op == "get_attr" or (node.op == "call_function" and not node.all_input_nodes)


def _mixes_types(node: fx.Node) -> bool:
    """Whether an arithmetic operator may have to convert an argument: where anything but float32 goes in."""
    if node.target not in _PROMOTES:
        return False
    values = [a.meta.get("val") if isinstance(a, fx.Node) else a for a in node.args]
    return any(getattr(value, "dtype", None) is not torch.float32 for value in values)


def _turned(node: fx.Node) -> bool:
    """Whether a kernel that reads its input row by row may get one that lies otherwise in memory."""
    if node.target not in LegalizePortableDimOrderPass._target_ops:
        return False
    value = getattr(node.args[0], "meta", {}).get("val")
    return not isinstance(value, torch.Tensor) or value.dim_order() != tuple(range(value.dim()))


#: The toolchain's passes over a whole program, and the nodes without one of which they change nothing. Each interprets
#: the program again, with a description of every value, and together they took a third of an export's time.
_NEEDED_BY: dict[type[Any], Callable[[fx.Node], bool]] = {
    ReplaceViewOpsWithViewCopyOpsPass: lambda n: (
        n.target is _aten._unsafe_view.default or getattr(n.target, "is_view", False)
    ),
    NormalizeTransposePass: lambda n: n.target is _aten.t.default,
    ReplaceBrokenOpsWithFunctionalOpsPass: lambda n: getattr(n.target, "is_view", False),
    SymToTensorPass: lambda n: isinstance(n.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool),
    RemoveMixedTypeOperators: _mixes_types,
    MemoryFormatOpsPass: lambda n: n.target in DimOrderOpsMap,
    LegalizePortableDimOrderPass: _turned,
}


@contextmanager
def _where_needed() -> Iterator[None]:
    """Leave out the passes of ``_NEEDED_BY`` where they have nothing to do."""

    def guarded(
        stock: Callable[..., PassResult], needed: Callable[[fx.Node], bool]
    ) -> Callable[..., PassResult]:
        def call(self: Any, graph: fx.GraphModule) -> PassResult:
            if any(isinstance(module, fx.GraphModule) for module in graph.children()):
                return stock(self, graph)  # branches and loops have graphs of their own
            return stock(self, graph) if any(map(needed, graph.graph.nodes)) else PassResult(graph, False)

        return call

    own = {kind: vars(kind).get("call") for kind in _NEEDED_BY}
    try:
        for kind, needed in _NEEDED_BY.items():
            kind.call = guarded(kind.call, needed)
        yield
    finally:
        for kind, call in own.items():
            if call is None:
                del kind.call
            else:
                kind.call = call


def _may_merge(self: GroupBasedPartitioner, one: int, other: int, partitions: Mapping[int, Any]) -> bool:
    """Whether two partitions can be one without a circle, as the stock method tells, which looks at all that comes
    after each of their nodes, one by one: quadratic in the size of the graph."""
    both = {*partitions[one].nodes, *partitions[other].nodes}
    outside = {user for node in both for user in node.users} - both
    if any(not self.dependency_viewer.downstreams_of(user).isdisjoint(both) for user in outside):
        return False
    return bool(validate_partition(list(both)))


@contextmanager
def _quick_partitions() -> Iterator[None]:
    """Partition in time that grows with the graph, and leave its order as it is.

    The toolchain sorts the whole graph for each partition, by breadth: what could run early does, and its results wait
    in memory for their readers.
    """
    merge, sort = GroupBasedPartitioner._can_merge_partitions, lowered_backend_module.legalize_graph
    GroupBasedPartitioner._can_merge_partitions = _may_merge
    lowered_backend_module.legalize_graph = put_in_order
    try:
        yield
    finally:
        GroupBasedPartitioner._can_merge_partitions = merge
        lowered_backend_module.legalize_graph = sort


def _read_by_delegate(node: fx.Node) -> bool:
    """Whether XNNPACK takes the constant as a weight in at least one use."""
    return any(
        (user.target in (_aten.linear.default, _aten.convolution.default) and user.args[1] is node)
        or (user.target is _aten.mm.default and user.args[1] is node)
        or (user.target is _aten.addmm.default and user.args[2] is node)
        for user in node.users
    )


def _tied(programs: Mapping[str, fx.GraphModule]) -> set[int]:
    """Addresses of the large constants that embeddings and matrix products both read, in any program."""
    embedded: set[int] = set()
    multiplied: set[int] = set()
    for graph in programs.values():
        for node in graph.graph.nodes:
            if node.op != "get_attr":
                continue
            tensor = getattr(graph, node.target)
            if tensor.numel() * tensor.element_size() < TIED_BYTES:
                continue
            if _read_by_delegate(node):
                multiplied.add(tensor.data_ptr())
            if any(user.target is _aten.embedding.default for user in node.users):
                embedded.add(tensor.data_ptr())
    return embedded & multiplied


def _route_tied(graph: fx.GraphModule, tied: set[int]) -> None:
    """Let embeddings read tied weights from the delegate: weight + 0, the 0 being computed from an input.

    A constant 0 would be folded, and the bytes stored twice again.
    """
    for node in list(graph.graph.nodes):
        value = getattr(graph, node.target) if node.op == "get_attr" else None
        if not isinstance(value, Tensor) or value.data_ptr() not in tied:
            continue
        users = [u for u in node.users if u.target is _aten.embedding.default and u.args[0] is node]
        source = next(
            (
                n
                for n in graph.graph.nodes
                if n.op == "placeholder" and n.meta["val"].dtype == torch.float32 and n.meta["val"].numel()
            ),
            None,
        )
        if not users or source is None:
            continue
        with graph.graph.inserting_before(users[0]):
            flat = graph.graph.call_function(_aten.reshape.default, (source, [source.meta["val"].numel()]))
            first = graph.graph.call_function(_aten.slice.Tensor, (flat, 0, 0, 1))
            zero = graph.graph.call_function(_aten.sub.Tensor, (first, first))
            routed = graph.graph.call_function(_aten.add.Tensor, (node, zero))
        for user in users:
            user.replace_input_with(node, routed)
    graph.graph.lint()
    graph.recompile()


#: Products with a bias, and the place of the bias among their arguments.
_BIASED = {_aten.linear.default: 2, _aten.addmm.default: 0, _aten.convolution.default: 2}


def _separate_biases(graph: fx.GraphModule) -> None:
    """Add the bias of a product after it where the delegate takes a weight that is no constant, in place.

    XNNPACK drops a bias once it is packed into the product, also where the weight is computed and the product packs
    both at every call: a crash of the process (ExecuTorch 1.5.1).
    """
    for node in list(graph.graph.nodes):
        if node.target is _aten.linear.default and len(node.args) == 3:
            x, weight, bias = node.args
            product = _aten.linear.default
        elif node.target is _aten.addmm.default and not node.kwargs:
            bias, x, weight = node.args
            product = _aten.mm.default
        else:
            continue
        if bias is None or weight.op == "get_attr" or not (weight.target is DEQUANTIZE or _large(weight)):
            continue
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(product, (x, weight))
            added = graph.graph.call_function(_aten.add.Tensor, (made, bias))
        for step in (made, added):
            step.meta = dict(node.meta)
            step.meta[TRACED_AS] = traced_as(node)
        node.replace_all_uses_with(added)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _own_biases(graph: fx.GraphModule) -> None:
    """Give each product a bias of its own where something that is no product reads the constant too, in place.

    XNNPACK packs a bias into the product and drops it, so that another operator of the same delegate would read memory
    that is not there: a crash of the process (ExecuTorch 1.5.1).
    """
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        products = [
            user
            for user in node.users
            if (place := _BIASED.get(user.target)) is not None
            and len(user.args) > place
            and user.args[place] is node
        ]
        if not products or len(products) == len(node.users):
            continue
        name = f"{node.target}_bias"
        graph.register_buffer(name, getattr(graph, node.target).detach().clone())
        with graph.graph.inserting_before(node):
            own = graph.graph.get_attr(name)
        own.meta = dict(node.meta)
        for product in products:
            product.replace_input_with(node, own)
    graph.graph.lint()
    graph.recompile()


@contextmanager
def _weights_read_once() -> Iterator[None]:
    """Turn a weight into bytes and take its digest once for all programs.

    The toolchain copies all weights for each partition that it hands to XNNPACK, as that might change them, which no
    pass of it does; and then copies, twice, and digests each weight for each operator that reads it.
    """
    read, digest = NodeVisitor.get_serialized_buffer_index, NamedDataStore._sha256
    known: dict[tuple[Any, ...], tuple[torch.Tensor, bytes, str]] = {}
    digests: dict[int, bytes] = {}

    def with_same_constants(program: ExportedProgram, _: Any) -> ExportedProgram:
        constants = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(c): c for c in constants if isinstance(c, torch.Tensor)})

    def place(self: Any, node: fx.Node, graph: Any, *others: Any, **options: Any) -> int:
        value = _as_it_is(self.exported_program, node, *others[1:4], **options)
        if value is None:
            return int(read(self, node, graph, *others, **options))
        key = value.data_ptr(), tuple(value.shape)
        if key not in known:
            data = value.numpy().tobytes()
            own = hashlib.sha256(data)
            known[key] = (
                value,
                data,
                own.hexdigest(),
            )  # the tensor, so that no other takes its place in memory
            digests[id(data)] = own.digest()
        _, data, name = known[key]
        graph.constant_data.append(ConstantDataOffset(offset=UINT64_MAX, size=len(data), named_key=name))
        self._named_data_store.add_named_data(name, data, alignment=CONSTANT_TENSOR_ALIGNMENT)
        return len(graph.constant_data) - 1

    XnnpackBackend.copy_exported_program_for_preprocess = staticmethod(with_same_constants)
    NodeVisitor.get_serialized_buffer_index = place
    NamedDataStore._sha256 = staticmethod(lambda data: digests.get(id(data)) or digest(data))
    try:
        yield
    finally:
        del XnnpackBackend.copy_exported_program_for_preprocess  # what it inherits
        NodeVisitor.get_serialized_buffer_index = read
        NamedDataStore._sha256 = staticmethod(digest)


def _as_it_is(
    program: ExportedProgram,
    node: fx.Node,
    channels_last: bool,
    swapped: bool,
    quantized: Any,
    *_: Any,
    **__: Any,
) -> torch.Tensor | None:
    """The constant behind a node whose bytes XNNPACK gets as they lie; None where it is none, or is changed before."""
    if channels_last or swapped or quantized is not None or node.meta.get("custom"):
        return None
    value = get_param_tensor(program, node) if is_param_node(program, node) else None
    if value is None or value.dtype is not torch.float32 or not value.is_contiguous():
        return None
    return value.detach() if value.untyped_storage().nbytes() == value.nbytes > 0 else None


@contextmanager
def _toolchain() -> Iterator[None]:
    """Use our pass manager, write no code that nobody calls, and keep the toolchain's own warnings, which name its
    internals, from the user."""
    stock = xnnpack_preprocess.XNNPACKPassManager
    xnnpack_preprocess.XNNPACKPassManager = _LeanPassManager
    try:
        with (
            quiet(),
            code_when_called(),
            operators_listed_once(),
            hints_read_once(_dataclass),
            _where_needed(),
            _quick_partitions(),
            _weights_read_once(),
        ):
            yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = stock


@cache
def kernels() -> frozenset[str]:
    """The operators that the runtime has kernels for, as ``aten::add.out``: those of the package on this machine, which
    registers what ExecuTorch's libraries for phones do (its portable and its optimized kernels)."""
    with quiet():
        from executorch.runtime import Runtime

        return frozenset(Runtime.get().operator_registry.operator_names)


@cache
def _of_the_delegate() -> frozenset[str]:
    """Operators of PyTorch that XNNPACK may take, so that no kernel of theirs is called."""
    return frozenset(config.target_name for config in ALL_PARTITIONER_CONFIGS)


def _kernel_of(target: Any) -> str | None:
    """The kernel that an operator needs, if it is not among `kernels`."""
    if not isinstance(target, torch._ops.OpOverload) or target in _NO_KERNEL:
        return None
    schema = target._schema
    names = [f"{schema.name}.{'_'.join(filter(None, (schema.overload_name, 'out')))}"]
    try:
        out = to_out_variant(target)[0]._schema
    except (RuntimeError, AssertionError):  # what it becomes first says the toolchain only
        pass
    else:
        names.insert(0, ".".join(filter(None, (out.name, out.overload_name))))
    short = str(target).removeprefix("aten.")
    return None if kernels() & set(names) or short in _of_the_delegate() else names[0]


#: What the toolchain writes in other ways than by a kernel of this name, or takes away.
_NO_KERNEL = frozenset(
    {
        _aten.alias.default,
        _aten.clone.default,
        _aten.detach.default,
        _aten.view_copy.default,
        _aten._to_copy.default,
        _aten.empty.memory_format,
    }
)


def _owning(target: Any) -> Any:
    """The form of a view that owns its result, as the toolchain has it; other operators as they are."""
    if target in OWNING:
        return OWNING[target]
    if not isinstance(target, torch._ops.OpOverload) or not is_view_op(target._schema):
        return target
    return get_view_copy_of_view_op(target._schema) or target


def missing(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """The operators that the runtime has no kernel for, looked up in its registry; nothing is lowered."""
    with quiet():
        table = _default_decomposition_table()
        found = []
        for use in uses(programs):
            try:
                becomes = [_owning(step) for step in steps(use.node, _owning(use.node.target), table)]
            except Exception:  # lowering will say what it cannot decompose
                continue
            absent = sorted({name for step in becomes if (name := _kernel_of(step)) is not None})
            if absent:
                found.append(use.obstacle(f"ExecuTorch has no kernel {' or '.join(absent)}"))
    return found


def _check_kernels(program: Any) -> None:
    """Every operator that the program calls has a kernel: what a device would find out when it loads the file.

    Raises:
        UnsupportedOperatorError: one has none.
    """
    called = {
        ".".join(filter(None, (each.name, each.overload)))
        for plan in program.execution_plan
        for each in plan.operators
    }
    absent = sorted(called - kernels())
    if absent:
        raise UnsupportedOperatorError(
            f"ExecuTorch has no kernel {', '.join(absent)}, which the lowered programs call",
            mend="express it in other PyTorch operators, or use another target",
        )


def _numbers(stored: Tensor, scale: float = 1.0) -> Tensor:
    """Bytes times a scale as float32, by the delegate."""
    return torch.ops.quantized_decomposed.dequantize_per_tensor.default(
        stored, scale, 0, -128, 127, torch.int8
    )


def _of_8(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:  # noqa: ARG001  (the operator's signature)
    return _numbers(numbers) * scales


def _of_4(packed: Tensor, scales: Tensor, *_bits: int) -> Tensor:
    """Numbers of 4 bits as `pack` has them, in operators that the delegate has, exact all of them: h + (l + 8) / 16."""
    low, high = _halves(packed)
    return dequantize(torch.cat((low * 16.0, high), -1), scales)


def _halves(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of each row of numbers of 4 bits in sixteenths, and the second half."""
    sixteenths = _numbers(packed, 1 / 16)
    high = torch.floor(sixteenths)
    return sixteenths - high - 0.5, high


def _weights(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """A weight of 4 bits cut in two between its columns.

    The bytes are cut into groups before anything is made of them: the delegate copies what it gives another shape if it
    is read twice.
    """
    rows, groups = scales.shape
    low, high = _halves(packed.reshape(rows, groups // 2, -1))
    of_low, of_high = (each.unsqueeze(-1) for each in _two(scales))
    return (low * (of_low * 16.0)).reshape(rows, -1), (high * of_high).reshape(rows, -1)


def _two(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """The halves along a dimension, as slices: the runtime splits slowly."""
    half = x.shape[dim] // 2
    return x.narrow(dim, 0, half), x.narrow(dim, half, half)


def _linear_by(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """``x W.T``, x [..., columns of W]."""
    weights, parts = _weights(packed, scales), _two(x)
    return F.linear(parts[0], weights[0]) + F.linear(parts[1], weights[1])


def _linear_of(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """``W x.T``, x [rows, columns of W]."""
    weights, parts = _weights(packed, scales), _two(x)
    return F.linear(weights[0], parts[0]) + F.linear(weights[1], parts[1])


def _product_by(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """``x W``, x [rows, rows of W]."""
    return torch.cat([torch.mm(x, weight) for weight in _weights(packed, scales)], -1)


def _product_of(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """``W x``, x [columns of W, columns]."""
    weights, parts = _weights(packed, scales), _two(x, 0)
    return torch.mm(weights[0], parts[0]) + torch.mm(weights[1], parts[1])


#: Products of a weight of 4 bits, by operator and the place of the weight.
_IN_HALVES: dict[tuple[Any, int], Form] = {
    (_aten.linear.default, 0): _linear_of,
    (_aten.linear.default, 1): _linear_by,
    (_aten.mm.default, 0): _product_of,
    (_aten.mm.default, 1): _product_by,
}


def _multiply_halves(graph: fx.GraphModule) -> None:
    """Multiply by the halves of a packed weight one after the other, in place: putting them side by side first takes as
    long as a third of the unpacking. It needs whole groups in each half."""
    for node in list(graph.graph.nodes):
        if node.target not in (DEQUANTIZE, DEQUANTIZE_PACKED) or len(node.users) != 1:
            continue
        packed, scales, *bits = node.args
        (user,) = node.users
        form = _IN_HALVES.get((user.target, user.args.index(node))) if user.args.count(node) == 1 else None
        if (
            form is None
            or len(user.args) != 2
            or bits == [8]
            or len(shape(node)) != 2
            or shape(scales)[1] % 2
        ):
            continue
        (x,) = (argument for argument in user.args if argument is not node)
        with graph.graph.inserting_before(user):
            halves = graph.graph.call_function(form, (packed, scales, x))
        halves.meta = dict(user.meta)
        user.replace_all_uses_with(halves)
        graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.recompile()


def _expand_stored(graph: fx.GraphModule) -> None:
    """Read weights of few bits in operators that the delegate has, in place.

    XNNPACK has no convolution with weights of another type than its input: that of a convolution stays in float32.
    """
    rows_first(graph)
    one_for_each_use(graph)
    for node in list(graph.graph.nodes):
        if node.target is not DEQUANTIZE:
            continue
        numbers, _, bits = node.args
        if any(user.target is _aten.convolution.default for user in node.users):
            name = f"{numbers.target}_float32"
            graph.register_buffer(name, constant_value(node))
            with graph.graph.inserting_before(node):
                whole = graph.graph.get_attr(name)
            whole.meta = dict(node.meta)
            node.replace_all_uses_with(whole)
            graph.graph.erase_node(node)
        elif bits == 4 and numbers.op == "get_attr":
            packed = pack(getattr(graph, numbers.target))
            other_constant(graph, node, numbers, packed, "packed")
        elif bits == 4:
            packed_table(graph, node, pack)
    _multiply_halves(graph)
    expand(
        graph,
        {
            DEQUANTIZE: lambda node: _of_8 if node.args[2] == 8 else _of_4,
            DEQUANTIZE_PACKED: lambda _: _of_4,
            **{form: lambda node: node.target for form in _IN_HALVES.values()},
        },
    )


#: Most parts, of a kernel and of groups, in which a convolution is written as products.
_MOST_PARTS = 64


def _as_products(node: fx.Node) -> Form | None:
    """Convolutions with kernels that are computed, which the delegate does not take: with the runtime's own kernels
    the CNN of ``bench/peers.py`` takes 22 times as long."""
    if with_constant_weight(node):
        return None
    size, groups = shape(node.args[1])[2:], node.args[8]
    parts = min(math.prod(size), math.prod(shape(node)[2:])) * groups
    return convolution if parts <= _MOST_PARTS else None


def _is_input_in_rows(x: fx.Node, weight: fx.Node) -> bool:
    """Whether a weight is to be the left side of its product, where the delegate packs x in its place; a weight that is
    read from the file is packed once. 64 rows by a weight of 1536 x 576 take 0.84 of the time so, all turns included,
    and one row by the table of 49,152 words half, without a packed copy of it.
    """
    if weight.op == "get_attr" or not _large(weight):
        return False
    return math.prod(shape(x)) >= DYNAMIC_ENTRIES or _has_much_more(weight, x)


def _prepare(graph: fx.GraphModule) -> None:
    """The graph in operators that the delegate and the runtime have, in place."""
    weights_in_rows(graph, _is_input_in_rows)
    unfuse_dynamic_linear(graph, keep=_large)
    if has_stored(graph):
        _expand_stored(graph)
    own_views(graph)


def _prepare_part(graph: fx.GraphModule) -> None:
    """The same for the step of a loop over rows, which was part of a program until now."""
    _separate_biases(graph)
    _own_biases(graph)
    _prepare(graph)


def _own_expansions(graph: fx.GraphModule) -> None:
    """Say the copies that expanding makes in the steps of loops, in place; the toolchain overlooks them."""
    for _, step in graph.named_children():
        if isinstance(step, fx.GraphModule):
            for node in step.graph.nodes:
                if node.target is _aten.expand.default:
                    node.target = _aten.expand_copy.default
            step.recompile()


def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``model.pte`` with one method for each program.

    Raises:
        ExportError: a program cannot be exported.
        UnsupportedOperatorError: ExecuTorch has no kernel for an operator.
    """
    graphs = {name: copied(program.graph) for name, program in programs.items()}
    tied = _tied(graphs)
    exported = {}
    with _toolchain(), workspaces_noted() as noted:
        for name, program in programs.items():
            report(f"android: export {name}")
            whole = replace(program, graph=graphs[name])
            graphs[name] = in_rows(whole, prepare=_prepare_part, delegated=True).graph
            _route_tied(graphs[name], tied)
            _separate_biases(graphs[name])
            _own_biases(graphs[name])
            as_scans(graphs[name], prepare=_prepare, delegated=True)
            if not any(node.target is torch.ops.higher_order.scan for node in graphs[name].graph.nodes):
                # beside a loop, export takes what these products are made of for aliases of the loop's inputs
                expand(graphs[name], {_aten.convolution.default: _as_products})
            _prepare(graphs[name])
            _own_expansions(graphs[name])
            exported[name] = decomposed_once(export_graph(program, graphs[name]))
        report("android: lower for XNNPACK")
        try:
            edge = to_edge_transform_and_lower(
                exported,
                partitioner={name: [partitioner()] for name in exported},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            workspaces = {
                name: in_order(edge.exported_program(name).graph_module, noted) for name in exported
            }
            report("android: plan memory and write")
            program = edge.to_executorch(
                # what a program is given stays where it is
                ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
            )
        except Exception as error:
            raise UnsupportedOperatorError(
                f"ExecuTorch cannot lower the model: {type(error).__name__}: {first_line(error)}",
                mend="express the operator that is named in other PyTorch operators, or use another target",
            ) from error
        _check_kernels(program.executorch_program)
    path = folder / "model.pte"
    with open(path, "wb") as file:
        program.write_to_file(file)
    arenas = {name: _planned(program.executorch_program, name) for name in exported}
    planned = {f"planned_{name}_bytes": size for name, size in arenas.items()}
    return Lowered(
        {"model": "model.pte"},
        {"model.pte": path},
        {"model_bytes": path.stat().st_size, **planned},
        # ExecuTorch promises that newer runtimes load older programs, and not the other way (its COMPATIBILITY.md)
        at_least=release(importlib.metadata.version("executorch")),
        memory=partial(memory, arenas, workspaces),
    )


#: Of the runtime when it loads a file, and of each loaded method with its delegates (ExecuTorch 1.5).
_BYTES_OF_RUNTIME, _BYTES_OF_METHOD = 1_000_000, 250_000


def memory(
    arenas: Mapping[str, int],
    workspaces: Mapping[str, Sequence[int]],
    parts: Sequence[ProgramSpec],
    course: Course,
) -> int:
    """Bytes that a program of parts takes at once in the engine: what waits between its calls, the largest of the
    planned memories, which lie in one place, the workspace that all delegates share, the runtime, and the methods that
    are loaded.

    Results that a method gives are where the engine puts them, and their place in the plan is never touched. The
    workspace grows at the first delegate that needs more, and the old one is freed after the new one is there.

    Args:
        arenas: bytes of planned memory by part.
        workspaces: bytes that the delegates need, in the order in which they run, by part.
        parts: their signatures.
        course: the calls.
    """
    called = {call.part for call in course.calls}
    given = {part.name: sum(map(tensor_bytes, part.outputs)) for part in parts}
    arena = max(max(arenas[name] - given[name], 0) for name in called)
    inside, there = [], 0
    for call in course.calls:
        most = there
        for needed in workspaces[call.part]:
            if needed > there:
                most, there = there + needed, needed
        inside.append(arena + most)
    return waiting(course, parts, inside) + _BYTES_OF_RUNTIME + len(called) * _BYTES_OF_METHOD


def _planned(program: Any, method: str) -> int:
    """Bytes of the activation memory that the memory planner gave a method."""
    plan = next(p for p in program.execution_plan if p.name == method)
    return int(sum(plan.non_const_buffer_sizes))
