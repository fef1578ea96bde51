"""Which targets will take a model, and what stands in the way: ``pfl-export --check``, without lowering.

The model is traced as for an export, the traced graphs are compared with PyTorch, and every operator is looked up in
what each target's runtime and toolchain say they have. Where a toolchain refuses operators that it lists, one use of
each is translated. Nothing is lowered, so no number of a target is compared: this is no verification, an export is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfl_mobile.errors import ConfigError, ExportError, PflError, UnsupportedOperatorError
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.trace import TracedProgram, trace_programs, trained_names
from pfl_mobile.programs.weights import WeightFormat

from .export import frozen_bytes
from .lowering.files import Report
from .lowering.obstacles import Obstacle
from .lowering.quiet import ALONE, aloud, quiet
from .refusals import Places, grouped
from .targets import Target, check_weights
from .verify import compared_with_pytorch

#: Numbers of a model up to which its traced graphs are compared with PyTorch.
MOST_COMPARED = 50_000_000
NOT_VERIFIED = (
    "Looked up, not verified: nothing was lowered, and no target's numbers were compared with PyTorch's. "
    "An export does both, and writes nothing where they differ."
)


@dataclass(frozen=True)
class TargetAnswer:
    """What is known of one target.

    Attributes:
        takes: whether nothing is known to stand in the way; None where its tools are not installed.
        obstacles: what does, each operator with its place in the user's model.
        lines: the same for people, equal operators together.
        note: what else there is to say.
    """

    takes: bool | None
    obstacles: tuple[dict[str, Any], ...] = ()
    lines: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"takes": self.takes, "obstacles": list(self.obstacles), "note": self.note or None}


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` found.

    Attributes:
        name: of the bundle that an export would write.
        refused: why no target takes the model, where it cannot be traced or its graphs are wrong; None where it can.
        targets: by name, in the order in which they were asked for.
        parameters: numbers of the backbone, with the modules in it.
        trained: names of the tensors that a device trains.
        trained_numbers: numbers in them.
        frozen_bytes: bytes of the frozen tensors that the programs need; None where there are no programs.
        operators: of each program.
        compared: whether the traced graphs were compared with PyTorch.
        seconds: by step.
    """

    name: str
    refused: PflError | None
    targets: dict[str, TargetAnswer]
    parameters: int
    trained: tuple[str, ...]
    trained_numbers: int
    frozen_bytes: int | None
    operators: dict[str, int]
    compared: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is known to stand in the way of any target that could be asked."""
        return self.refused is None and all(answer.takes is not False for answer in self.targets.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        refused = self.refused
        return {
            "name": self.name,
            "ok": self.ok,
            "verified": False,
            "refused": refused and {"type": refused.code, "message": refused.message, "mend": refused.mend},
            "targets": {name: answer.to_json() for name, answer in self.targets.items()},
            "parameters": self.parameters,
            "trained": {"tensors": len(self.trained), "numbers": self.trained_numbers},
            "frozen_bytes": self.frozen_bytes,
            "operators": self.operators,
            "compared_with_pytorch": self.compared,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def check(
    deployment: Deployment,
    targets: Sequence[Target],
    *,
    seed: int = 0,
    report: Report = lambda _: None,
    missing: Mapping[str, str] | None = None,
) -> CheckReport:
    """Look what stands between a model and its targets.

    Args:
        deployment: the model and what goes with it.
        targets: to ask, their tools loaded.
        seed: of the random batches of the comparison.
        report: told about every step.
        missing: targets whose tools are not installed, and how to get them.

    Raises:
        ConfigError: the batches do not fit the task, or nothing is trained.
    """
    check_weights(targets, WeightFormat.of(deployment.weights))
    with ALONE, deployment.stored():
        return _check(deployment, targets, seed, aloud(report), missing or {})


def _check(
    deployment: Deployment, targets: Sequence[Target], seed: int, report: Report, missing: Mapping[str, str]
) -> CheckReport:
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = now - clock, now

    model = deployment.model
    numbers = sum(p.numel() for p in model.backbone.parameters())
    refused: PflError | None = None
    programs: dict[str, TracedProgram] = {}
    compared = False
    report("trace")
    try:
        programs = trace_programs(
            model,
            deployment.task,
            dict(deployment.batch),
            dict(deployment.inputs_of_predict()),
            say=report,
        )
        lap("trace")
        if numbers <= MOST_COMPARED:
            report("compare the traced graphs with PyTorch")
            compared_with_pytorch(deployment, programs, seed, rounds=1)
            compared = True
            lap("compare")
    except ConfigError:
        raise
    except ExportError as error:  # no target takes it
        refused = error
    answers: dict[str, TargetAnswer] = {}
    places = Places(deployment)
    for target in targets:
        report(f"look up the operators of {target.name}")
        answers[target.name] = (
            _answer(target, programs, places)
            if programs
            else TargetAnswer(False, note="the model is not traced")
        )
        lap(target.name)
    for name, mend in missing.items():
        answers[name] = TargetAnswer(None, note=f"not looked at: {mend}")
    trained = trained_names(model)
    values = model.values()
    return CheckReport(
        name=deployment.name,
        refused=refused,
        targets=answers,
        parameters=numbers,
        trained=trained,
        trained_numbers=sum(values[name].numel() for name in trained),
        frozen_bytes=frozen_bytes(programs) if programs else None,
        operators={
            name: sum(n.op == "call_function" for n in each.graph.graph.nodes)
            for name, each in programs.items()
        },
        compared=compared,
        seconds=seconds,
    )


def _answer(target: Target, programs: Mapping[str, TracedProgram], places: Places) -> TargetAnswer:
    note = "whether it bears fewer bits is known after an export only" if target.mixed else ""
    if target.obstacles_in is None:
        note = "nothing is known of its operators before an export"
    try:
        with quiet():
            found = target.obstacles(programs)
    except UnsupportedOperatorError as error:
        found = [Obstacle("", None, "", error.message)]
    except Exception as error:  # whatever a toolchain raises: then an export will tell
        return TargetAnswer(None, note=f"could not be looked at: {type(error).__name__}")
    return TargetAnswer(
        not found,
        tuple(_plain(each, places) for each in found),
        tuple(grouped(found, places)),
        note,
    )


def _plain(obstacle: Obstacle, places: Places) -> dict[str, Any]:
    found = places.found(obstacle.program, obstacle.node)
    return {
        "operator": obstacle.operator or None,
        "program": obstacle.program or None,
        "layer": found.layer,
        "file": found.file or None,
        "line": found.line or None,
        "why": obstacle.why,
    }
