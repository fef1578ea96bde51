"""What is told of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_mobile.data.failures import counted, kind, kinds
from pfl_mobile.errors import CohortFailedError
from pfl_mobile.simulation.worker import Record

_MENDS = {
    "NonFiniteError": "lower the learning rate or set clip, and scale the inputs and targets to about 1",
    "TooFewUpdatesError": "take larger cohorts, or a merge rule that needs fewer updates",
}


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Attributes:
        round: counted from 0.
        clients: devices whose updates were merged; where there are none the server's values stay as they are.
        dropped: devices that did not answer.
        failures: devices that failed, by the name of the error.
        failed: (index, reason) of each of them.
        examples: training examples of the merged devices.
        steps: optimizer steps of the merged devices, in all.
        loss: mean over the merged devices of their mean training loss; None where nothing was trained.
        reports: mean over the merged devices of everything that the plan measured.
        bytes_down: sent to each device, mean, without what it has from the bundle.
        bytes_up: sent by each device, mean.
        seconds: from the choice of the cohort to the merge.
        epsilon: of all rounds so far, where they are private.
    """

    round: int
    clients: int
    dropped: int
    failures: Mapping[str, int]
    failed: Sequence[tuple[int, str]]
    examples: int
    steps: int
    loss: float | None
    reports: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float
    epsilon: float | None = None

    @classmethod
    def load(cls, line: Mapping[str, Any]) -> RoundRecord:
        """The record that a line of the history holds."""
        return cls(**{**line, "failed": [(int(client), str(why)) for client, why in line["failed"]]})


def summary(
    number: int,
    records: Sequence[Record],
    *,
    dropped: int,
    bytes_down: int,
    bytes_up: int,
    seconds: float,
    epsilon: float | None = None,
) -> RoundRecord:
    """The record of a round from those of its devices."""
    good = [r for r in records if r.failure is None]
    bad = [r for r in records if r.failure is not None]
    names = dict.fromkeys(name for r in good for name in r.reports)
    means = {name: float(np.mean([r.reports[name] for r in good if name in r.reports])) for name in names}
    loss = means.pop("loss", None)
    return RoundRecord(
        number,
        len(good),
        dropped,
        kinds(r.failure or "" for r in bad),
        [(r.client, r.failure or "") for r in bad],
        sum(r.examples for r in good),
        sum(r.steps for r in good),
        loss,
        means,
        bytes_down,
        bytes_up,
        seconds,
        epsilon,
    )


def all_failed(first: int, last: int, failures: Sequence[tuple[int, str]]) -> CohortFailedError:
    """The error of a run that nobody can be merged in.

    Args:
        first, last: rounds since the last merge.
        failures: (index, reason) in those rounds.
    """
    rounds = f"round {last}" if first == last else f"rounds {first} to {last}"
    reasons = [why for _, why in failures]
    return CohortFailedError(
        f"all {len(dict(failures))} devices of {rounds} failed ({counted(reasons)}); the first: {reasons[0]}",
        mend=_MENDS.get(kind(reasons[0]), "check the examples of these users, and the code that reads them"),
    )
