"""What is said when a target does not take a model: the operator, the layer and line, and which targets do take it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pfl_mobile.errors import (
    EngineError,
    EngineUnavailableError,
    ExportError,
    GradientMismatchError,
    PflError,
    UnsupportedOperatorError,
)
from pfl_mobile.programs import origin
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.trace import TracedProgram, trace_programs

from .locate import NotFoundError, first_wrong
from .lowering.files import Report
from .lowering.obstacles import Obstacle, blamed
from .lowering.quiet import quiet
from .targets import TARGETS, Target
from .verify import Case, check_engine, open_lowered, program_specs

#: Obstacles that a message names.
MOST_NAMED = 6
#: Operators of all programs together up to which other targets are tried, and not only looked up.
MOST_TRIED = 2500


class Places:
    """Which of the user's layers and lines the nodes of the programs come from.

    Args:
        deployment: is traced again when the first place is asked for, and then with its lines noted.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._by_program: dict[str, Mapping[str, origin.Origin]] | None = None

    def found(self, program: str, node: str | None) -> origin.Origin:
        """Where a node comes from; not known where that cannot be found out."""
        if self._by_program is None:
            self._by_program = self._traced()
        return self._by_program.get(program, {}).get(node or "", origin.Origin())

    def of(self, program: str, node: str | None) -> str:
        """The same as the end of a sentence; empty where it is not known."""
        found = self.found(program, node)
        return f" {found}" if found.known else ""

    def _traced(self) -> dict[str, Mapping[str, origin.Origin]]:
        d = self._deployment
        try:
            with quiet(), origin.recording(d.model):
                programs = trace_programs(d.model, d.task, dict(d.batch), dict(d.inputs_of_predict()))
        except Exception:  # whatever a second trace meets: the refusal is said without places then
            return {}
        return {name: origin.origins(program.graph) for name, program in programs.items()}


def grouped(obstacles: Sequence[Obstacle], places: Places) -> list[str]:
    """A line for each operator, with its first place and in how many others it is too."""
    by_operator: dict[tuple[str, str], list[Obstacle]] = {}
    for each in obstacles:
        by_operator.setdefault((each.operator, each.why), []).append(each)
    lines = []
    for (name, why), alike in by_operator.items():
        where = dict.fromkeys(places.of(o.program, o.node) for o in alike)
        known = [place for place in where if place]
        more = f", and in {len(known) - 1} more places" if len(known) > 1 else ""
        program = "" if known else f" in program {alike[0].program!r}"
        lines.append(f"{name}{known[0] if known else program}{more}: {why}" if name else why)
    return lines


class Refuser:
    """Makes the error for a target that does not take a model.

    Args:
        deployment: the model.
        programs: as they were traced.
        reference: what PyTorch gives; None where nothing may be lowered to see which targets take the model.
        report: told about each step.
    """

    def __init__(
        self,
        deployment: Deployment,
        programs: Mapping[str, TracedProgram],
        reference: Sequence[Case] | None,
        report: Report,
    ) -> None:
        self._programs, self._reference, self._report = programs, reference, report
        self.places = Places(deployment)

    def look_up(self, chosen: Sequence[Target]) -> None:
        """Look up the operators before anything is lowered.

        Raises:
            UnsupportedOperatorError: a target lacks some.
        """
        lacking = {target: found for target in chosen if (found := target.missing(self._programs))}
        if lacking:
            raise self._refusal(lacking, chosen)

    def of_lowering(self, target: Target, error: PflError) -> PflError:
        """The error for a target whose toolchain or engine failed; what that said, where no more is known."""
        if isinstance(error, EngineUnavailableError):
            return error
        if not isinstance(error, UnsupportedOperatorError | EngineError) and blamed(error) is None:
            return error
        found = self._tried(target)
        if found:
            return self._refusal({target: found}, [target])
        node = blamed(error)
        where = ""
        if node is not None:
            program = next((p for p in self._programs if self.places.found(p, node).known), "")
            where = self.places.of(program, node)
        said = f"{error.message}{where}"
        return UnsupportedOperatorError(
            said if said.startswith("target ") else f"target {target.name!r} does not take the model: {said}",
            mend=self._way_out({target.name}, "rewrite the layer in other PyTorch operators"),
        )

    def of_numbers(self, target: Target, error: GradientMismatchError, tolerance: float) -> ExportError:
        """The error for a target whose numbers are wrong, with the operator that makes them so."""
        program = self._programs.get(error.program)
        case = next(
            (c for c in self._reference or () if (c.program, c.what) == (error.program, error.batch)), None
        )
        if program is None or case is None:
            return error
        try:
            if target.mixed:
                raise NotFoundError("values in between are wrong in 16 bits everywhere")
            with quiet():
                wrong = first_wrong(target, program, case.inputs, error.output, tolerance, self._report)
        except NotFoundError as why:
            found = f"; which operator it is was not found: {why}"
        except Exception as why:  # the search must not hide what it searches for
            found = f"; which operator it is was not found: {type(why).__name__}"
        else:
            place = self.places.of(program.name, wrong.node)
            found = (
                f"; the first wrong value is that of {wrong.operator}{place}, of shape {list(wrong.shape)}, off by "
                f"{wrong.error:.2g} of its largest entry"
            )
        mend = self._way_out({target.name}, "write that operator in plainer PyTorch")
        told = GradientMismatchError(
            f"target {target.name!r}: {error.message}{found}", mend=f"nothing was written; {mend}"
        )
        told.program, told.output, told.batch = error.program, error.output, error.batch
        return told

    def _tried(self, target: Target) -> list[Obstacle]:
        try:
            return target.obstacles(self._programs)
        except Exception:  # whatever a toolchain raises: the refusal is said without them then
            return []

    def _refusal(self, lacking: Mapping[Target, Sequence[Obstacle]], chosen: Sequence[Target]) -> ExportError:
        said = []
        for target, obstacles in lacking.items():
            lines = grouped(obstacles, self.places)
            more = [f"and {len(lines) - MOST_NAMED} more operators"] if len(lines) > MOST_NAMED else []
            said.append(
                f"target {target.name!r} does not take the model: " + "; ".join(lines[:MOST_NAMED] + more)
            )
        rewrite = "rewrite the layer in other PyTorch operators"
        mend = self._way_out({target.name for target in lacking}, rewrite)
        fine = [target.name for target in chosen if target not in lacking]
        if fine:
            mend += f"; of the targets that you named, {' and '.join(fine)} lack{'s' if len(fine) == 1 else ''} none"
        return UnsupportedOperatorError("\n".join(said), mend=mend)

    def _way_out(self, refused: set[str], rewrite: str) -> str:
        """What works instead: other targets, each tried or looked up now."""
        takes: list[str] = []
        looked_up: list[str] = []
        others: list[Target] = []
        engines = {TARGETS.find(name).engine for name in refused}
        for other in TARGETS.all().values():
            if other.engine in engines or not other.on_phones or other.engine in {t.engine for t in others}:
                continue
            others.append(other)
            try:
                other.load()
                self._report(f"see whether target {other.name} takes the model")
                if other.obstacles(self._programs):
                    continue
                if self._reference is None or self._size() > MOST_TRIED:
                    looked_up.append(other.name)
                elif self._takes(other):
                    takes.append(other.name)
            except Exception:  # not installed, or it fails: then it is no way out
                continue
        ways = []
        if takes:
            ways.append(
                f"use {_options(takes)}, which takes the model (it was lowered just now and its numbers compared with "
                "PyTorch's)"
            )
        if looked_up:
            ways.append(f"try {_options(looked_up)}, which has all operators (looked up, not tried)")
        if not ways and others:
            ways.append(f"{rewrite}; {', '.join(t.name for t in others)} do not take the model either")
            return ways[0]
        return ", or ".join([*ways, rewrite])

    def _size(self) -> int:
        return sum(len(program.graph.graph.nodes) for program in self._programs.values())

    def _takes(self, target: Target) -> bool:
        with quiet(), tempfile.TemporaryDirectory(prefix="pfl-try-") as folder:
            lowered = target.lower(self._programs, Path(folder), lambda _: None)
            with open_lowered(target, lowered, program_specs(self._programs)) as session:
                check_engine(session, list(self._reference or ()), lowered.tolerance)
        return True


def _options(names: Sequence[str]) -> str:
    return " or ".join(f"--target {name}" for name in names)
