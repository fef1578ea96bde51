"""A merge: the accepted updates of a closed round become a model version, all of them or none.

Updates are streamed from their files in the order of the devices' indexes, through the same strategies as in the
simulator. Files of the new version are written first; then one transaction makes the version, its ledger entry and
the state of its updates. A process that is killed before it leaves the round to the next one that claims it; nothing
was published, so no noise is used twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import and_, or_, select, update

from pfl_mobile.errors import LedgerError, PflError, StateError, TensorFileError
from pfl_mobile.merge.update_rows import FileRows, RowFile
from pfl_server.errors import BlobError, BlobMissingError, DatabaseError, MergeMemoryError
from pfl_server.rounds.accepted_updates import Accepted, merge_scores, merged_weights, summary
from pfl_server.rounds.lifecycle import end_without_merge
from pfl_server.storage.federation_row import pause_itself
from pfl_server.storage.locks import LOCK, changed, lapsed
from pfl_server.storage.models import (
    Assignment,
    EnrolledDevice,
    Federation,
    LedgerEntry,
    Round,
    Version,
)
from pfl_server.storage.seal import seal
from pfl_server.storage.sets import get_state, put_set, put_state

if TYPE_CHECKING:
    from pfl_mobile.federation.round import RoundPlan
    from pfl_mobile.merge.update_rows import UpdateRows
    from pfl_mobile.privacy import PrivateRounds
    from pfl_mobile.strategies.state import Server
    from pfl_server.federation.runtime import Runtime
    from pfl_server.services import Services

log = logging.getLogger("pfl_server")

#: Failures in a row after which the federation pauses.
FAILURES = 3
#: What has nothing to do with the updates: they are kept, and the merge is tried again.
_NOT_THE_UPDATES = (DatabaseError, BlobError, StateError, LedgerError)  # a full disk is a StateError

Checkpoint = Callable[[str], None]


class LostLease(Exception):
    """Another process has taken the merge over, or an admin has ended the round."""


@dataclass(frozen=True)
class Merged:
    """What a merge gives, before it is published."""

    server: Server
    private: PrivateRounds
    before: int
    rows: Sequence[Accepted]
    weights: np.ndarray
    scores: np.ndarray
    staleness: np.ndarray
    summary: dict[str, Any]


def claim(services: Services, number: int, seconds: float) -> str | None:
    """Take a closed round to merge it; the owner's name, or None where another process has it.

    Args:
        services: of this process.
        number: of the round.
        seconds: of the lease, which is renewed while the merge runs.
    """
    owner, now = secrets.token_hex(16), services.clock()
    free = or_(Round.state == "closing", and_(Round.state == "merging", lapsed(Round.lease_until, now)))
    with services.database.write() as session:
        done = session.execute(
            update(Round)
            .where(Round.number == number, free)
            .values(state="merging", lease_owner=owner, lease_until=now + seconds)
        )
    return owner if changed(done) else None


def give_back(services: Services, number: int, owner: str) -> None:
    """Let a round that could not be merged wait: for the next try, or for an admin who ends it.

    Raises:
        DatabaseError: then the lease lapses by itself.
    """
    mine = (Round.number == number, Round.state == "merging", Round.lease_owner == owner)
    with services.database.write() as session:
        session.execute(update(Round).where(*mine).values(state="closing", lease_owner=None, lease_until=0.0))


def merge(services: Services, number: int, owner: str, checkpoint: Checkpoint) -> int | None:
    """Merge a claimed round; the number of the version it made, None where it made none.

    Args:
        services: of this process.
        number: of the round.
        owner: from `claim`.
        checkpoint: called with the name of each point that is reached; a test ends the process there.

    Raises:
        DatabaseError, BlobError, StorageFullError, TensorFileError: storage failed; the round stays as it is, to be
            merged again.
        StateError, LedgerError: the model or the ledger is damaged; the same.
        MergeMemoryError: there is too little memory; the same.
        LostLease: another process merges it now.
    """
    began = time.perf_counter()
    try:
        made = _compute(services, number, checkpoint)
    except BlobMissingError as error:
        if _store_is_away(services):
            raise
        _fail(services, number, owner, error.message)
        return None
    except _NOT_THE_UPDATES:
        raise
    except MemoryError as error:
        raise MergeMemoryError(
            f"there is not enough memory to merge round {number}",
            mend="give the server more memory, or end the round to give its updates up",
        ) from error
    except PflError as error:
        if isinstance(error, TensorFileError) and isinstance(error.__cause__, OSError):
            raise  # the file is there, and cannot be opened or read now
        _fail(services, number, owner, error.message)
        return None
    except Exception as error:
        # Anything else is a mistake in the strategy or here. Training goes on with the next round, with the model as
        # it was; the log says what happened.
        log.exception("the merge of round %d failed", number)
        _fail(services, number, owner, f"{type(error).__name__}: {error}")
        return None
    if made is None:
        _fail(services, number, owner, "the model was rolled back meanwhile", "abandoned")
        return None
    seconds = time.perf_counter() - began
    version = _publish(services, number, owner, made, seconds, checkpoint)
    services.metrics.merge_seconds.observe(seconds)
    services.metrics.merges.labels(outcome="merged").inc()
    services.metrics.updates.labels(outcome="merged").inc(len(made.rows))
    for row in made.rows:
        services.blobs.delete(row.blob)
        checkpoint("deleted")
    return version


def _store_is_away(services: Services) -> bool:
    """Whether the model is missing too: then it is the store, which may come back, and not an update."""
    with services.database.read() as session:
        version = session.get_one(Version, session.get_one(Federation, 1).version)
    return services.blobs.size(version.state_blob) is None


def _compute(services: Services, number: int, checkpoint: Checkpoint) -> Merged | None:
    runtime = services.runtime
    synchronous = runtime.config.rounds.mode == "synchronous"
    with services.database.read() as session:
        at = session.get_one(Round, number)
        version = session.get_one(Version, session.get_one(Federation, 1).version)
        if synchronous and at.base != version.number:
            return None
        population = runtime.population(session)
        known = runtime.round_plan(number, at.plan)
        found = select(Assignment, EnrolledDevice.index, EnrolledDevice.group).join(
            EnrolledDevice, EnrolledDevice.id == Assignment.device
        )
        mine = (Assignment.round == number, Assignment.state == "accepted")
        rows = [
            Accepted(
                client=int(index),
                group=group,
                examples=int(a.examples or 0),
                steps=int(a.steps or 0),
                reports=a.reports,
                id=a.id,
                base=a.base,
                blob=str(a.blob),
                offset=int(a.offset or 0),
                norm=float(a.norm or 0.0),
            )
            for a, index, group in session.execute(found.where(*mine).order_by(EnrolledDevice.index))
        ]
        server, noise = get_state(services.blobs, version.state_blob, runtime.table, population)
        private = runtime.private_rounds(session, noise)
    checkpoint("loaded")
    staleness = np.array([version.number - row.base for row in rows], np.int64)
    with ExitStack() as stack:
        files = [RowFile(stack.enter_context(services.blobs.local(row.blob)), row.offset) for row in rows]
        stored = stack.enter_context(FileRows(files, known.layout.size))
        told = merge_rows(runtime, server, private, known, stored, rows, population, staleness)
    checkpoint("computed")
    return Merged(server, private, version.number, rows, *told[:2], staleness, told[2])


def merge_rows(
    runtime: Runtime,
    server: Server,
    private: PrivateRounds,
    known: RoundPlan,
    stored: UpdateRows,
    rows: Sequence[Accepted],
    population: int,
    staleness: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Merge updates into the server and its privacy.

    Args:
        runtime: of the federation.
        server: as it was before.
        private: likewise.
        known: of the round.
        stored: values of the updates.
        rows: what is known of each.
        population: devices in all.
        staleness: how many versions each lies behind, int64 [n].

    Returns:
        Weights and scores of the updates, float64 [n], and the round's summary.

    Raises:
        NonFiniteError, TooFewUpdatesError: as `RoundDefinition.merge`; server and privacy are as they were.
    """
    definition = runtime.definition
    factors = (1.0 + staleness) ** -runtime.config.rounds.staleness_exponent
    norms = np.array([row.norm for row in rows], np.float64)
    received = definition.received(known, stored, rows, population)
    given = definition.merge_input(received, private, norms)
    definition.merge(server, given.updates, private, factors if staleness.any() else None)
    server.round += 1
    weights = merged_weights(given, factors)
    scores = merge_scores(given, weights, threads=definition.threads)
    return weights, scores, summary(given, weights, staleness)


def _publish(
    services: Services, number: int, owner: str, made: Merged, seconds: float, checkpoint: Checkpoint
) -> int:
    """Write the version's files, then everything else in one transaction."""
    runtime, version, ledger = services.runtime, made.before + 1, made.private.ledger
    with services.database.read() as session:
        config = session.scalars(select(Federation.config)).one()
    sealed = made.private.state() | seal(config, ledger)
    key = put_state(services.blobs, version, made.server, sealed)
    checkpoint("state stored")
    values = put_set(services.blobs, runtime.published(made.server))
    checkpoint("values stored")
    statement = runtime.statement(ledger)
    now = services.clock()
    with services.database.write() as session:
        federation = session.get_one(Federation, 1, with_for_update=LOCK)
        at = session.get_one(Round, number, with_for_update=LOCK)
        if at.state != "merging" or at.lease_owner != owner or federation.version != made.before:
            raise LostLease
        session.add(
            Version(
                number=version,
                round=number,
                parent=made.before,
                state_blob=key,
                values_sha256=values["sha256"],
                values_bytes=values["bytes"],
                privacy=statement,
                created=now,
            )
        )
        if runtime.config.privacy.guarantees:
            event, _ = ledger.entries[-1]
            session.add(LedgerEntry(round=number, event=event, epsilon=ledger.epsilon(), created=now))
        federation.version, federation.clip_norm = version, made.private.clip_norm
        at.state, at.result, at.summary = "merged", version, made.summary | {"seconds": round(seconds, 3)}
        at.lease_owner, at.lease_until = None, 0.0
        session.execute(
            update(Assignment),
            [
                {
                    "id": row.id,
                    "state": "merged",
                    "blob": None,
                    "weight": float(made.weights[i]),
                    "score": float(made.scores[i]),
                    "staleness": int(made.staleness[i]),
                }
                for i, row in enumerate(made.rows)
            ],
        )
        taking_part = select(Assignment.device).where(
            Assignment.round == number, Assignment.state == "merged"
        )
        session.execute(
            update(EnrolledDevice)
            .where(EnrolledDevice.id.in_(taking_part))
            .values(last_round=number)
            .execution_options(synchronize_session=False)
        )
        session.flush()
        checkpoint("in the transaction")
    checkpoint("published")
    return version


def _fail(services: Services, number: int, owner: str, why: str, state: str = "failed") -> None:
    """End the round without a version; the federation pauses when it fails again and again."""
    now = services.clock()
    with services.database.write() as session:
        federation = session.get_one(Federation, 1, with_for_update=LOCK)
        at = session.get_one(Round, number, with_for_update=LOCK)
        if at.state != "merging" or at.lease_owner != owner:
            raise LostLease
        blobs = end_without_merge(services, session, at, state, why)
        last = session.scalars(
            select(Round.state).where(Round.number <= number).order_by(Round.number.desc())
        )
        if list(last.fetchmany(FAILURES)) == ["failed"] * FAILURES:
            pause_itself(session, federation, now, f"{FAILURES} rounds in a row failed, the last with: {why}")
    log.error("round %d %s: %s", number, state, why)
    services.metrics.merges.labels(outcome=state).inc()
    services.metrics.updates.labels(outcome="discarded").inc(len(blobs))
    for blob in blobs:
        services.blobs.delete(blob)
