"""Schedules: programs that are run as calls of parts, so that blocks which repeat are in a bundle once.

The blocks of a transformer are one program with other weights. A schedule names the parts (small programs of their
own, in the engine's files), the constants that are given to them (one file beside, mapped and never read as a whole),
and for each program of the bundle which part is called with what, in which order. A value is dropped after its last
reader, so one block's intermediate results are in memory at a time. To all who use it, a session of scheduled programs
is one like any other.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from ..bundle.consistency import check_size, tensor_bytes, unique
from ..bundle.manifest import Count, DType, ProgramName, ProgramSpec, TensorSpec, parse_document
from ..errors import EngineError, InvalidManifestError, PflError, near
from ..files.reading import open_bytes, read_bytes
from .base import Array, EngineSession, file_for
from .values import Values, large_values_apart

#: Purposes of an engine's files: the schedule, and the constants that it gives to parts.
SCHEDULE, CONSTANTS = "schedule", "constants"
#: The newest schema of schedules that this version writes and reads.
SCHEMA_VERSION = 1
#: Offsets in the file of constants are multiples of this, so that each is aligned when the file is mapped.
ALIGNMENT = 64

#: What a call reads: ``input:NAME`` of the program, ``constant:NAME``, or ``value:N`` that an earlier call gave.
Reference = Annotated[
    str,
    # one spelling for each value: they are looked up by their names
    Field(pattern=r"^(input:[^\x00-\x1f\x7f]{1,200}|constant:[a-z0-9_]{1,64}|value:(0|[1-9][0-9]{0,6}))$"),
]
_ConstantName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ConstantEntry(_Model):
    """A tensor in the file of constants: row after row, little-endian, from ``offset``."""

    shape: tuple[Count, ...]
    dtype: DType
    offset: Count

    def named(self, name: str) -> TensorSpec:
        """The form of the tensor, under its name."""
        return TensorSpec(name=name, shape=self.shape, dtype=self.dtype)


class PartCall(_Model):
    """One run of a part: what it reads, in the order of its inputs, and the values that its outputs become."""

    part: ProgramName
    inputs: tuple[Reference, ...]
    outputs: tuple[Count, ...] = Field(min_length=1)


class Course(_Model):
    """The calls of one program, in order, and where its outputs are, in the order of the manifest."""

    calls: tuple[PartCall, ...] = Field(min_length=1)
    outputs: tuple[Reference, ...] = Field(min_length=1)


class Schedule(_Model):
    """The content of a schedule's file.

    Attributes:
        parts: signatures of the small programs in the engine's files.
        constants: what the file of constants holds.
        programs: the calls of each program of the bundle, by name.
    """

    schema_version: Literal[1] = 1
    kind: Literal["pfl-schedule"] = "pfl-schedule"
    parts: tuple[ProgramSpec, ...] = Field(min_length=1)
    constants: dict[_ConstantName, ConstantEntry]
    programs: dict[ProgramName, Course] = Field(min_length=1)

    @model_validator(mode="after")
    def _calls_fit(self) -> Schedule:
        unique("part", (part.name for part in self.parts))
        parts = {part.name: part for part in self.parts}
        for part in self.parts:
            for spec in (*part.inputs, *part.outputs):
                check_size(f"part {part.name!r}", spec)
        for name, entry in self.constants.items():
            check_size("the schedule", entry.named(name))
            if entry.offset % ALIGNMENT:
                raise ValueError(
                    f"constant {name!r} begins at {entry.offset}, which is no multiple of {ALIGNMENT}"
                )
        for name, course in self.programs.items():
            given: dict[int, TensorSpec] = {}
            for number, call in enumerate(course.calls):
                where = f"call {number} of program {name!r}"
                if call.part not in parts:
                    raise ValueError(
                        f"{where} is of part {call.part!r}, which is not listed; {near(call.part, parts)}"
                    )
                part = parts[call.part]
                if (len(call.inputs), len(call.outputs)) != (len(part.inputs), len(part.outputs)):
                    raise ValueError(
                        f"{where} gives {call.part!r} {len(call.inputs)} inputs and takes {len(call.outputs)} outputs; "
                        f"it has {len(part.inputs)} and {len(part.outputs)}"
                    )
                for reference, want in zip(call.inputs, part.inputs, strict=True):
                    self._check_reference(where, reference, given, want)
                for value, output in zip(call.outputs, part.outputs, strict=True):
                    if value in given:
                        raise ValueError(f"{where} makes value {value}, which is there already")
                    given[value] = output
            for reference in course.outputs:
                self._check_reference(f"an output of program {name!r}", reference, given, None)
        return self

    def _check_reference(
        self, where: str, reference: str, given: Mapping[int, TensorSpec], want: TensorSpec | None
    ) -> None:
        """What is named is there, and of the form that is wanted; inputs are looked at when the manifest is at hand."""
        kind, _, name = reference.partition(":")
        found: TensorSpec | ConstantEntry | None
        if kind == "input":
            return
        found = self.constants.get(name) if kind == "constant" else given.get(int(name))
        if found is None:
            raise ValueError(f"{where} reads {reference!r}, which is not there")
        if want is not None and (found.shape, found.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"{where} reads {reference!r} of {found.dtype} {list(found.shape)}; the part takes {want.dtype} "
                f"{list(want.shape)}"
            )

    def constant_bytes(self, name: str) -> int:
        """Bytes of a constant."""
        return tensor_bytes(self.constants[name].named(name))

    def to_json(self) -> bytes:
        """The bytes of the file; the same schedule always gives the same."""
        return (
            json.dumps(self.model_dump(mode="json"), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        )


def parse_schedule(data: bytes, programs: Sequence[ProgramSpec]) -> Schedule:
    """Parse and check the bytes of a schedule.

    Args:
        data: of the file.
        programs: of the bundle, which it has to be for.

    Raises:
        SchemaVersionError: it is of a newer schema.
        InvalidManifestError: it is not JSON, breaks the schema, or is not for these programs.
    """
    schedule = parse_document(
        data,
        Schedule,
        what="the schedule",
        not_one="the schedule needs",
        kind="pfl-schedule",
        newest=SCHEMA_VERSION,
        values=_MOST_VALUES,
    )
    for fault in _faults(schedule, programs):
        raise InvalidManifestError(f"the schedule is not of this bundle: {fault}", mend=_AGAIN)
    return schedule


def _faults(schedule: Schedule, programs: Sequence[ProgramSpec]) -> Iterator[str]:
    """What does not fit between a schedule and the programs of its bundle."""
    parts = {part.name: part for part in schedule.parts}
    for program in programs:
        course = schedule.programs.get(program.name)
        if course is None:
            yield f"it has no program {program.name!r}"
            continue
        known: dict[str, TensorSpec] = {f"input:{spec.name}": spec for spec in program.inputs}
        for call in course.calls:
            part = parts[call.part]
            for reference, want in zip(call.inputs, part.inputs, strict=True):
                if reference.startswith("input:"):
                    spec = known.get(reference)
                    if spec is None or (spec.shape, spec.dtype) != (want.shape, want.dtype):
                        yield f"part {call.part!r} does not take {reference!r} of program {program.name!r}"
            known |= {f"value:{n}": spec for n, spec in zip(call.outputs, part.outputs, strict=True)}
        known |= {f"constant:{name}": entry.named(name) for name, entry in schedule.constants.items()}
        given = [known.get(reference) for reference in course.outputs]
        if [g and (g.shape, g.dtype) for g in given] != [(o.shape, o.dtype) for o in program.outputs]:
            yield f"the outputs of program {program.name!r} are other ones"


class ScheduledSession(EngineSession):
    """Programs that are calls of parts.

    Args:
        parts: session of the parts; it is closed with this one.
        schedule: the calls.
        constants: path of the file of constants; None where the schedule has none.
        programs: signatures of the programs.

    Raises:
        EngineError: the file of constants cannot be read, or is shorter than the schedule says.
    """

    def __init__(
        self, parts: EngineSession, schedule: Schedule, constants: str | None, programs: Sequence[ProgramSpec]
    ) -> None:
        super().__init__(programs)
        large_values_apart()
        self.name = parts.name
        self._parts = parts
        self._values = Values()
        parts.room = self._values.take
        self._courses = schedule.programs
        self._specs = {part.name: part for part in schedule.parts}
        self._constants = {} if constants is None else _mapped(constants, schedule)
        self._last = {name: last_readers(course) for name, course in schedule.programs.items()}

    @override
    def _execute(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        try:
            return self._run(program, inputs)
        finally:
            self._values.leave()

    def _run(self, program: str, inputs: list[Array]) -> Sequence[Array]:
        course, last = self._courses[program], self._last[program]
        values: dict[str, Array] = {
            f"input:{spec.name}": array
            for spec, array in zip(self.programs[program].inputs, inputs, strict=True)
        }
        for number, call in enumerate(course.calls):
            spec = self._specs[call.part]
            given = {
                want.name: values[name] if name in values else self._constants[name]
                for want, name in zip(spec.inputs, call.inputs, strict=True)
            }
            try:
                made = self._parts.run(call.part, given)
            except PflError as error:
                # of the same kind, but a part's name alone says nothing to who knows the program
                error.message = f"call {number} of program {program!r}, part {call.part!r}: {error.message}"
                error.args = (error.message,)
                raise
            del given
            for value, output in zip(call.outputs, spec.outputs, strict=True):
                values[f"value:{value}"] = made[output.name]
            del made
            for name in last[number]:
                self._values.give(values.pop(name))
        # what no call made belongs to the caller, or is the mapped file
        return [
            values[name]
            if name.startswith("value:")
            else (values[name] if name in values else self._constants[name]).copy()
            for name in course.outputs
        ]

    @override
    def close(self) -> None:
        super().close()
        self._parts.close()
        self._values = Values()
        self._constants = {}


def last_readers(course: Course) -> list[frozenset[str]]:
    """For each call, the inputs and values that nobody reads after it; what it makes for nobody is among them.

    Constants are in the mapped file, and never dropped.
    """
    last: dict[str, int] = {}
    for number, call in enumerate(course.calls):
        last |= {f"value:{value}": number for value in call.outputs}
        last |= {name: number for name in call.inputs if not name.startswith("constant:")}
    for name in course.outputs:
        last.pop(name, None)
    ends: list[set[str]] = [set() for _ in course.calls]
    for name, number in last.items():
        ends[number].add(name)
    return [frozenset(end) for end in ends]


def _mapped(path: str, schedule: Schedule) -> dict[str, Array]:
    """The constants by reference, as read-only views of the mapped file."""
    try:
        with open_bytes(path) as file:
            size = file.seek(0, 2)
            data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise EngineError(f"cannot read the file of constants: {error}", mend=_AGAIN) from error
    found: dict[str, Array] = {}
    for name, entry in schedule.constants.items():
        count = schedule.constant_bytes(name)
        if entry.offset + count > size:
            raise EngineError(
                f"the file of constants has {size} bytes, and {name!r} ends at {entry.offset + count}",
                mend=_AGAIN,
            )
        kind = np.dtype(entry.dtype).newbyteorder("<")
        flat = np.frombuffer(data, kind, count // kind.itemsize, entry.offset) if count else np.empty(0, kind)
        found[f"constant:{name}"] = flat.reshape(entry.shape)
    return found


def scheduled(
    files: Mapping[str, str],
    programs: Sequence[ProgramSpec],
    load: Callable[[Mapping[str, str], Sequence[ProgramSpec]], EngineSession],
) -> EngineSession:
    """A session of an engine's files, through their schedule where they have one.

    Args:
        files: of the engine, by purpose.
        programs: signatures of the bundle's programs.
        load: opens files that hold programs of these signatures.

    Raises:
        InvalidManifestError: the schedule is damaged, or not of these programs.
        EngineError: the engine refuses the files.
    """
    if SCHEDULE not in files:
        return load(files, programs)
    try:
        content = read_bytes(files[SCHEDULE])
    except OSError as error:
        raise EngineError(f"cannot read the schedule: {error}", mend=_AGAIN) from error
    schedule = parse_schedule(content, programs)
    constants = file_for(files, CONSTANTS) if schedule.constants else None
    parts = load(files, schedule.parts)
    try:
        return ScheduledSession(parts, schedule, constants, programs)
    except BaseException:
        parts.close()
        raise


_AGAIN = "obtain the bundle again, or export it again"
#: Values in a schedule; one of sixty blocks has 20,000.
_MOST_VALUES = 1_000_000
