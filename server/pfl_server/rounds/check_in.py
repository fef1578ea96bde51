"""A device checks in: the task that it has, a new one, or when to ask again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from pfl_mobile.protocol.bodies import CheckedIn, CheckIn, Download, RoundTask, TaskPrivacy, TensorLayout
from pfl_server.identity.credentials import new_id
from pfl_server.places import ASKED_S, no_place, note_lapses, resting
from pfl_server.problems import DeviceRevoked, OtherBundle
from pfl_server.rounds.selection import turned_away
from pfl_server.storage.federation_row import open_round
from pfl_server.storage.models import Assignment, EnrolledDevice, Federation, Round, Version
from pfl_server.storage.sets import put_set

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import Reason
    from pfl_server.federation.config import RoundsConfig
    from pfl_server.identity.devices import DeviceIdentity
    from pfl_server.services import Services

#: A device's facts and the time it was last seen are written at most every so many seconds.
SEEN_S = 300.0
#: Why a device waits that would train if there were a place.
_PLACELESS = ("full", "between_rounds")
#: States of an assignment that keeps its device from another task.
_BUSY = ("assigned", "accepted")


def check_in(services: Services, identity: DeviceIdentity, body: CheckIn) -> CheckedIn:
    """Answer a check-in.

    Raises:
        OtherBundle: the device has another model.
        DeviceRevoked: it takes no part any more.
    """
    runtime = services.runtime
    if body.bundle != runtime.bundle:
        ours = runtime.bundle
        raise OtherBundle(
            f"this federation trains {ours.name} {ours.version} with fingerprint {ours.fingerprint}",
            mend="get that bundle",
        )
    now = services.clock()
    with services.database.read() as session:
        federation = session.get_one(Federation, 1)
        device = session.get_one(EnrolledDevice, identity.id)
        at = open_round(session)
        mine = session.scalars(_of(device.id)).first()
        if mine is not None and mine.state == "assigned" and mine.expires > now:
            return _task(services, session, mine)
        reason: Reason | None = "too_soon"
        if federation.state in ("finished", "spent"):
            return CheckedIn(status="done", reason="spent" if federation.state == "spent" else "finished")
        if mine is None or (mine.state == "assigned" and mine.round != (at.number if at else -1)):
            reason = turned_away(session, runtime.config, federation, at, device, body, now)
    if reason is not None or at is None:
        _seen(services, device, body, now, waits=(reason or "between_rounds") in _PLACELESS)
        return _wait(runtime.config.rounds, reason or "between_rounds")
    sets = _own_sets(services, at, device)
    try:
        with services.database.write() as session:
            reason = _assign(services, session, at.number, device, body, sets)
    except IntegrityError:  # the device asked twice at once, and the other request was first
        reason = None
    if reason is not None:
        _seen(services, device, body, now, waits=reason in _PLACELESS)
        return _wait(runtime.config.rounds, reason)
    with services.database.read() as session:
        mine = session.scalars(_of(device.id)).first()
        if mine is None:
            return _wait(runtime.config.rounds, "too_soon")
        return _task(services, session, mine)


def _of(device: str) -> Any:
    return select(Assignment).where(Assignment.device == device, Assignment.state.in_(_BUSY))


def _assign(
    services: Services,
    session: Session,
    number: int,
    device: EnrolledDevice,
    body: CheckIn,
    sets: dict[str, Any],
) -> Reason | None:
    """Give the device its task, unless something changed meanwhile; then why not."""
    now, config = services.clock(), services.runtime.config.rounds
    # Where places are counted, one after the other; else together, but not while the round is closed.
    counted = select(Round.most).where(Round.number == number)
    lock: dict[str, Any] = {"key_share": True} if session.scalar(counted) is not None else {"read": True}
    at = session.get_one(Round, number, with_for_update=lock)
    if at.state != "open" or (at.deadline is not None and at.deadline <= now):
        return "between_rounds"
    current = session.get_one(EnrolledDevice, device.id)
    if current.state != "active":
        raise DeviceRevoked("this device was excluded from the federation", mend="stop taking part")
    for old in session.scalars(_of(device.id)):
        if old.state == "accepted" or old.expires > now or old.round == number:
            return "too_soon"
        done: Any = session.execute(  # unless its update is accepted at this moment, in buffered training
            update(Assignment)
            .where(Assignment.id == old.id, Assignment.state == "assigned")
            .values(state="expired", finished=now)
            .execution_options(synchronize_session=False)
        )
        if done.rowcount == 0:
            return "too_soon"
        note_lapses(session, config, [device.id], now)
        session.refresh(current)
    if at.selection is None:
        if resting(config, current, now):
            return "too_soon"
        if (reason := no_place(session, config, at, current, now)) is not None:
            return reason
    expires = now + (config.task_s or config.deadline_s)
    session.add(
        Assignment(
            id=new_id(),
            round=number,
            device=device.id,
            state="assigned",
            base=at.base,
            sets=sets,
            assigned=now,
            expires=expires if at.deadline is None else min(expires, at.deadline),
            reports={},
            evaluated=False,
        )
    )
    current.seen, current.facts, current.asked = now, body.facts.model_dump(mode="json"), 0.0
    return None


def _own_sets(services: Services, at: Round, device: EnrolledDevice) -> dict[str, Any]:
    """Store the sets of one device alone, where the strategy has such."""
    runtime = services.runtime
    if not runtime.definition.has_own_sets:
        return {}
    with services.database.read() as session:
        key = session.get_one(Version, at.base).state_blob
    plan = runtime.round_plan(at.number, at.plan).plan
    own = runtime.own_sets(runtime.state(key), plan, device.index, device.group)
    return {name: put_set(services.blobs, values) for name, values in own.items()}


def _task(services: Services, session: Session, mine: Assignment) -> CheckedIn:
    runtime, now = services.runtime, services.clock()
    at = session.get_one(Round, mine.round)
    known = runtime.round_plan(at.number, at.plan)
    privacy = runtime.config.privacy
    sets = {**at.sets, **mine.sets}
    task = RoundTask(
        id=mine.id,
        round=mine.round,
        version=mine.base,
        plan=at.plan,
        sets={
            name: Download(sha256=found["sha256"], bytes=found["bytes"], url=f"/v1/sets/{found['sha256']}")
            for name, found in sets.items()
        },
        layout=tuple(TensorLayout(name=n, shape=shape) for n, shape in known.layout.shapes.items()),
        reports=tuple(sorted(known.reports)),
        privacy=TaskPrivacy(
            mechanism=privacy.mechanism,
            clip_norm=None if at.clip_norm is None else privacy.device_clip_norm(at.clip_norm),
            noise_multiplier=privacy.noise_multiplier,
            local_noise_multiplier=privacy.local_noise_multiplier,
            statement=session.get_one(Version, mine.base).privacy,
            epsilon_after=runtime.epsilon_after(session, at.number),
        ),
        evaluate=runtime.config.evaluation.enabled,
        expires=mine.expires,
        expires_in_s=max(mine.expires - now, 0.0),
        update_url=f"/v1/tasks/{mine.id}/update",
    )
    return CheckedIn(status="task", task=task)


def _wait(config: RoundsConfig, reason: Reason) -> CheckedIn:
    # Devices that were told to wait together shall not come back together.
    return CheckedIn(status="wait", retry_after_s=config.retry_s * random.uniform(0.8, 1.2), reason=reason)


def _seen(services: Services, device: EnrolledDevice, body: CheckIn, now: float, *, waits: bool) -> None:
    """Note that a device was here, and where it ``waits`` for a place, that it asked for one."""
    asks = waits and not 0 <= now - device.asked < ASKED_S
    if now - device.seen < SEEN_S and not asks:
        return
    with services.database.write() as session:
        current = session.get_one(EnrolledDevice, device.id)
        current.seen, current.facts = now, body.facts.model_dump(mode="json")
        if asks:
            current.asked = now
