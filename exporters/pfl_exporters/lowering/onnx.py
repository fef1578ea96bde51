"""ONNX programs for stock ONNX Runtime: one graph for each program, all reading one weight file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch.onnx._internal.exporter._registration import ONNXRegistry

from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.programs.trace import TracedProgram

from .files import Lowered, Report
from .graphs import code_when_called, decomposed_once, export_with_loops
from .quiet import quiet

#: Newest operator set that all supported runtimes read, mobile builds of the last two years included.
OPSET = 18
#: Oldest ONNX Runtime that reads ``OPSET`` in a file of ``IR_VERSION``.
OLDEST_RUNTIME = "1.18"
#: Of the files; ``OLDEST_RUNTIME`` has to change with it.
IR_VERSION = 10
#: Smaller constants stay in the graph.
EXTERNAL_BYTES = 1024
#: Offsets in the weight file are multiples of this, so that it can be mapped.
ALIGNMENT = 4096


class _WeightFile:
    """Appends constants to one file, equal bytes once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115  (closed in finish)
        self._offsets: dict[str, int] = {}

    def move(self, tensor: TensorProto) -> None:
        """Replace the tensor's bytes by a reference into the file."""
        data = numpy_helper.to_array(tensor).tobytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._offsets:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._file.write(data)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.ClearField("int64_data")
        tensor.ClearField("int32_data")
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self.path.name, "offset": self._offsets[digest], "length": len(data)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))

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
    ONNXRegistry.from_torchlib = staticmethod(_operators)
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = _read_operators


def _to_onnx(program: TracedProgram) -> onnx.ModelProto:
    exported = decomposed_once(export_with_loops(program))
    try:
        with quiet(), code_when_called(), _operators_read_once():
            result: Any = torch.onnx.export(
                exported,
                args=(),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                verbose=False,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
            )
    except Exception as error:
        raise UnsupportedOperatorError(
            f"program {program.name!r} has an operator that ONNX does not have: {error}",
            mend="express it in other PyTorch operators, or use --target android",
        ) from error
    return result.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only names the exporter's internals and the machine it ran on."""
    del model.metadata_props[:]
    model.ClearField("doc_string")
    for part in (model.graph, *model.functions):
        for node in part.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:], function.value_info[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def lower(programs: Mapping[str, TracedProgram], folder: Path, report: Report) -> Lowered:
    """Write ``onnx/<program>.onnx`` and ``onnx/weights.bin``.

    Raises:
        UnsupportedOperatorError: ONNX has no form of an operator.
    """
    place = folder / "onnx"
    place.mkdir(parents=True, exist_ok=True)
    weights = _WeightFile(place / "weights.bin")
    files, paths = {"weights": "onnx/weights.bin"}, {"onnx/weights.bin": weights.path}
    try:
        for name, program in programs.items():
            report(f"onnx: {name}")
            model = _to_onnx(program)
            _strip(model)
            model.ir_version = IR_VERSION
            for tensor in model.graph.initializer:
                if numpy_helper.to_array(tensor).nbytes >= EXTERNAL_BYTES:
                    weights.move(tensor)
            path = place / f"{name}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            files[name], paths[f"onnx/{name}.onnx"] = f"onnx/{name}.onnx", path
    finally:
        weights.finish()
    measured = {"model_bytes": sum(p.stat().st_size for p in paths.values())}
    return Lowered(files, paths, measured, OLDEST_RUNTIME)
