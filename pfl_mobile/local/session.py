"""What the device side asks of an engine and of an encoder, and how sums become metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from pfl_mobile.errors import EngineError, NoExamplesError, NonFiniteError, TensorMismatchError
from pfl_mobile.rows import Rows, padded_batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from pfl_mobile.text.blocked import BlockList


class TrainingSession(Protocol):
    """A loaded bundle that runs ``evaluate`` and ``gradients`` (see ``pfl_mobile.engines``)."""

    @property
    def programs(self) -> Mapping[str, Any]:
        """Program name -> spec with ``inputs``, each having ``name``, ``shape`` and ``dtype``."""

    def run(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""


class Encoder(Protocol):
    """Turns texts into rows (see ``pfl_mobile.text.encoder.TextEncoder``)."""

    @property
    def words(self) -> tuple[str, ...]:
        """The user's words in slot order."""

    @property
    def unknown(self) -> int:
        """The id of what is outside the vocabulary."""

    def with_words(self, words: Sequence[str]) -> Encoder:
        """This encoder with these words in the slots."""

    def with_blocked(self, blocked: BlockList) -> Encoder:
        """This encoder for a user who wants these words forgotten: they get no slot and read as unknown."""

    def choose_words(self, texts: Iterable[str], min_count: int = 2) -> list[str]:
        """Slot words for a user who wrote these texts; words that have a slot keep it."""

    def encode(self, texts: Iterable[str], *, drop_unknown: bool = False) -> Any:
        """Rows of the texts, labels outside the vocabulary with weight 0 if ``drop_unknown``."""


class Programs:
    """The two programs of a session, with batches cut to their inputs.

    Args:
        session: engine with the bundle loaded.
        tensors: names of all device tensors.
    """

    def __init__(self, session: TrainingSession, tensors: Iterable[str]) -> None:
        """Read the input names and the batch size from the programs."""
        self.session = session
        known = set(tensors)
        self.inputs: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for program in ("gradients", "evaluate"):
            if program not in session.programs:
                raise EngineError(f"the bundle has no program {program!r}", mend="export it again")
            specs = session.programs[program].inputs
            self.inputs[program] = [spec.name for spec in specs]
            self.shapes.update({s.name: tuple(s.shape) for s in specs if s.name not in known})
            self.dtypes.update({s.name: str(s.dtype) for s in specs if s.name not in known})
        self.batch_size = self.shapes["weight"][0]

    def check(self, rows: Mapping[str, np.ndarray]) -> None:
        """Refuse rows that do not fit the programs.

        Raises:
            TensorMismatchError: an input is missing or has another shape or dtype.
        """
        for name, shape in self.shapes.items():
            if name not in rows:
                raise TensorMismatchError(f"the rows have no {name!r}", mend=f"give {sorted(self.shapes)}")
            if rows[name].dtype.name != self.dtypes[name]:
                raise TensorMismatchError(
                    f"rows of {name!r} are {rows[name].dtype}, the program takes {self.dtypes[name]}",
                    mend="convert them",
                )
            if rows[name].shape[1:] != shape[1:]:
                raise TensorMismatchError(
                    f"rows of {name!r} have shape {list(rows[name].shape[1:])}, "
                    f"the program takes {list(shape[1:])}",
                    mend="encode the examples for this bundle",
                )

    def gradients(
        self, batch: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Outputs of ``gradients``; arguments by name, what the program does not take is left out."""
        return self._run("gradients", batch, tensors)

    def evaluate(self, rows: Rows, tensors: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics over all rows: ``loss`` and every ``<metric>_sum`` output, each divided by the weight.

        Raises:
            NoExamplesError: the rows have no weight.
        """
        totals, weight = self.sums(rows, tensors)
        return {name: total / weight for name, total in totals.items()}

    def sums(self, rows: Rows, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, float], float]:
        """What ``evaluate`` divides: every metric's sum by name, and the weight.

        Sums are added in float64 in batch order.

        Raises:
            NoExamplesError: the rows have no weight.
        """
        totals: dict[str, float] = {}
        for batch in padded_batches(rows, self.batch_size):
            for name, value in self._run("evaluate", batch, tensors).items():
                if name.endswith("_sum"):
                    totals[name] = totals.get(name, 0.0) + float(value.reshape(-1)[0])
        weight = totals.pop("weight_sum", 0.0)
        if weight <= 0:
            raise NoExamplesError("the held-out examples have no weight", mend="hold out more examples")
        return {name.removesuffix("_sum"): total for name, total in totals.items()}, weight

    def _run(
        self, program: str, batch: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return self.session.run(
            program, {n: batch[n] if n in self.shapes else tensors[n] for n in self.inputs[program]}
        )


def scalar(outputs: Mapping[str, np.ndarray], name: str) -> float:
    """One number of a program's outputs.

    Raises:
        NonFiniteError: it is NaN or infinite.
    """
    value = float(outputs[name].reshape(-1)[0])
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{name} is {value}",
            mend="lower the learning rate or set clip; the state before training is kept",
        )
    return value
