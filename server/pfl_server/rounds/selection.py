"""Which devices a round may have."""

from __future__ import annotations

import base64
import heapq
import hmac
import math
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from pfl_mobile.privacy import Poisson
from pfl_server.places import awake, no_place, resting
from pfl_server.storage.models import Assignment, EnrolledDevice, Federation, LedgerEntry, Round

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import CheckIn, Reason
    from pfl_server.federation.config import FederationConfig, RoundsConfig

_BITS = 128
_ANY = 2**62


@dataclass(frozen=True)
class Draw:
    """Who is drawn for a round: devices whose number, HMAC-SHA-256(key, id) cut to 128 bits, is below a threshold.

    The key is random for each round, so the numbers are independent and uniform: a threshold of q * 2^128 is one coin
    of probability q for each device (Poisson sampling), and one above the k-th smallest number of all is a uniform draw
    of k of them without replacement. Either is decided when the round opens, whoever asks when.

    Attributes:
        key: secret, 16 bytes.
        threshold: 0..2^128.
        before: devices with this index and larger ones enrolled after the draw.
    """

    key: bytes
    threshold: int
    before: int = _ANY

    @classmethod
    def poisson(cls, rate: float) -> Draw:
        """A coin for each device, with probability ``rate``."""
        return cls(secrets.token_bytes(16), min(math.floor(rate * 2**_BITS), 2**_BITS))

    @classmethod
    def fixed(cls, devices: Iterable[tuple[str, int]], count: int, before: int) -> Draw:
        """``count`` of the devices, given as pairs of id and index."""
        draw = cls(secrets.token_bytes(16), 2**_BITS, before)
        smallest = heapq.nsmallest(count, (draw._number(device) for device, _ in devices))
        return cls(draw.key, smallest[-1] + 1 if smallest else 0, before)

    def chosen(self, device: str, index: int) -> bool:
        """Whether a device is drawn."""
        return index < self.before and self._number(device) < self.threshold

    def text(self) -> str:
        """For ``Round.selection``; at most 100 characters."""
        return f"{base64.b64encode(self.key).decode()}:{self.threshold:x}:{self.before:x}"

    @classmethod
    def parse(cls, text: str) -> Draw:
        """The draw that ``text`` gave."""
        key, threshold, before = text.split(":")
        return cls(base64.b64decode(key), int(threshold, 16), int(before, 16))

    def _number(self, device: str) -> int:
        return int.from_bytes(hmac.digest(self.key, device.encode(), "sha256")[: _BITS // 8])


@dataclass(frozen=True)
class Opening:
    """Who a round may have.

    Attributes:
        selection: the draw, as text; None where devices are taken as they come.
        target: updates that close it; with a draw those expected, as it ends at its deadline then.
        most: devices that may be assigned; None for no limit.
    """

    selection: str | None
    target: int
    most: int | None


def opening_of(session: Session, config: FederationConfig, federation: Federation) -> Opening | None:
    """Who the round may have; None where there are too few devices for the sampling that privacy rests on."""
    rounds, privacy = config.rounds, config.privacy
    if not privacy.rests_on_sampling:
        return Opening(None, rounds.cohort, math.ceil(rounds.cohort * rounds.over_selection))
    which = _population(config)
    active = int(session.scalar(select(func.count()).where(*which)) or 0)
    if isinstance(privacy.participation, Poisson):
        if active * privacy.sampling_rate < rounds.minimum:
            return None
        return Opening(Draw.poisson(privacy.sampling_rate).text(), rounds.cohort, None)
    if active < privacy.devices:
        return None  # a part of fewer devices is a larger part of them than was accounted for
    draw = Draw.fixed(_devices(session, which), privacy.cohort, federation.next_index)
    return Opening(draw.text(), privacy.cohort, None)


def _population(config: FederationConfig) -> tuple[ColumnElement[bool], ...]:
    """What is true of devices that are drawn from: somebody who enrols many others must not be most of them."""
    active = EnrolledDevice.state == "active"
    return (active,) if config.open_sampling else (active, EnrolledDevice.vouched.is_(True))


def _devices(session: Session, which: tuple[ColumnElement[bool], ...]) -> Iterator[tuple[str, int]]:
    found = select(EnrolledDevice.id, EnrolledDevice.index).where(*which).execution_options(yield_per=10_000)
    return ((device, index) for device, index in session.execute(found))


def eligible(config: RoundsConfig, body: CheckIn) -> bool:
    """Whether the device can train now, by its own facts."""
    return body.examples >= config.min_examples and all(getattr(body.facts, need) for need in config.needs)


def separation(config: FederationConfig) -> int:
    """Rounds from one update of a device in the model to its next."""
    return max(config.rounds.min_separation, config.privacy.min_separation)


def rested(session: Session, config: FederationConfig) -> tuple[ColumnElement[bool], ...]:
    """What is true of a device that may be in the coming round: its last one lies far enough back, and it may again.

    Rounds are counted as in the ledger. Where the aggregator adds the noise these are the merged ones, as a round that
    was abandoned released nothing; where devices do, all that gave out tasks (`account_unmerged`).
    """
    counted = select(Round.number).where(Round.state == "merged").order_by(Round.number.desc())
    taken = Assignment.state == "merged"
    if not config.privacy.trusts_aggregator:
        counted = select(LedgerEntry.round).order_by(LedgerEntry.round.desc())
        taken = may_have_sent()
    newest = session.scalar(counted.offset(separation(config) - 1).limit(1))
    far = EnrolledDevice.last_round <= (-1 if newest is None else newest)
    most = config.privacy.max_participations
    if most is None:
        return (far,)
    times = select(func.count()).where(Assignment.device == EnrolledDevice.id, taken).scalar_subquery()
    return far, or_(EnrolledDevice.last_round < 0, times < most)


def may_have_sent() -> ColumnElement[bool]:
    """What is true of an assignment whose device sent an update or a part of one, or may have.

    A device that declines, or leaves, has sent nothing unless an upload began before.
    """
    return or_(Assignment.state != "declined", Assignment.began.is_not(None))


def _rested(session: Session, config: FederationConfig, device: EnrolledDevice) -> bool:
    if device.last_round < 0:  # most devices, most of the time
        return True
    return (
        session.scalar(
            select(EnrolledDevice.id).where(EnrolledDevice.id == device.id, *rested(session, config))
        )
        is not None
    )


def may_come(session: Session, config: FederationConfig, at: Round, most: int) -> int:
    """Devices that have no task of a round where none are drawn, and may get one; counted up to ``most``."""
    mine = select(Assignment.id).where(Assignment.round == at.number, Assignment.device == EnrolledDevice.id)
    in_time = () if at.deadline is None else (awake(config.rounds, at.deadline),)
    free = select(EnrolledDevice.id).where(
        EnrolledDevice.state == "active", ~mine.exists(), *rested(session, config), *in_time
    )
    return int(session.scalar(select(func.count()).select_from(free.limit(most).subquery())) or 0)


def turned_away(
    session: Session,
    config: FederationConfig,
    federation: Federation,
    at: Round | None,
    device: EnrolledDevice,
    body: CheckIn,
    now: float,
) -> Reason | None:
    """Why a device gets no task now; None where it does, if there is still a place when it is assigned."""
    if federation.state == "paused":
        return "paused"
    if not eligible(config.rounds, body):
        return "not_eligible"
    if at is None:
        return "between_rounds"
    again = select(Assignment.id).where(Assignment.round == at.number, Assignment.device == device.id)
    if session.scalar(again) is not None or not _rested(session, config, device):
        return "too_soon"
    if at.selection is not None:
        counted = device.vouched or config.open_sampling
        chosen = counted and Draw.parse(at.selection).chosen(device.id, device.index)
        return None if chosen else "not_selected"
    if resting(config.rounds, device, now):
        return "too_soon"
    return no_place(session, config.rounds, at, device, now)
