"""Compare what an engine computes with what PyTorch computed; numpy only, as on a phone.

The same rules serve the export, which compares with PyTorch itself, and a device, which compares with the
golden calls of its bundle before it trains.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pfl_mobile.errors import EngineMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines.base import Session

#: Largest allowed difference of a tensor, relative to its largest entry. Engines differ from PyTorch by the
#: order of float32 sums, which stays below 1e-5 on the models of the test suite; a wrong gradient is off by
#: 1e-2 or more.
TOLERANCE = 2e-4
#: Prefix of the outputs of ``gradients`` that are gradients.
GRADIENT = "grad."
_HITS = re.compile(r"top[0-9]+_sum")


def relative_error(got: np.ndarray, want: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference over the largest expected entry (or ``floor``); inf when a value is not finite."""
    got64, want64 = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if not (np.isfinite(got64).all() and np.isfinite(want64).all()):
        return math.inf
    scale = max(float(np.abs(want64).max(initial=0.0)), floor)
    difference = float(np.abs(got64 - want64).max(initial=0.0))
    return difference / scale if scale else (math.inf if difference else 0.0)


def _ids_error(got: np.ndarray, want: np.ndarray, probs: np.ndarray | None, tolerance: float) -> float:
    """1 when an id differs that equal probabilities do not explain, else 0.

    Neighbours of equal probability may change places. Who is next after the last is not known: an id there may
    differ where there could be one as likely, and in one row.
    """
    other = np.asarray(got) != want
    if probs is None or not other.any():
        return float(other.any())
    p = np.asarray(probs, np.float64)
    allowed = tolerance * p.max(initial=0.0)
    tie = np.zeros(p.shape, bool)
    near = np.abs(np.diff(p)) <= allowed
    tie[..., 1:] |= near
    tie[..., :-1] |= near
    wrong = other & ~tie
    last = wrong[..., -1] & (1.0 - p.sum(-1) + allowed >= p[..., -1])
    if last.sum() == 1:
        wrong[..., -1] &= ~last
    return float(wrong.any())


class OutputError(NamedTuple):
    """How far one output is from what was expected.

    Attributes:
        name: of the output.
        error: see :func:`relative_error`.
        kind: ``gradient``, ``loss`` or ``other``.
    """

    name: str
    error: float
    kind: str


def output_errors(
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    weight: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> Iterator[OutputError]:
    """The error of every output of one call of a program.

    Args:
        got: what the engine gave, by name.
        want: what PyTorch gave.
        weight: the weights of the batch, where there are any.
        tolerance: from which error on a count of hits is looked at again: one near-tie may fall to the other
            side of float32 rounding, which is no error.
    """
    largest = max(
        (float(np.abs(v).max(initial=0.0)) for k, v in want.items() if k.startswith(GRADIENT)), default=0.0
    )
    for name, expected in want.items():
        if name == "top_ids":
            yield OutputError(
                name, _ids_error(got[name], expected, want.get("top_probs"), tolerance), "other"
            )
            continue
        gradient = name.startswith(GRADIENT)
        # A gradient that is tiny beside the others is rounding noise of the sums.
        error = relative_error(got[name], expected, 1e-4 * largest if gradient else 1e-6)
        if _HITS.fullmatch(name) and tolerance < error < math.inf and weight is not None:
            off = float(np.abs(np.asarray(got[name], np.float64) - expected).max(initial=0.0))
            if off <= 1.0001 * float(weight.max(initial=0.0)):
                error = 0.0
        yield OutputError(name, error, "gradient" if gradient else "loss" if name == "loss_sum" else "other")


@dataclass(frozen=True)
class GoldenReport:
    """The golden calls of a bundle on one engine.

    Attributes:
        engine: its name.
        loss_rel_err: largest relative error of a loss.
        grad_max_rel_err: largest relative error of a gradient.
        ok: whether every output of every program is within the tolerance.
        tolerance: the largest allowed relative error.
        worst: the output that is furthest off, as ``program.output``.
        worst_rel_err: its relative error.
    """

    engine: str
    loss_rel_err: float
    grad_max_rel_err: float
    ok: bool
    tolerance: float
    worst: str
    worst_rel_err: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite error (a value that is not finite) is null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }

    def require(self) -> None:
        """Refuse to go on with an engine that disagrees.

        Raises:
            EngineMismatchError: it does.
        """
        if not self.ok:
            raise EngineMismatchError(
                f"engine {self.engine!r} computes other numbers than PyTorch did at the export: output "
                f"{self.worst!r} is off by {self.worst_rel_err:.2g} (allowed {self.tolerance:g})",
                mend="do not train with this engine here; run `pfl verify` for every engine, and export "
                "again with the version of the runtime that the device has",
            )


def golden_check(bundle: Bundle, session: Session, *, tolerance: float | None = None) -> GoldenReport:
    """Run the golden calls of a bundle and compare every output.

    Args:
        bundle: an open bundle.
        session: its programs on an engine.
        tolerance: largest allowed relative error; None: what the bundle says of programs in mixed precision, and
            ``TOLERANCE`` for all others.

    Raises:
        EngineError: the engine cannot run a program at all.
    """
    if tolerance is None:
        tolerance = _tolerance(bundle, session.name)
    largest = {"loss": 0.0, "gradient": 0.0, "other": 0.0}
    worst = ("", -1.0)
    for program, case in bundle.golden().items():
        got = session.run(program, case.inputs)
        for output in output_errors(got, case.outputs, case.inputs.get("weight"), tolerance):
            largest[output.kind] = max(largest[output.kind], output.error)
            if output.error > worst[1]:
                worst = (f"{program}.{output.name}", output.error)
    error = max(worst[1], 0.0)
    return GoldenReport(
        session.name, largest["loss"], largest["gradient"], error <= tolerance, tolerance, worst[0], error
    )


def _tolerance(bundle: Bundle, engine: str) -> float:
    from pfl_mobile.engines.registry import ENGINES

    reads = ENGINES.find(engine).reads if engine in ENGINES else engine
    entry = bundle.manifest.engines.get(reads)
    return TOLERANCE if entry is None or entry.precision is None else entry.precision.tolerance
