"""ONNX programs for stock ONNX Runtime: one graph for each program, all reading one weight file."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import ir
from torch import Tensor
from torch.onnx._internal.exporter import _constants
from torch.onnx._internal.exporter._registration import ONNXRegistry

from pfl_mobile.engines.onnxruntime import ARENA_BYTES, ARENA_REST_BYTES
from pfl_mobile.engines.schedule import last_readers
from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.files.reading import parse_json
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import (
    DEQUANTIZE,
    DEQUANTIZE_PACKED,
    dequantize,
    one_for_each_use,
    rows_first,
)

from .expand import expand
from .files import Lowered, Report
from .graphs import code_when_called, decomposed_once, operators_listed_once
from .in_rows import in_rows
from .loops import export_with_loops
from .names import traced_as
from .obstacles import Obstacle, Use, first_line, refused, steps, uses, without
from .quiet import quiet
from .stored import has_stored, packed_table

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pfl_mobile.bundle.manifest import ProgramSpec
    from pfl_mobile.engines.schedule import Course

#: Newest operator set that all supported runtimes read, mobile builds of the last two years included.
OPSET = 18
#: Oldest ONNX Runtime that reads ``OPSET`` in a file of ``IR_VERSION``.
OLDEST_RUNTIME = "1.18"
#: Operator set and oldest runtime of weights whose numbers have a scale for each block of them.
OPSET_OF_BLOCKS, OLDEST_RUNTIME_OF_BLOCKS = 21, "1.20"
#: Of the files; ``OLDEST_RUNTIME`` has to change with it.
IR_VERSION = 10
#: Smaller constants stay in the graph.
EXTERNAL_BYTES = 1024
#: Offsets in the weight file are multiples of this, so that it can be mapped.
ALIGNMENT = 4096


def _bytes_of(tensor: TensorProto) -> bytes:
    """As the file stores them: packed, where numbers have 4 bits."""
    return tensor.raw_data if tensor.HasField("raw_data") else bytes(numpy_helper.to_array(tensor).tobytes())


class _WeightFile:
    """Appends constants to one file, equal bytes once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115  (closed in finish)
        self._offsets: dict[str, int] = {}
        #: The same for tensors that programs share, which are kept so that none takes another's place in memory.
        self._known: dict[tuple[Any, ...], tuple[int, Any]] = {}

    def move(self, name: str, tensor: Any) -> ir.ExternalTensor:
        """Write a constant of a model, and give the reference into the file that takes its place."""
        raw = tensor.raw
        shared = isinstance(raw, torch.Tensor)
        key = (raw.data_ptr(), tuple(raw.shape), raw.stride(), raw.dtype) if shared else (id(raw),)
        if key not in self._known:
            self._known[key] = self._append(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data), raw
        return ir.ExternalTensor(
            self.path.name,
            self._known[key][0],
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=name,
        )

    def move_written(self, tensor: TensorProto) -> None:
        """Replace the bytes of a tensor that is written already by a reference into the file."""
        data = _bytes_of(tensor)
        offset = self._append(data)
        for name in ("raw_data", "float_data", "int64_data", "int32_data"):
            tensor.ClearField(name)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": self.path.name, "offset": offset, "length": len(data)}.items():
            tensor.external_data.add(key=key, value=str(value))

    def _append(self, data: Buffer) -> int:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._offsets:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._file.write(data)
        return self._offsets[digest]

    def finish(self) -> None:
        self._file.close()


@cache
def _operators(opset_version: int) -> ONNXRegistry:
    """What ONNX has for each operator of PyTorch; nothing of ours is in it."""
    return _read_operators(opset_version)


_read_operators = ONNXRegistry.from_torchlib


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """The exporter reads its whole library of operators anew for each program: as long as all the rest takes."""
    ONNXRegistry.from_torchlib = staticmethod(
        lambda opset_version=_constants.TORCHLIB_OPSET: _operators(
            opset_version
        )  # by name or not: one answer
    )
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = _read_operators


def _dequantize(numbers: Any, scales: Any, bits: int) -> Any:  # noqa: ARG001  (_store writes them)
    from onnxscript import opset18

    return opset18.DequantizeLinear(numbers, scales, axis=0)


def _scaled(numbers: Tensor, scales: Tensor) -> Tensor:
    """Numbers times their scales in one pass: float32 of the shape of the numbers."""
    flat = torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (numbers.reshape(scales.numel(), -1), scales.reshape(-1)),
        {"axis": 0},
        dtype=torch.float32,
        shape=(scales.numel(), numbers.numel() // scales.numel()),
    )
    return flat.reshape(numbers.shape)


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """What `pack` packed, times scales.

    A byte is 16 h + l + 8. Written in operators of bytes, which the runtime computes 32 at a time (its bitwise ones it
    computes one by one), unpacking takes a third of the time that it takes in float32 (0.21 ns a number instead of 0.68
    on an AMD EPYC, and less memory). h = round((byte - 7.5) / 16), at least 1/32 away from a tie; l = byte - 8 - 16 h.
    """

    def sum_of(first: Tensor, its: float, zero: int, second: Tensor, scale: float, result: float) -> Tensor:
        """round((its (first - zero) + scale second) / result), in bytes."""
        number, byte = partial(torch.tensor, dtype=torch.float32), partial(torch.tensor, dtype=torch.int8)
        return torch.onnx.ops.symbolic(
            "com.microsoft::QLinearAdd",
            (first, number(its), byte(zero), second, number(scale), byte(0), number(result), byte(0)),
            dtype=torch.int8,
            shape=first.shape,
            version=1,
        )

    high = sum_of(packed, 1.0, 0, torch.tensor([-15], dtype=torch.int8), 0.5, 16.0)
    low = sum_of(packed, 1.0, 8, high, -16.0, 1.0)
    return _scaled(torch.cat((low, high), -1), scales)


def _rows(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Rows of a table that the program has itself, as `_pack` packs them, or numbers that it is given."""
    if bits == 8:
        return _scaled(numbers, scales)
    byte = numbers.to(torch.float32)
    high = torch.floor(byte * (1 / 16))
    halves = torch.stack((byte - high * 16.0, high), -1).flatten(-2)
    return dequantize(halves - torch.floor(halves * (1 / 8)) * 16.0, scales)


def _pack(numbers: Tensor) -> Tensor:
    """Two numbers of 4 bits in a byte, as ONNX stores them."""
    halves = numbers.to(torch.uint8) & 15  # of two's complement
    return halves[..., ::2] | (halves[..., 1::2] << 4)


def _with_stored(program: TracedProgram) -> TracedProgram:
    """The program in which a weight of few bits is read anew for each use, and of a table only the rows."""
    if not has_stored(program.graph):
        return program
    graph = copied(program.graph)
    rows_first(graph)
    one_for_each_use(graph)
    for node in list(graph.graph.nodes):
        if node.target is DEQUANTIZE and node.args[2] == 4 and node.args[0].op == "call_function":
            packed_table(graph, node, _pack)
    expand(
        graph,
        {
            DEQUANTIZE: lambda node: None if node.args[0].op == "get_attr" else _rows,
            DEQUANTIZE_PACKED: lambda _: _unpacked,
        },
    )
    return replace(program, graph=graph)


def _store(model: onnx.ModelProto, bits: Mapping[str, int]) -> None:
    """Say how weights of few bits are stored, in place: the exporter knows no blocks, and no numbers of 4 bits.

    Every second reading of a weight spells its axis from the end. Else the runtime would take the two for one, and keep
    the weight as float32 from the forward pass to the backward pass.

    Args:
        model: as the exporter wrote it.
        bits: of the numbers that are a constant, by name.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    uses: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in bits:
            continue
        numbers, scales = (tensors[name] for name in node.input)
        uses[numbers.name] += 1
        rank, blocks = len(numbers.dims), bits[numbers.name] == 4
        axis = int(blocks) if uses[numbers.name] % 2 else int(blocks) - rank
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
        if blocks:
            size = numbers.dims[1] // scales.dims[1]
            node.attribute.append(onnx.helper.make_attribute("block_size", size))
    for name in uses:
        if bits[name] == 4:
            tensor = tensors[name]
            whole = torch.from_numpy(numpy_helper.to_array(tensor).reshape(-1).copy())
            dims = list(tensor.dims)
            packed = _pack(whole).numpy().tobytes()
            tensor.CopyFrom(onnx.helper.make_tensor(name, TensorProto.INT4, dims, packed, raw=True))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and bits.get(node.input[0]) == 8:
            scales = tensors[node.input[1]]
            flat = f"{scales.name}_flat"  # rows of a table are looked up in the scales as they are
            if flat not in tensors:
                tensors[flat] = model.graph.initializer.add()
                tensors[flat].CopyFrom(scales)
                tensors[flat].name = flat
                del tensors[flat].dims[1:]
            node.input[1] = flat
    read = {name for node in model.graph.node for name in node.input}
    for name in [name for name in tensors if f"{name}_flat" in tensors and name not in read]:
        model.graph.initializer.remove(tensors[name])


def _to_onnx(program: TracedProgram, weights: _WeightFile | None = None) -> onnx.ModelProto:
    """The program as a model, its large constants in ``weights`` where there is such a file."""
    program = _with_stored(program)
    if weights is not None:  # a whole program, and no operator that is tried alone
        program = in_rows(program)
    stored = [node for node in program.graph.graph.nodes if node.target is DEQUANTIZE]
    bits = {str(node.args[0].target): int(node.args[2]) for node in stored}
    rewritten = {str(source.target) for node in stored for source in node.all_input_nodes}
    exported = decomposed_once(export_with_loops(program))
    try:
        with quiet(), code_when_called(), operators_listed_once(), _operators_read_once():
            result: Any = torch.onnx.export(
                exported,
                args=(),
                dynamo=True,
                optimize=False,
                opset_version=OPSET_OF_BLOCKS if 4 in bits.values() else OPSET,
                custom_translation_table={DEQUANTIZE: _dequantize},
                verbose=False,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
            )
    except Exception as error:
        raise UnsupportedOperatorError(
            f"ONNX cannot express program {program.name!r}: {first_line(error)}",
            mend="express the operator in other PyTorch operators, or use another target",
        ) from error
    if weights is not None:
        for name, value in result.model.graph.initializers.items():
            if value.const_value.nbytes >= EXTERNAL_BYTES and name not in rewritten:
                value.const_value = weights.move(name, value.const_value)
    model: onnx.ModelProto = result.model_proto
    names = {node.name: traced_as(node) for node in exported.graph.nodes if node.op == "call_function"}
    without = without_kernel(model, names)
    if without:
        raise _NoKernelError(without)
    _store(model, bits)
    if weights is not None:
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL and len(_bytes_of(tensor)) >= EXTERNAL_BYTES:
                weights.move_written(tensor)
    return model


class _NoKernelError(UnsupportedOperatorError):
    """ONNX Runtime has no kernel for what the exporter wrote.

    Args:
        without: what there is no kernel for, by the node of the traced graph that it was written for.
    """

    def __init__(self, without: Mapping[str, str]) -> None:
        self.without = dict(without)
        super().__init__(
            f"ONNX Runtime has no kernel for {', '.join(dict.fromkeys(without.values()))}",
            mend="express the operator in other PyTorch operators, or use another target",
        )


@cache
def _kernels() -> Mapping[tuple[str, str], list[Any]]:
    """The kernels for processors that ONNX Runtime says it has, by domain and operator."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], list[Any]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            found.setdefault((kernel.domain, kernel.op_name), []).append(kernel)
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those of the steps of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def without_kernel(model: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, str]:
    """The steps that ONNX Runtime has no kernel for with these types, and that are no function of others.

    Args:
        model: as the exporter wrote it.
        names: of the nodes of the traced graph, by those that the exporter saw.

    Returns:
        operator and types, by node of the traced graph.
    """
    graphs = list(_graphs(model.graph))
    types = {
        value.name: value.type.tensor_type.elem_type
        for graph in graphs
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.HasField("tensor_type")
    }
    types |= {tensor.name: tensor.data_type for graph in graphs for tensor in graph.initializer}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    found: dict[str, str] = {}
    for node in (node for graph in graphs for node in graph.node):
        if node.op_type == "Constant":
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, OPSET), node.domain)
        except onnx.defs.SchemaError:  # a function of the exporter's own, which is unfolded
            continue
        if schema.has_function or schema.has_context_dependent_function:
            continue
        bound: dict[str, str] = {}
        for formals, actual in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for number, value in enumerate(actual):
                kind = types.get(value)
                if kind and formals:
                    formal = formals[min(number, len(formals) - 1)]
                    bound[formal.type_str] = f"tensor({TensorProto.DataType.Name(kind).lower()})"
        if not any(
            kernel.version_range[0] <= schema.since_version <= kernel.version_range[1]
            and all(bound.get(name, kinds[0]) in kinds for name, kinds in kernel.type_constraints.items())
            for kernel in _kernels().get((node.domain, node.op_type), [])
        ):
            of = ", ".join(kind.removeprefix("tensor(").removesuffix(")") for kind in bound.values())
            found[_written_for(node, names)] = f"{node.op_type} of {of}" if of else node.op_type
    return found


def _written_for(node: onnx.NodeProto, names: Mapping[str, str]) -> str:
    """The node of the traced graph that the exporter wrote a step for."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.fx_node":
            name = entry.value.strip().removeprefix("%").split(" ", 1)[0]
            return names.get(name, name)
    return ""


def missing(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """The operators that the exporter has no translation for, looked up in its library; nothing is lowered."""
    with quiet():
        return [use.obstacle("ONNX has no form of it") for use in uses(programs) if not _translated(use)]


@cache
def _decompositions() -> Mapping[Any, Any]:
    from torch.onnx._internal.exporter import _decomp

    known = _decomp.get_onnx_implemented_overloads(_operators(OPSET))
    table: Mapping[Any, Any] = _decomp.create_onnx_friendly_decomposition_table(set(known))
    return table


def _translated(use: Use) -> bool:
    try:
        becomes = steps(use.node, use.node.target, _decompositions())
    except Exception:  # the exporter will say what it cannot decompose
        return True
    known = _operators(OPSET)
    return all(any(not each.is_complex for each in known.get_decomps(step)) for step in becomes)


def trial(programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
    """What the exporter or the runtime refuses: one use of each operator is translated, and the runtime's list of
    kernels looked up for what comes out."""
    found = missing(programs)
    for use, error in refused(without(uses(programs), found), _to_onnx):
        own = error.without.values() if isinstance(error, _NoKernelError) else ()
        why = f"ONNX Runtime has no kernel for {', '.join(own)}" if own else "ONNX has no form of it"
        found.append(use.obstacle(why))
    return found


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only names the exporter's internals and the machine it ran on."""
    del model.metadata_props[:]
    model.ClearField("doc_string")
    graphs = list(_graphs(model.graph))
    for part in (*graphs, *model.functions):
        part.ClearField("doc_string")
        del part.metadata_props[:]
        for node in part.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
    for function in model.functions:
        del function.value_info[:]
    for graph in graphs:
        for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
            del value.metadata_props[:]


# -- memory of parts -------------------------------------------------------------------------------------------------

#: Of the runtime, and of a loaded session for each of its operators: sessions of 591 took 5.6 MB, of 972 took 9.1 MB,
#: and what is there while they are loaded (ONNX Runtime 1.32).
_BYTES_OF_RUNTIME, _BYTES_OF_NODE = 3_000_000, 9500
#: What the arena notes for each piece of so many bytes, and how long a note is.
_PIECE, _NOTE = 256, 8
#: Operators whose result is their first input.
_SAME = {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"}


def memory(folder: Path, parts: Sequence[ProgramSpec], course: Course) -> int:
    """Bytes that a program of parts takes at once in the engine: its arena, and the loaded sessions.

    Each part runs once on zeros: the runtime says in which order it runs what it has made of a part, and how large
    results are. Then the calls are gone through twice with an arena as the engine has it: a result is there from its
    operator to its last reader, and what a call gives to others until the last of them.

    Args:
        folder: of the files.
        parts: their signatures.
        course: the calls.
    """
    called = {call.part for call in course.calls}
    runs = {p.name: _results(*_run(folder / f"{p.name}.onnx", p), p) for p in parts if p.name in called}
    names = {part.name: [output.name for output in part.outputs] for part in parts}
    arena = _Arena()
    for _ in range(2):
        for number, (call, ends) in enumerate(zip(course.calls, last_readers(course), strict=True)):
            for step in runs[call.part].steps:
                for name, size in step.makes:
                    arena.take(f"{number}:{name}", size)
                for name in step.drops:
                    arena.give_back(f"{number}:{name}")
            own = {f"value:{v}": f"{number}:{n}" for v, n in zip(call.outputs, names[call.part], strict=True)}
            for value, name in own.items():
                arena.rename(name, value)
            for value in ends:
                arena.give_back(value)
        for value in course.outputs:
            arena.give_back(value)
    nodes = sum(len(run.steps) for run in runs.values())
    loaded = _BYTES_OF_RUNTIME + nodes * _BYTES_OF_NODE + ARENA_BYTES // _PIECE * _NOTE
    return arena.touched + loaded


def _run(path: Path, part: ProgramSpec) -> tuple[dict[str, int], list[onnx.NodeProto]]:
    """Bytes of all results of a part, by name, and its operators in the order in which the runtime runs them."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
        options.enable_profiling, options.profile_file_prefix = True, f"{scratch}/run"
        options.optimized_model_filepath = f"{scratch}/made.onnx"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {spec.name: np.zeros(spec.shape, spec.dtype) for spec in part.inputs})
        events = parse_json(Path(session.end_profiling()).read_bytes())
        made = onnx.load(f"{scratch}/made.onnx", load_external_data=False)
    named = {node.name: node for node in made.graph.node if node.name}
    unnamed = [node for node in made.graph.node if not node.name]
    sizes: dict[str, int] = {}
    order: list[onnx.NodeProto] = []
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name == event["name"]:
            continue
        node = named.get(name)
        if node is None:  # what the runtime itself puts in has no name
            node = next(n for n in unnamed if n.op_type == event["args"]["op_name"])
            unnamed.remove(node)
        order.append(node)
        outputs = [output for output in node.output if output]
        for output, form in zip(outputs, event["args"]["output_type_shape"], strict=True):
            ((kind, shape),) = form.items()
            sizes[output] = math.prod(shape) * _KINDS[kind]
    return sizes, order


#: Bytes of a number, as the runtime names its type.
_KINDS = {"float": 4, "double": 8, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1, "float16": 2}


@dataclass(frozen=True)
class _Step:
    """An operator: results that get memory, with their bytes, and results whose memory nobody needs any more."""

    makes: list[tuple[str, int]]
    drops: list[str]


@dataclass(frozen=True)
class _Run:
    """A part as the runtime runs it."""

    steps: list[_Step]


def _results(sizes: Mapping[str, int], order: Sequence[onnx.NodeProto], part: ProgramSpec) -> _Run:
    """When results are there; those that the part gives stay."""
    given = {output.name for output in part.outputs}
    holder: dict[str, str] = {}
    for node in order:
        for output in node.output:
            if output in sizes:
                # what a part gives is no view of anything
                same = node.op_type in _SAME and output == node.output[0] and output not in given
                holder[output] = holder.get(node.input[0], "") if same else output
    left = Counter(holder[n] for node in order for n in (*node.input, *node.output) if holder.get(n))
    steps = []
    for node in order:
        makes = [(output, sizes[output]) for output in node.output if holder.get(output) == output]
        drops = []
        for name in (*node.input, *node.output):
            if own := holder.get(name):
                left[own] -= 1
                if not left[own] and own not in given:
                    drops.append(own)
        steps.append(_Step(makes, drops))
    return _Run(steps)


class _Arena:
    """ONNX Runtime's arena, as far as it has one stretch of addresses: best fit, and holes side by side are one."""

    def __init__(self) -> None:
        self.touched = 0
        self._holes: list[tuple[int, int]] = [(0, 1 << 60)]  # begin, end
        self._taken: dict[str, tuple[int, int]] = {}

    def take(self, name: str, size: int) -> None:
        """A piece for a result, in whole units."""
        size = -(-max(size, 1) // _PIECE) * _PIECE
        begin, end = min((h for h in self._holes if h[1] - h[0] >= size), key=lambda h: (h[1] - h[0], h[0]))
        self._holes.remove((begin, end))
        rest = end - begin - size
        if rest >= min(size, ARENA_REST_BYTES):
            self._holes.append((begin + size, end))
            end = begin + size
        self._taken[name] = (begin, end)
        self.touched = max(self.touched, begin + size)

    def rename(self, name: str, other: str) -> None:
        """The same piece under another name."""
        if name in self._taken:
            self._taken[other] = self._taken.pop(name)

    def give_back(self, name: str) -> None:
        """What a result had, if it is one."""
        if name not in self._taken:
            return
        begin, end = self._taken.pop(name)
        for hole in [h for h in self._holes if begin in h or end in h]:
            self._holes.remove(hole)
            begin, end = min(begin, hole[0]), max(end, hole[1])
        self._holes.append((begin, end))


def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``onnx/<program>.onnx`` and ``onnx/weights.bin``.

    Raises:
        UnsupportedOperatorError: ONNX has no form of an operator.
    """
    place = folder / "onnx"
    place.mkdir(parents=True, exist_ok=True)
    weights = _WeightFile(place / "weights.bin")
    files, paths = {"weights": "onnx/weights.bin"}, {"onnx/weights.bin": weights.path}
    oldest = OLDEST_RUNTIME
    try:
        for name, program in programs.items():
            report(f"onnx: {name}")
            model = _to_onnx(program, weights)
            _strip(model)
            if any(entry.version == OPSET_OF_BLOCKS and not entry.domain for entry in model.opset_import):
                oldest = OLDEST_RUNTIME_OF_BLOCKS
            model.ir_version = IR_VERSION
            path = place / f"{name}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            files[name], paths[f"onnx/{name}.onnx"] = f"onnx/{name}.onnx", path
    finally:
        weights.finish()
    measured = {"model_bytes": sum(p.stat().st_size for p in paths.values())}
    return Lowered(files, paths, measured, oldest, memory=partial(memory, place))
