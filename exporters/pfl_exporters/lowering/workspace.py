"""What XNNPACK works in: the memory that a delegate plans for itself when it is loaded, which its file does not say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNELU,
    XNNBatchMatrixMultiply,
    XNNDatatype,
    XNNFullyConnected,
    XNNGraph,
    XNNLeakyReLU,
    XNNNode1x1,
    XNNNode2x1,
    XNNStaticReshape,
    XNNTensorValue,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import (
    XNN_FLAG_TRANSPOSE_WEIGHTS,
    XNN_INVALID_VALUE_ID,
)
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import fx

#: Workspace in bytes of each delegate, by its serialized graph.
Workspaces = Mapping[bytes, int]

#: Numbers that a packed matrix has side by side with AVX-512; it is filled up to a multiple.
_SIDE_BY_SIDE = 64

_BYTES = {
    XNNDatatype.xnn_datatype_fp16: 2,
    XNNDatatype.xnn_datatype_bf16: 2,
    XNNDatatype.xnn_datatype_qint8: 1,
    XNNDatatype.xnn_datatype_quint8: 1,
    XNNDatatype.xnn_datatype_qcint8: 1,
    XNNDatatype.xnn_datatype_qdint8: 1,
}


@dataclass
class _Place:
    """Memory from one node to another, both included."""

    first: int
    last: int
    size: int


def _ids(operator: Any, *, made: bool) -> list[int]:
    """Values that a node makes, or those that it reads, by name of the field."""
    names = [each.name for each in fields(operator) if each.name.endswith("_id")]
    ids = [getattr(operator, name) for name in names if name.startswith("output") == made]
    return [each for each in ids if each != XNN_INVALID_VALUE_ID]


def _in_place(operator: Any) -> bool:
    """Whether the runtime may write what the node makes where an operand was."""
    elementwise = isinstance(operator, XNNNode1x1 | XNNNode2x1 | XNNStaticReshape | XNNELU | XNNLeakyReLU)
    return elementwise and not isinstance(operator, XNNBatchMatrixMultiply)


def workspace_bytes(graph: XNNGraph) -> int:
    """Bytes that XNNPACK plans for the values inside a graph and for what its products pack.

    Values that neither come from outside nor go there lie in one workspace, each from the node that makes it to the
    last that reads it, the largest ones placed first. What an elementwise operator makes takes the place of an operand
    of its size if each of the two is read once. A matrix that is no constant is packed by each product that has it on
    its right side, for as long as the product runs. So XNNPACK's ``runtime.c`` and ``memory-planner.c`` have it.
    """
    values = {tensor.id_out: tensor for tensor in map(_tensor, graph.xvalues)}
    operators = [node.xnode_union for node in graph.xnodes]
    reads = [_ids(operator, made=False) for operator in operators]
    inside = {
        number
        for number, tensor in values.items()
        if tensor.external_id == XNN_INVALID_VALUE_ID and not tensor.constant_buffer_idx
    }
    count = Counter(number for read in reads for number in read)
    places: list[_Place] = []
    of: dict[int, _Place] = {}
    for step, (operator, read) in enumerate(zip(operators, reads, strict=True)):
        for number in read:
            if number in of:
                of[number].last = step
        for number in inside.intersection(_ids(operator, made=True)):
            size = _size(values[number])
            once = _in_place(operator) and count[number] == 1
            taken = (of[x] for x in read if once and x in of and count[x] == 1 and _size(values[x]) == size)
            of[number] = next(taken, None) or _Place(step, step, size)
            if of[number].first == step:
                places.append(of[number])
        packed = _packed(operator, values)
        if packed:
            places.append(_Place(step, step, packed))
    return _laid_out(places)


def _tensor(value: Any) -> XNNTensorValue:
    found: XNNTensorValue = getattr(value.xvalue_union, "tensor_value", value.xvalue_union)
    return found


def _size(tensor: XNNTensorValue) -> int:
    numbers: int = math.prod(tensor.dims)
    return numbers * _BYTES.get(tensor.datatype, 4)


def _packed(operator: Any, values: Mapping[int, XNNTensorValue]) -> int:
    """Bytes of the right side of a product as the kernel wants it, where the file does not have it."""
    if isinstance(operator, XNNFullyConnected):
        right, turned = values[operator.filter_id], bool(operator.flags & XNN_FLAG_TRANSPOSE_WEIGHTS)
    elif isinstance(operator, XNNBatchMatrixMultiply):
        right, turned = values[operator.input2_id], not operator.flags & XNN_FLAG_TRANSPOSE_WEIGHTS
    else:
        return 0
    if right.constant_buffer_idx:
        return 0
    *many, rows, columns = right.dims
    outputs, inputs = (columns, rows) if turned else (rows, columns)
    filled = -(-outputs // _SIDE_BY_SIDE) * _SIDE_BY_SIDE
    # a number more for the bias
    return int(math.prod(many) * filled * (inputs + 1) * 4)


def _laid_out(places: list[_Place]) -> int:
    """Bytes of all places, each, from the largest, in the smallest gap between those that live at the same time."""
    laid: list[tuple[int, _Place]] = []
    most = 0
    for place in sorted(places, key=lambda each: -each.size):
        beside = sorted(
            (at, at + other.size)
            for at, other in laid
            if other.first <= place.last and place.first <= other.last
        )
        end, best, least = 0, None, math.inf
        for begin, after in beside:
            if place.size <= begin - end < least:
                best, least = end, begin - end
            end = max(end, after)
        at = end if best is None else best
        laid.append((at, place))
        most = max(most, at + place.size)
    return most


@contextmanager
def workspaces_noted() -> Iterator[Workspaces]:
    """Note the workspace of each delegate that is made meanwhile."""
    found: dict[bytes, int] = {}
    stock = xnnpack_preprocess.serialize_xnnpack_binary

    def noted(graph: XNNGraph, *others: Any) -> bytes:
        size = workspace_bytes(graph)
        made: bytes = stock(graph, *others)
        found[made] = size
        return made

    xnnpack_preprocess.serialize_xnnpack_binary = noted
    try:
        yield found
    finally:
        xnnpack_preprocess.serialize_xnnpack_binary = stock


def in_order(program: fx.GraphModule, workspaces: Workspaces) -> tuple[int, ...]:
    """The workspaces of a lowered program's delegates in the order in which they run, those in loops among them."""
    found: list[int] = []
    for node in program.graph.nodes:
        for each in node.all_input_nodes:
            module = getattr(program, each.target) if each.op == "get_attr" else None
            if isinstance(module, LoweredBackendModule):
                found.append(workspaces[module.processed_bytes])
            elif isinstance(module, fx.GraphModule):
                found.extend(in_order(module, workspaces))
    return tuple(found)
