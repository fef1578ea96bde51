"""Reference engine: the exported programs run by PyTorch.

``torch.export.load`` unpickles objects and calls functions that a file names. A file with anything but plain
tensors, ATen operators and loops of them, which is all that an export writes, is therefore refused before it is
loaded. That bounds what a bundle of unknown origin can do, but PyTorch gives no guarantee: pin the key of bundles of
others.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError
from .base import Array, EngineSession, file_for
from .registry import register

_TARGET = re.compile(r"torch\.ops\.(aten\.\w+\.\w+|higher_order\.scan)|_operator\.getitem")
#: Entries of our files: a graph, raw weights, their tables, example inputs, and marks of the format.
_MEMBER = re.compile(
    r"\w+/(models/model\.json|data/(weights/(weight_[0-9]+|model_weights_config\.json)|constants/(tensor_[0-9]+|"
    r"model_constants_config\.json)|sample_inputs/model\.pt)|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id))"
)


class TorchSession(EngineSession):
    """Runs ``torch.export`` programs, or any callables over tensors."""

    name = "torch"

    def __init__(self, programs: Sequence[ProgramSpec], functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(programs)
        self._functions = dict(functions)

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        import torch

        with torch.no_grad():
            outputs = self._functions[program](*(torch.from_numpy(np.array(a)) for a in inputs))
        return [o.detach().contiguous().numpy() for o in outputs]

    @override
    def close(self) -> None:
        super().close()
        self._functions = {}


@register("torch", runtime=("torch",), only_named=True)
def load(files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None) -> TorchSession:
    """Load ``.pt2`` files, one per program."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    functions: dict[str, Callable[..., Any]] = {}
    for program in programs:
        path = Path(file_for(files, program.name))
        reason = None
        try:
            reason = _suspicious(path)
            if reason is None:
                functions[program.name] = torch.export.load(path).module()
        except Exception as error:  # whatever PyTorch raises for a file that is not one of its own
            raise EngineError(
                f"PyTorch cannot load {path.name}: {error}", mend="export the bundle again"
            ) from error
        if reason is not None:
            raise EngineError(
                f"{path.name} has {reason}, which no export writes and which could run code",
                mend="do not use this bundle unless you know who made it",
            )
    return TorchSession(programs, functions)


def _suspicious(path: Path) -> str | None:
    """What in a ``.pt2`` file is neither plain tensors nor ATen operators."""
    import torch

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if not _MEMBER.fullmatch(name) or names.count(name) > 1:
                return f"the entry {name!r}"
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith(".json"):
                for key, value in _fields(json.loads(archive.read(name))):
                    if (key == "use_pickle" and value) or key in ("expr_str", "as_custom_obj"):
                        return f"the field {key!r}"
                    if key == "target" and not _TARGET.fullmatch(str(value)):
                        return f"the operator {value!r}"
                    if key == "name" and value and not re.fullmatch(r"\w+", str(value)):
                        return f"the name {value!r}"
    return None


def _fields(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _fields(child)
