"""How rounds open and close: each step is one transaction, which does nothing when another process was quicker."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, or_, select, update

from pfl_mobile.errors import PrivacyBudgetError
from pfl_server.places import invite, note_lapses, task_s
from pfl_server.rounds.selection import may_come, may_have_sent, opening_of, rested
from pfl_server.storage.federation_row import ACTIVE, ITSELF, SLACK_S
from pfl_server.storage.locks import LOCK
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EnrolledDevice,
    Federation,
    LedgerEntry,
    Round,
    Version,
)
from pfl_server.storage.sets import get_state, put_set

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_server.federation.config import FederationConfig
    from pfl_server.services import Services


#: Seconds that an end may lie further ahead than any can, as clocks of machines differ.
REACH_S = 10.0


def open_next(services: Services, owner: str) -> int | None:
    """Open the next round; None where there is none to open now.

    Args:
        services: of this process.
        owner: of the federation's lease.

    Raises:
        DatabaseError, BlobError, StateError, LedgerError: what is stored cannot be read or written.
    """
    runtime, now = services.runtime, services.clock()
    rounds = runtime.config.rounds
    with services.database.read() as session:
        federation = session.get_one(Federation, 1)
        if federation.state != "running" or _too_early(session, rounds.pause_s, now):
            return None
        merged = select(func.count()).where(Round.state == "merged")
        if rounds.total is not None and int(session.scalar(merged) or 0) >= rounds.total:
            over: tuple[str, str] | None = ("finished", f"all {rounds.total} rounds are done")
        else:
            over = None
        version = session.get_one(Version, federation.version)
        population = runtime.population(session)
        server, noise = get_state(services.blobs, version.state_blob, runtime.table, population)
        private = runtime.private_rounds(session, noise)
        try:
            private.check_budget()
        except PrivacyBudgetError as error:
            over = over or ("spent", error.message)
        opening = None if over else opening_of(session, runtime.config, federation)
    if over:
        _end(services, *over)
    if opening is None:
        return None
    seed = secrets.randbits(63)
    plan = runtime.plan(server, seed)
    sets = {name: put_set(services.blobs, v) for name, v in runtime.common_sets(server, plan).items()}
    with services.database.write() as session:
        current = session.get_one(Federation, 1, with_for_update=LOCK)
        if (current.version, current.state, current.lease_owner) != (federation.version, "running", owner):
            return None
        number = current.next_round
        session.add(
            Round(
                number=number,
                state="open",
                base=version.number,
                plan=plan.model_dump(mode="json"),
                seed=seed,
                sets=sets,
                clip_norm=private.clip_norm,
                selection=opening.selection,
                target=opening.target,
                minimum=rounds.minimum,
                most=opening.most,
                opened=now,
                deadline=None if rounds.mode == "buffered" else now + rounds.deadline_s,
                lease_until=0.0,
                summary={},
            )
        )
        if opening.selection is None and opening.most is not None:
            invite(session, rounds, number, opening.most, now, *rested(session, runtime.config))
        current.next_round = number + 1
        current.clip_norm = private.clip_norm
    return number


def _too_early(session: Session, pause_s: float, now: float) -> bool:
    if session.scalar(select(Round.number).where(Round.state.in_(ACTIVE)).limit(1)) is not None:
        return True
    last = session.scalar(select(Round.closed).order_by(Round.number.desc()).limit(1))
    return last is not None and 0 <= now - last < pause_s  # the clock may have been set back


def _end(services: Services, state: str, why: str) -> None:
    """No more rounds."""
    with services.database.write() as session:
        federation = session.get_one(Federation, 1, with_for_update=LOCK)
        if federation.state == "running":
            federation.state = state
            session.add(AuditEntry(at=services.clock(), actor=ITSELF, action=state, detail={"note": why}))


# -- closing


def close_due(services: Services) -> None:
    """Close the open rounds that have all they wait for, or whose time is over; abandon those with too few updates.

    Also before its deadline a round is abandoned once too few devices are left that may answer (`_hopeless`). A round
    whose devices were drawn ends at its deadline and never before: devices that know of each other whether they were
    drawn, and what they answered, would learn from an early end whether others were.
    """
    with services.database.read() as session:
        numbers = list(session.scalars(select(Round.number).where(Round.state == "open")))
        due = [n for n in numbers if _due(services, session, session.get_one(Round, n)) is not None]
    for number in due:
        with services.database.write() as session:
            at = session.get_one(Round, number, with_for_update=LOCK)
            state = _due(services, session, at) if at.state == "open" else None
            if state == "closing":
                at.state, at.closed = "closing", services.clock()
                _note_participation(services, session, at)
                _end_tasks(services, session, at)
                blobs: list[str] = []
            elif state == "abandoned":
                why = f"it had, or could get, fewer than {at.minimum} updates"
                blobs = end_without_merge(services, session, at, "abandoned", why)
                services.metrics.merges.labels(outcome="abandoned").inc()
            else:
                continue
        for blob in blobs:
            services.blobs.delete(blob)


def _due(services: Services, session: Session, at: Round) -> str | None:
    """What becomes of an open round now: ``closing``, ``abandoned``, or None, when it stays open."""
    found = (
        select(Assignment.state, func.count()).where(Assignment.round == at.number).group_by(Assignment.state)
    )
    counts = Counter({str(state): int(count) for state, count in session.execute(found).all()})
    accepted, answered = counts["accepted"], counts.total() - counts["assigned"]
    config, now = services.runtime.config, services.clock()
    over = at.deadline is not None and at.deadline <= now
    if at.selection is not None and not over:
        return None
    done = accepted >= at.target
    if accepted >= at.minimum:
        return "closing" if over or done else None
    if over:
        return "abandoned"
    # who declined at once would do so again in the next round, at once
    if now < at.opened + config.rounds.retry_s:
        return None
    here, lost = accepted + counts["assigned"], answered - accepted
    return "abandoned" if done or (lost and _hopeless(session, config, at, here)) else None


def _hopeless(session: Session, config: FederationConfig, at: Round, here: int) -> bool:
    """Whether the devices that may still send an update to an open round are too few for its minimum.

    Args:
        session: of a transaction.
        config: of the federation.
        at: the round.
        here: devices whose update is there or may come.
    """
    if at.deadline is None:
        return False  # a buffer waits as long as it takes
    missing = at.minimum - here
    return missing > 0 and may_come(session, config, at, missing) < missing


def end_without_merge(services: Services, session: Session, at: Round, state: str, why: str) -> list[str]:
    """End a locked round; returns the blobs of its updates, to delete once this is committed."""
    now = services.clock()
    mine = Assignment.round == at.number
    blobs = [
        blob
        for blob in session.scalars(select(Assignment.blob).where(mine, Assignment.blob.is_not(None)))
        if blob
    ]
    at.state, at.closed, at.error = state, at.closed or now, why
    at.lease_owner, at.lease_until = None, 0.0
    _note_participation(services, session, at)
    account_unmerged(services, session, at)
    _end_tasks(services, session, at)
    session.execute(
        update(Assignment)
        .where(mine, Assignment.state == "accepted")
        .values(state="discarded", blob=None)
        .execution_options(synchronize_session=False)
    )
    return blobs


def account_unmerged(services: Services, session: Session, at: Round) -> None:
    """Put a round that ends without a merge into the ledger, where devices add the noise.

    They do not trust the aggregator, which saw what they sent; so it counts whether a model came of it or not. Tasks
    that were declined before an upload began had no update; of others a part may have been sent, so they count.
    """
    if services.runtime.config.privacy.trusts_aggregator:
        return
    if session.scalar(select(Assignment.id).where(*_may_have_sent(at)).limit(1)) is None:
        return
    ledger = services.runtime.private_rounds(session).ledger
    ledger.record()
    event, _ = ledger.entries[-1]
    session.add(LedgerEntry(round=at.number, event=event, epsilon=ledger.epsilon(), created=services.clock()))
    newest = session.scalars(select(Version).order_by(Version.number.desc()).limit(1)).one()
    newest.privacy = services.runtime.statement(ledger)


def _note_participation(services: Services, session: Session, at: Round) -> None:
    """Let devices of a round rest from it on, where what they sent counts whether it is merged or not."""
    if not services.runtime.config.privacy.trusts_aggregator:
        devices = select(Assignment.device).where(*_may_have_sent(at), Assignment.device.is_not(None))
        session.execute(
            update(EnrolledDevice)
            .where(EnrolledDevice.id.in_(devices))
            .values(last_round=at.number)
            .execution_options(synchronize_session=False)
        )


def _may_have_sent(at: Round) -> tuple[Any, ...]:
    return Assignment.round == at.number, may_have_sent()


def _end_tasks(services: Services, session: Session, at: Round) -> None:
    """End the tasks of a round that takes no more updates; in buffered training a later one takes them."""
    if services.runtime.config.rounds.mode == "synchronous":
        _expire(services, session, services.clock(), Assignment.round == at.number)


def keep_in_reach(services: Services) -> None:
    """Bring near the ends of rounds and tasks that lie further ahead than any can: the clock was set back since.

    So an hour that the clock went back while the server was down costs one more round's time, and no hour.
    """
    now, config = services.clock(), services.runtime.config.rounds
    round_far, task_far = now + config.deadline_s + REACH_S, now + task_s(config) + REACH_S
    far = and_(Round.state == "open", or_(Round.opened > now + REACH_S, Round.deadline > round_far))
    active = select(Round.number).where(Round.state.in_(ACTIVE))
    late = and_(Assignment.round.in_(active), Assignment.state == "assigned", Assignment.expires > task_far)
    with services.database.read() as session:
        if session.scalar(select(Round.number).where(far).limit(1)) is None and (
            session.scalar(select(Assignment.id).where(late).limit(1)) is None
        ):
            return
    with services.database.write() as session:
        session.execute(
            update(Round)
            .where(far)
            .values(opened=now, deadline=None if config.mode == "buffered" else now + config.deadline_s)
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(Assignment)
            .where(late)
            .values(assigned=now, expires=now + task_s(config))
            .execution_options(synchronize_session=False)
        )


def expire_tasks(services: Services) -> None:
    """End the tasks whose time is over."""
    now, config = services.clock(), services.runtime.config.rounds
    since = now - task_s(config) - SLACK_S
    recent = select(Round.number).where(or_(Round.closed.is_(None), Round.closed > since))
    late = and_(Assignment.round.in_(recent), Assignment.state == "assigned", Assignment.expires <= now)
    with services.database.read() as session:
        if session.scalar(select(Assignment.id).where(late).limit(1)) is None:
            return
    with services.database.write() as session:
        _expire(services, session, now, late)


def _expire(services: Services, session: Session, now: float, *which: Any) -> None:
    """End tasks without an answer; their devices rest."""
    ended = session.execute(
        update(Assignment)
        .where(*which, Assignment.state == "assigned")
        .values(state="expired", finished=now)
        .returning(Assignment.device)
        .execution_options(synchronize_session=False)
    )
    note_lapses(session, services.runtime.config.rounds, list(ended.scalars()), now)
