"""Who gets the places of a round that takes devices as they come, so that a few which never answer cannot keep them.

Three things together:

* a device whose task ended without an answer rests, twice as long each time (`note_lapses`);
* a round invites devices of those that asked while there was no place for them, at random, in equal shares for the
  sources they enrolled from (`invite`); until they had time to come, others get what is left over, and no source more
  than half of that (`no_place`);
* a source is an enrolment token, or under open enrolment an address, as a tag that names neither.

Rounds whose devices are drawn (sampling that privacy rests on) have none of this: there nobody takes another's place.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import ceil, log2
from typing import TYPE_CHECKING

from sqlalchemy import case, func, or_, select, update

from pfl_server.storage.models import Assignment, EnrolledDevice, Round

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import Reason
    from pfl_server.federation.config import RoundsConfig

#: Longest rest, in seconds, unless a single task takes longer.
MOST_REST_S = 24 * 3600.0
#: Seconds after which a device that asked and got no place counts as gone, besides the time until it asks again.
ASKED_S = 300.0
#: States of an assignment that holds a place in its round.
PLACED = ("assigned", "accepted", "merged")
#: Rows of one statement; SQLite takes some thousand values.
_ROWS = 500
_DRAW = random.SystemRandom()


def source(key: bytes, kind: str, name: str) -> str:
    """The tag of a source: the same for the same one, and too short to tell which it is.

    Args:
        key: of this federation, for this purpose.
        kind: ``token`` or ``address``.
        name: id of the token, or what of an address is limited together.
    """
    return hmac.digest(key, f"{kind}:{name}".encode(), hashlib.sha256).hex()[:4]


# -- rest


def task_s(rounds: RoundsConfig) -> float:
    """Seconds of a task, at most."""
    return rounds.task_s or rounds.deadline_s


def rest_s(rounds: RoundsConfig, lapses: int) -> float:
    """Seconds that a device rests after so many tasks in a row without an answer."""
    first = task_s(rounds)
    return min(first * 2.0 ** min(lapses - 1, 60), max(MOST_REST_S, first))


def note_lapses(session: Session, rounds: RoundsConfig, devices: Iterable[str | None], now: float) -> None:
    """Let devices rest whose task ended without an answer.

    Args:
        session: of a transaction that writes.
        rounds: of the federation.
        devices: their ids.
        now: seconds since 1970.
    """
    known = [device for device in devices if device is not None]
    first = task_s(rounds)
    steps = max(1, ceil(log2(max(MOST_REST_S / first, 1.0))) + 1)
    rest = case(
        *((EnrolledDevice.lapses == lapses, now + rest_s(rounds, lapses + 1)) for lapses in range(steps)),
        else_=now + rest_s(rounds, steps + 1),
    )
    for begin in range(0, len(known), _ROWS):
        session.execute(
            update(EnrolledDevice)
            .where(EnrolledDevice.id.in_(known[begin : begin + _ROWS]))
            .values(rests_until=rest, lapses=EnrolledDevice.lapses + 1)
            .execution_options(synchronize_session=False)
        )


def forgive(session: Session, device: str) -> None:
    """Forget the lapses of a device that answered with an update."""
    session.execute(
        update(EnrolledDevice)
        .where(EnrolledDevice.id == device, EnrolledDevice.lapses > 0)
        .values(lapses=0, rests_until=0.0)
        .execution_options(synchronize_session=False)
    )


def held_long(mine: Assignment, now: float) -> bool:
    """Whether a task that is given up now was kept so long that its place is of little use to others."""
    return now - mine.assigned > (mine.expires - mine.assigned) / 2


def resting(rounds: RoundsConfig, device: EnrolledDevice, now: float) -> bool:
    """Whether a device rests; not for longer than there is rest, whatever was done to the clock."""
    return now < device.rests_until <= now + rest_s(rounds, 10**6)


def awake(rounds: RoundsConfig, now: float) -> ColumnElement[bool]:
    """What is true of a device that does not rest."""
    return or_(EnrolledDevice.rests_until <= now, EnrolledDevice.rests_until > now + rest_s(rounds, 10**6))


# -- invitations


def invite(
    session: Session, rounds: RoundsConfig, number: int, most: int, now: float, *which: ColumnElement[bool]
) -> int:
    """Invite devices to a round that opens; returns how many.

    Args:
        session: of the transaction that opens it.
        rounds: of the federation.
        number: of the round.
        most: places.
        now: seconds since 1970.
        which: what must be true of a device that may be in the round.
    """
    since = now - ASKED_S - 1.2 * rounds.retry_s
    asked = (
        select(EnrolledDevice.id, EnrolledDevice.source, EnrolledDevice.last_round >= 0)
        .where(
            EnrolledDevice.asked >= since,
            EnrolledDevice.asked <= now,
            EnrolledDevice.state == "active",
            awake(rounds, now),
            *which,
        )
        .order_by(EnrolledDevice.index)  # so that the draw alone decides
    )
    by_source: dict[Hashable, list[str]] = defaultdict(list)
    for device, of, proven in session.execute(asked):
        # Who has had an update merged does not compete with any number that just enrolled.
        by_source[of, bool(proven)].append(device)
    chosen = shared_out(by_source, most, _DRAW)
    for begin in range(0, len(chosen), _ROWS):
        session.execute(
            update(EnrolledDevice)
            .where(EnrolledDevice.id.in_(chosen[begin : begin + _ROWS]))
            .values(invited=number)
            .execution_options(synchronize_session=False)
        )
    return len(chosen)


def shared_out(by_source: Mapping[Hashable, Sequence[str]], places: int, draw: random.Random) -> list[str]:
    """Devices for so many places: at random within a source, and sources get equally many, as far as they have them."""
    waiting = [draw.sample(list(devices), len(devices)) for devices in by_source.values() if devices]
    chosen: list[str] = []
    while waiting and len(chosen) < places:
        draw.shuffle(waiting)
        for devices in waiting[: places - len(chosen)]:
            chosen.append(devices.pop())
        waiting = [devices for devices in waiting if devices]
    return chosen


def reserved_until(rounds: RoundsConfig, at: Round) -> float:
    """Until when a round keeps places for those it invited: each asks again within that time."""
    return at.opened + min(1.25 * rounds.retry_s, rounds.deadline_s / 2)


def placed(session: Session, number: int, *which: ColumnElement[bool]) -> int:
    """Devices that hold a place in a round, and are as ``which`` says."""
    found = (
        select(func.count())
        .select_from(Assignment)
        .where(Assignment.round == number, Assignment.state.in_(PLACED))
    )
    if which:
        found = found.join(EnrolledDevice, EnrolledDevice.id == Assignment.device).where(*which)
    return int(session.scalar(found) or 0)


def no_place(
    session: Session, rounds: RoundsConfig, at: Round, device: EnrolledDevice, now: float
) -> Reason | None:
    """Why there is no place in a round for a device that may be in it; None where there is one.

    Args:
        session: of a transaction; of one that holds the round's lock where the place is given.
        rounds: of the federation.
        at: the round.
        device: that asks.
        now: seconds since 1970.
    """
    if at.most is None:
        return None
    if placed(session, at.number) >= at.most:
        return "full"
    if device.invited == at.number or not at.opened <= now < reserved_until(rounds, at):
        return None
    there = select(Assignment.id).where(
        Assignment.round == at.number, Assignment.device == EnrolledDevice.id, Assignment.state.not_in(PLACED)
    )
    kept = int(
        session.scalar(
            select(func.count()).where(
                EnrolledDevice.invited == at.number, EnrolledDevice.state == "active", ~there.exists()
            )
        )
        or 0
    )
    free, other = at.most - kept, EnrolledDevice.invited != at.number
    if placed(session, at.number, other) >= free:
        return "full"
    strangers = (
        select(EnrolledDevice.id)
        .where(EnrolledDevice.state == "active", EnrolledDevice.source != device.source)
        .limit(1)
    )
    if session.scalar(strangers) is None:
        return None
    own = placed(session, at.number, other, EnrolledDevice.source == device.source)
    return "full" if own >= ceil(free / 2) else None
