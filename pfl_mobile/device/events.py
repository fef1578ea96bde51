"""What a device tells while it takes part. None of it holds examples, words or values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``event`` is the name of the class in small letters."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"event": name, **asdict(self)}


@dataclass(frozen=True)
class Joined(Event):
    """The device is enrolled; ``again`` where it was before."""

    device: str
    again: bool


@dataclass(frozen=True)
class Assigned(Event):
    """A task for a round has come."""

    round: int
    version: int


@dataclass(frozen=True)
class Downloaded(Event):
    """A set of values is there; ``cached`` where it was before."""

    name: str
    bytes: int
    cached: bool


@dataclass(frozen=True)
class Stepped(Event):
    """After each optimizer step; ``step`` counts from 1."""

    step: int
    of: int
    loss: float


@dataclass(frozen=True)
class Finished(Event):
    """Training has ended and its update waits to be sent.

    Attributes:
        round: of the task.
        status: of the personal state: ``adopted``, or ``kept`` where the guard kept the old one.
        steps: optimizer steps.
        seconds: of training and measuring.
        before, after: the guard's metrics.
        norm: L2 norm of the change before clipping.
        clipped: whether clipping shortened it.
    """

    round: int
    status: str
    steps: int
    seconds: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    norm: float
    clipped: bool


@dataclass(frozen=True)
class Uploaded(Event):
    """The aggregator has accepted the update; ``duplicate`` where it had it from an earlier try."""

    round: int
    bytes: int
    duplicate: bool


@dataclass(frozen=True)
class Reported(Event):
    """The evaluation report was sent; metrics of the values as sent, and of what serves now, as means."""

    round: int
    shared: Mapping[str, float]
    personalized: Mapping[str, float]
    weight: float


@dataclass(frozen=True)
class Declined(Event):
    """The device sends no update for this task: the protocol's reason, and why in words."""

    round: int
    reason: str
    why: str


@dataclass(frozen=True)
class Dropped(Event):
    """An update or report will not be sent any more."""

    task: str
    what: str
    why: str


@dataclass(frozen=True)
class Waiting(Event):
    """There is no task now."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Offline(Event):
    """The aggregator cannot be reached."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Measured(Event):
    """How good the newest shared values are on the device's test part, as means; not sent."""

    version: int
    shared: Mapping[str, float]
    weight: float


OnEvent = Callable[[Event], None]
