"""The protocol every engine follows: NumPy arrays by name in, NumPy arrays by name out.

Names, shapes and dtypes come from the bundle's manifest and are checked here, once for all engines, so that a
wrong array is an error that names it and never a number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import ProgramSpec
from ..errors import EngineError, PflError, TensorMismatchError, UnknownNameError, near

#: What programs take and give.
Array = NDArray[np.generic]


class Session(Protocol):
    """A loaded set of programs."""

    @property
    def name(self) -> str:
        """The engine's name."""
        ...

    @property
    def programs(self) -> Mapping[str, ProgramSpec]:
        """Signatures of the programs by name."""
        ...

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run ``program``; inputs and outputs as its signature says."""
        ...

    def close(self) -> None:
        """Free the runtime's memory."""
        ...


def check_inputs(spec: ProgramSpec, inputs: Mapping[str, Array]) -> list[Array]:
    """The inputs in the order of the signature. Arrays that the program does not take are left out.

    Raises:
        TensorMismatchError: an input is missing, or has another shape or dtype.
    """
    ordered = []
    for want in spec.inputs:
        if want.name not in inputs:
            raise TensorMismatchError(
                f"program {spec.name!r} needs the input {want.name!r}", mend=near(want.name, inputs)
            )
        array = np.asarray(inputs[want.name])
        if (
            not array.dtype.isnative
        ):  # of a file, for instance: runtimes would read its bytes in the wrong order
            array = array.astype(array.dtype.newbyteorder("="))
        if array.shape != want.shape or array.dtype != dtype_of(want.dtype):
            raise TensorMismatchError(
                f"input {want.name!r} of {spec.name!r} is {array.dtype.name}{list(array.shape)}, "
                f"the program takes {want.dtype}{list(want.shape)}",
                mend="pad or split the batch to the shape that the bundle was exported with",
            )
        # a schedule's step has thousands: no new view where none is needed
        ordered.append(array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(want.shape))
    return ordered


#: Types by their names in manifests: making one from its name costs as much as the rest of a check.
dtype_of = cache(np.dtype)


def file_for(files: Mapping[str, str], purpose: str) -> str:
    """The file that an engine loads for ``purpose``.

    Raises:
        EngineError: the bundle has none.
    """
    if purpose not in files:
        raise EngineError(
            f"the bundle has no file for {purpose!r} of this engine; it has one for {sorted(files)}",
            mend="export the bundle again",
        )
    return files[purpose]


#: Gives the memory for a value of a shape and type.
Room: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]


class EngineSession(ABC):
    """Common part of all engines: look up, check, run, name the outputs.

    Attributes:
        room: where an engine that copies its outputs puts them.
    """

    name: str

    def __init__(self, programs: Sequence[ProgramSpec]) -> None:
        self.room: Room = np.empty
        self.programs: dict[str, ProgramSpec] = {p.name: p for p in programs}

    @abstractmethod
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        """Run one program on checked inputs in order."""

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run ``program``.

        Raises:
            UnknownNameError: there is no such program.
            TensorMismatchError: inputs or outputs are not as the manifest says.
            EngineError: the runtime failed.
        """
        spec = self.programs.get(program)
        if spec is None:
            raise UnknownNameError(f"there is no program {program!r}", mend=near(program, self.programs))
        ordered = check_inputs(spec, inputs)
        try:
            values = self._execute(program, ordered)
        except PflError:
            raise
        except Exception as error:  # the exceptions of the runtimes share no base
            raise EngineError(
                f"engine {self.name!r} failed in program {program!r}: {error or type(error).__name__}",
                mend="run `pfl verify` on the bundle; if it fails too, export it again",
            ) from error
        if len(values) != len(spec.outputs):
            raise TensorMismatchError(
                f"program {program!r} gave {len(values)} outputs, the manifest lists {len(spec.outputs)}",
                mend="export the bundle again",
            )
        result = {}
        for want, value in zip(spec.outputs, values, strict=True):
            if value.shape != want.shape or value.dtype != dtype_of(want.dtype):
                raise TensorMismatchError(
                    f"output {want.name!r} of {program!r} is {value.dtype.name}{list(value.shape)}, "
                    f"the manifest says {want.dtype}{list(want.shape)}",
                    mend="export the bundle again",
                )
            result[want.name] = value
        return result

    def close(self) -> None:
        """Free the runtime's memory; the session cannot be used afterwards."""
        self.programs = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
