"""ExecuTorch for Android: one ``.pte`` with all programs, lowered for XNNPACK.

Three things decide size and speed. Frozen weights reach XNNPACK as constants in the layout they are stored in, so
forward, backward and all methods share one copy of the bytes. The graph arrives simplified
(``pfl_mobile.programs.simplify``), so few operators stay outside the delegate. And a weight that both the delegate
and a kernel outside of it read (a tied embedding) passes through the delegate for the latter, or it would be stored
twice.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import AddmmConfig, GEMMConfig, MMConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import fx

from pfl_mobile.bundle.versions import release
from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.programs.trace import TracedProgram

from .files import Lowered, Report
from .graphs import (
    code_when_called,
    decomposed_once,
    export_graph,
    own_views,
    shared_copy,
    unfuse_dynamic_linear,
)
from .quiet import quiet

_aten = torch.ops.aten

#: A tied weight smaller than this is cheaper to store twice than to copy at every call.
TIED_BYTES = 1 << 18


class _MatMul(MMConfig):
    """``mm`` with a constant right side, without the search for linear modules that makes the stock class
    quadratic in the size of the graph (our graphs have no source modules to find)."""

    def get_deps(self, node: fx.Node, ep: Any) -> Any:
        return GEMMConfig.get_deps(self, node, ep)


class _AddMatMul(AddmmConfig):
    def get_deps(self, node: fx.Node, ep: Any) -> Any:
        return GEMMConfig.get_deps(self, node, ep)


def partitioner() -> XnnpackPartitioner:
    """The XNNPACK partitioner with our matrix-product rules."""
    ours = {MMConfig: _MatMul, AddmmConfig: _AddMatMul}
    return XnnpackPartitioner(configs=[ours.get(config, config) for config in ALL_PARTITIONER_CONFIGS])


#: XNNPACK's own passes and the operators (parts of their names) without which they have nothing to do. Each pass
#: interprets the whole partition again, so running all of them on every partition took most of the export's time.
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
    "ChannelsLastTaggedReshapePass": ("convolution", "pool", "upsample", "prelu", "mean", "batch_norm"),
}


class _LeanPassManager(XNNPACKPassManager):
    """XNNPACK's pass manager without the passes whose operators a partition does not have."""

    passes: list[Any]

    def __init__(self, exported_program: Any, passes: Any = None) -> None:
        super().__init__(exported_program, passes)
        present = {str(node.target) for node in exported_program.graph.nodes if node.op == "call_function"}
        self.passes = [p for p in self.passes if self._applies(p.__name__, present)]

    @staticmethod
    def _applies(name: str, present: set[str]) -> bool:
        needed = _NEEDED_FOR.get(name)
        return needed is None or any(part in target for target in present for part in needed)


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
        if node.op != "get_attr" or getattr(graph, node.target).data_ptr() not in tied:
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


@contextmanager
def _toolchain() -> Iterator[None]:
    """Use our pass manager, write no code that nobody calls, and keep the toolchain's own warnings, which name its
    internals, from the user."""
    stock = xnnpack_preprocess.XNNPACKPassManager
    xnnpack_preprocess.XNNPACKPassManager = _LeanPassManager
    try:
        with quiet(), code_when_called():
            yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = stock


def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``model.pte`` with one method for each program.

    Raises:
        ExportError: a program cannot be exported.
        UnsupportedOperatorError: ExecuTorch has no kernel for an operator.
    """
    graphs = {name: shared_copy(program.graph) for name, program in programs.items()}
    tied = _tied(graphs)
    exported = {}
    with _toolchain():
        for name, program in programs.items():
            report(f"android: export {name}")
            _route_tied(graphs[name], tied)
            unfuse_dynamic_linear(graphs[name])
            own_views(graphs[name])
            exported[name] = decomposed_once(export_graph(program, graphs[name]))
        report("android: lower for XNNPACK")
        try:
            edge = to_edge_transform_and_lower(
                exported,
                partitioner={name: [partitioner()] for name in exported},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            report("android: plan memory and write")
            program = edge.to_executorch(ExecutorchBackendConfig())
        except Exception as error:
            raise UnsupportedOperatorError(
                f"ExecuTorch cannot lower the model: {type(error).__name__}: {error}",
                mend="express the operator that is named in other PyTorch operators, or use --target onnx",
            ) from error
    path = folder / "model.pte"
    with open(path, "wb") as file:
        program.write_to_file(file)
    planned = {f"planned_{name}_bytes": _planned(program.executorch_program, name) for name in exported}
    return Lowered(
        {"model": "model.pte"},
        {"model.pte": path},
        {"model_bytes": path.stat().st_size, **planned},
        # ExecuTorch promises that newer runtimes load older programs, and not the other way (its COMPATIBILITY.md)
        at_least=release(importlib.metadata.version("executorch")),
    )


def _planned(program: Any, method: str) -> int:
    """Bytes of the activation memory that the memory planner gave a method."""
    plan = next(p for p in program.execution_plan if p.name == method)
    return int(sum(plan.non_const_buffer_sizes))
