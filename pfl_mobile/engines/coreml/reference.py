"""Core ML's programs on any machine: an interpreter of the saved package, to compare with PyTorch.

It reads the package itself (:mod:`.wire`) and computes with NumPy (:mod:`.kernels`), so that neither a mistake of the
tool that wrote it nor one of the tool's own reader goes by. It says nothing about speed, and Core ML on a phone may
compute in another order or, on its neural engine, in 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from ...bundle.manifest import ProgramSpec
from ...errors import EngineError, UnsupportedOperatorError
from ..base import Array, EngineSession, file_for
from ..registry import register
from .kernels import KERNELS
from .wire import Function, Operation, Reference, TensorType, read_program

#: Sees a step, its arguments by parameter, and its results.
Watch = Callable[[Operation, Mapping[str, Any], Sequence[Any]], None]


class CoremlReferenceSession(EngineSession):
    """Interprets the functions of a package."""

    name = "coreml-reference"

    def __init__(self, files: Mapping[str, str], programs: Sequence[ProgramSpec]) -> None:
        super().__init__(programs)
        self._functions: dict[str, Function] = {}
        together = read_program(files["model"], files.get("weights")) if "model" in files else None
        for program in self.programs:
            have, function = together, program
            if have is None:
                have, function = (
                    read_program(file_for(files, f"model.{program}"), files.get(f"weights.{program}")),
                    "main",
                )
            if function not in have:
                raise EngineError(
                    f"the Core ML package has no function {function!r}; it has {sorted(have)}",
                    mend="export the bundle again",
                )
            _check_known(have[function])
            self._functions[program] = have[function]

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        spec, function = self.programs[program], self._functions[program]
        got = interpret(function, numbered(zip((i.name for i in spec.inputs), inputs, strict=True)))
        return [
            got[f"out_{number}"].astype(want.dtype, copy=False)
            if got[f"out_{number}"].dtype == np.int32 and want.dtype == "int64"
            else got[f"out_{number}"]
            for number, want in enumerate(spec.outputs)
        ]

    @override
    def close(self) -> None:
        super().close()
        self._functions = {}


def numbered(inputs: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    """Inputs as a package calls them, by their number.

    Args:
        inputs: name and value, in the order of the manifest.

    Raises:
        EngineError: a whole number does not fit.
    """
    return {f"in_{number}": narrowed(array, f"input {name!r}") for number, (name, array) in enumerate(inputs)}


def narrowed(array: Array, what: str) -> Array:
    """Whole numbers as int32, which is what Core ML takes.

    Raises:
        EngineError: a number does not fit.
    """
    if array.dtype != np.int64:
        return array
    small = array.astype(np.int32)
    if (small != array).any():
        raise EngineError(
            f"{what} has a number beyond 32 bits, which Core ML does not have", mend="use smaller ids"
        )
    return small


def _check_known(function: Function) -> None:
    unknown = sorted({o.type for o in function.operations} - set(KERNELS) - {"const"})
    if unknown:
        raise UnsupportedOperatorError(
            f"the interpreter of Core ML's programs does not know {', '.join(map(repr, unknown))}",
            mend="run the bundle on a Mac (--engine coreml), or report the operator",
        )


def interpret(
    function: Function, inputs: Mapping[str, Array], watch: Watch | None = None
) -> dict[str, Array]:
    """Outputs of a function by name.

    Args:
        function: of a package.
        inputs: as `numbered` gives them.
        watch: is shown every step with its arguments and results.

    Raises:
        EngineError: a value has another shape than the program declares, or is missing.
    """
    values: dict[str, Any] = {}
    for name, declared in function.inputs:
        if name not in inputs:
            raise EngineError(f"the function takes {name!r}", mend="export the bundle again")
        values[name] = _as_declared(inputs[name], declared, name)
    left = Counter(function.outputs)
    for operation in function.operations:
        left.update(b.name for bound in operation.inputs.values() for b in bound if isinstance(b, Reference))
    with np.errstate(all="ignore"):
        for operation in function.operations:
            results = _computed(operation, values, watch)
            for (name, declared), result in zip(operation.outputs, results, strict=True):
                values[name] = _as_declared(result, declared, f"{operation.type} {name!r}")
            for bound in operation.inputs.values():
                for b in bound:
                    if isinstance(b, Reference):
                        left[b.name] -= 1
                        if not left[b.name]:
                            del values[b.name]
    return {name: values[name] for name in function.outputs}


def _computed(operation: Operation, values: Mapping[str, Any], watch: Watch | None) -> Sequence[Any]:
    if operation.type == "const":
        return [operation.value]

    def value(bound: Reference | Array | str) -> Any:
        found: Any = values[bound.name] if isinstance(bound, Reference) else bound
        half = isinstance(found, np.ndarray) and found.dtype == np.float16
        return found.astype(np.float32) if half else found

    arguments: dict[str, Any] = {}
    for name, bound in operation.inputs.items():
        arguments[name] = [value(b) for b in bound] if name == "values" else value(bound[0])
    try:
        result = KERNELS[operation.type](arguments)
    except (ValueError, IndexError, KeyError, TypeError, NotImplementedError) as error:
        raise EngineError(
            f"{operation.type} {operation.outputs[0][0]!r} cannot be computed: {error or type(error).__name__}",
            mend="export the bundle again; if it happens again, report the operator",
        ) from error
    results = result if isinstance(result, list) else [result]
    if watch is not None:
        watch(operation, arguments, results)
    return results


def _as_declared(value: Any, declared: TensorType | None, what: str) -> Any:
    if isinstance(value, str) or declared is None:
        return value
    array = np.asarray(value)
    if array.shape != declared.shape:
        raise EngineError(
            f"{what} has shape {list(array.shape)}, the program declares {list(declared.shape)}",
            mend="export the bundle again",
        )
    return array.astype(declared.in_memory, copy=False)


@register("coreml-reference", runtime=("numpy",), files_of="coreml", only_named=True)
def load(
    files: Mapping[str, str],
    programs: Sequence[ProgramSpec],
    threads: int | None,  # noqa: ARG001
) -> CoremlReferenceSession:
    """Read the package of a bundle."""
    return CoremlReferenceSession(files, programs)
