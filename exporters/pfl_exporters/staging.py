"""Exporting models of many equal blocks: each kind of block is lowered once (`pfl_mobile.programs.blocks`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pfl_mobile.engines.schedule import CONSTANTS, SCHEDULE, Schedule
from pfl_mobile.errors import ConfigError
from pfl_mobile.programs.blocks import Recompute, Staged, peak, prepare, stage
from pfl_mobile.programs.trace import TracedProgram

from .lowering.files import Lowered, Report, waiting
from .targets import Target

#: From how many equal blocks one after another a model is exported as parts, where nobody says.
LEAST_BLOCKS = 4
#: And from how many bytes of frozen tensors: what is smaller is as quick, and needs less at once, as one program.
LEAST_BYTES = 64 << 20

_LESS = "fewer tokens (--length) or examples (--batch) at once, or --memory with more"

#: Where the files are in a bundle; all engines read the same.
_PLACES = {SCHEDULE: "parts/schedule.json", CONSTANTS: "parts/constants.bin"}


class PlanTooLargeError(ConfigError):
    """A program needs more memory on a target than it may, as it was lowered.

    Args:
        target: name of the target.
    """

    def __init__(self, message: str, *, mend: str, target: str) -> None:
        super().__init__(message, mend=mend)
        self.target = target


@dataclass(frozen=True)
class StagedFiles:
    """Programs as parts, and the files that say how to run them.

    Attributes:
        staged: parts and calls.
        schedule: the calls, as devices read them.
        paths: path inside the bundle -> the file.
        most: bytes of memory that a program may need; None for no bound.
        again: what the backward pass computes again.
    """

    staged: Staged
    schedule: Schedule
    paths: dict[str, Path]
    most: int | None = None
    again: Recompute = Recompute.CHEAP

    def lower(self, target: Target, folder: Path, report: Report) -> Lowered:
        """The parts for one target.

        Raises:
            ExportError: a part cannot be lowered.
            PlanTooLargeError: a program needs more memory as the target's toolchain plans it.
        """
        lowered = target.lower(self.staged.parts, folder, report)
        # what the toolchain plans for a part alone says nothing of a program
        measured = {k: v for k, v in lowered.measured.items() if not k.startswith("planned_")}
        if lowered.memory is not None:
            needs = {
                name: lowered.memory(self.schedule.parts, course)
                for name, course in self.schedule.programs.items()
            }
            worst = max(needs, key=needs.__getitem__)
            if self.most is not None and needs[worst] > self.most:
                raise PlanTooLargeError(
                    f"program {worst!r} plans {needs[worst]:,} bytes of memory on target {target.name}; allowed are "
                    f"{self.most:,}",
                    mend=_LESS,
                    target=target.name,
                )
            measured |= {f"planned_{name}_bytes": value for name, value in needs.items()}
        measured["model_bytes"] += self.paths[_PLACES[CONSTANTS]].stat().st_size
        return replace(
            lowered,
            files={**lowered.files, **_PLACES},
            paths={**lowered.paths, **self.paths},
            measured=measured,
        )


def as_parts(
    programs: Mapping[str, TracedProgram],
    frozen: int,
    folder: Path,
    *,
    wanted: bool | None = None,
    most: int | None = None,
    beyond: Recompute | None = None,
    chosen: Recompute | None = None,
) -> StagedFiles | None:
    """The programs as parts where that pays, and the files that all engines read.

    Args:
        programs: as they were traced.
        frozen: bytes of the frozen tensors.
        folder: for the files.
        wanted: whether to; None where blocks repeat and the model is large, or where there is a bound or a choice.
        most: bytes of memory that a program may need besides what is mapped; the backward pass computes as much again
            as that takes.
        beyond: what needed too much on a target: more is computed again than with it.
        chosen: what the backward pass computes again; None for as little as the bound takes, and what is cheap where
            there is none.

    Raises:
        ConfigError: no program fits into the memory.
    """
    asked = wanted is True or most is not None or chosen is not None
    if wanted is False or (not asked and frozen < LEAST_BYTES):
        return None
    staged, again = _fitting(programs, most, beyond, chosen)
    if not asked and max(staged.repeats["gradients"], default=1) < LEAST_BLOCKS:
        return None
    schedule, pieces = staged.schedule()
    paths = {inner: folder / inner for inner in _PLACES.values()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    paths[_PLACES[SCHEDULE]].write_bytes(schedule.to_json())
    _write(paths[_PLACES[CONSTANTS]], pieces)
    return StagedFiles(staged, schedule, paths, most, again)


def _fitting(
    programs: Mapping[str, TracedProgram],
    most: int | None,
    beyond: Recompute | None,
    chosen: Recompute | None,
) -> tuple[Staged, Recompute]:
    """The programs as parts that fit into memory, with as little as possible computed twice, and what is.

    Raises:
        ConfigError: none does.
    """
    prepared = prepare(programs)
    if most is None:
        again = chosen or Recompute.CHEAP
        return stage(prepared, again), again
    needs: dict[str, int] = {}
    choices = list(Recompute)
    for again in [chosen] if chosen else choices[choices.index(beyond) + 1 if beyond else 0 :]:
        staged = stage(prepared, again)
        inside = {name: peak(part) for name, part in staged.parts.items()}
        needs = {
            name: waiting(course, staged.signatures(), [inside[call.part] for call in course.calls])
            for name, course in staged.courses.items()
        }
        if max(needs.values()) <= most:
            return staged, again
    worst = max(needs, key=needs.__getitem__)
    twice = "all computed again that can be" if chosen is None else f"{chosen.value} computed again"
    raise ConfigError(
        f"program {worst!r} needs {needs[worst]:,} bytes of memory besides the mapped weights, with {twice}; "
        f"allowed are {most:,}",
        mend=_LESS if chosen in (None, Recompute.ALL) else f"{_LESS}, or --recompute {Recompute.ALL.value}",
    )


def _write(path: Path, pieces: Iterator[memoryview]) -> None:
    with open(path, "wb") as file:
        file.writelines(pieces)
