"""The tables. Times are seconds since 1970 (UTC); ids are 32 hex digits; JSON columns hold plain values."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: A row id that SQLite counts up by itself too.
RowId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of all tables."""


class Federation(Base):
    """The one federation of this database (id 1).

    Attributes:
        bundle_name, bundle_version, fingerprint: which model it trains.
        config: ``FederationConfig`` as it was when the federation began.
        state: ``running``, ``paused`` (by an admin), ``finished`` (all rounds done), ``spent`` (privacy budget).
        version: the model version that is served.
        next_round: number of the next round to open.
        next_index: index of the next device that enrols.
        clip_norm: present clipping bound; adaptive clipping changes it.
        secrets: keys of selection and sessions, base64; never shown.
        lease_owner, lease_until: which process coordinates.
    """

    __tablename__ = "federation"
    id: Mapped[int] = mapped_column(primary_key=True)
    bundle_name: Mapped[str] = mapped_column(String(200))
    bundle_version: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64))
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int] = mapped_column(Integer)
    next_round: Mapped[int] = mapped_column(Integer)
    next_index: Mapped[int] = mapped_column(Integer)
    clip_norm: Mapped[float | None] = mapped_column(Float)
    secrets: Mapped[dict[str, Any]] = mapped_column(JSON)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float] = mapped_column(Float)
    created: Mapped[float] = mapped_column(Float)


class EnrolledDevice(Base):
    """An enrolled device. Nothing here says whose it is.

    Attributes:
        index: place in the population, counted from 0; what strategies know it by.
        secret_sha256: of the secret part of its credential.
        state: ``active``, ``revoked`` (by an admin), ``left`` (by itself).
        group: name of its group; empty for none.
        facts: last eligibility facts, as checked in (engine, SDK, platform; no identifiers).
        attestation: kind of the verdict that was checked; empty for none.
        vouched: whether the operator vouches for it: it enrolled with a token or an attestation.
        last_round: round that its update was last merged in; -1 for none.
        source: tag of the token or the address that it enrolled with (`places.source`); empty where not known.
        lapses: tasks in a row that ended without an answer.
        rests_until: when it may have a task again.
        asked: when it last asked and there was no place; 0 once it has a task.
        invited: round that keeps a place for it; -1 for none.
    """

    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    index: Mapped[int] = mapped_column(Integer, unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    group: Mapped[str] = mapped_column(String(100), default="")
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    attestation: Mapped[str] = mapped_column(String(40), default="")
    vouched: Mapped[bool] = mapped_column(default=False)
    last_round: Mapped[int] = mapped_column(Integer, default=-1)
    enrolled: Mapped[float] = mapped_column(Float)
    seen: Mapped[float] = mapped_column(Float, index=True)
    source: Mapped[str] = mapped_column(String(8), default="", server_default="")
    lapses: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    rests_until: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    asked: Mapped[float] = mapped_column(Float, default=0.0, server_default="0", index=True)
    invited: Mapped[int] = mapped_column(Integer, default=-1, server_default="-1", index=True)


class EnrolmentToken(Base):
    """Lets devices enrol where enrolment is not open.

    Attributes:
        sha256: of the token, which is shown once.
        uses_left: None for no limit.
        expires: None for never.
    """

    __tablename__ = "enrolment_tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    note: Mapped[str] = mapped_column(String(200), default="")
    group: Mapped[str] = mapped_column(String(100), default="")
    uses_left: Mapped[int | None] = mapped_column(Integer)
    expires: Mapped[float | None] = mapped_column(Float)
    created: Mapped[float] = mapped_column(Float)


class UsedChallenge(Base):
    """An attestation challenge that was answered, kept until it would have expired: each is good for one use."""

    __tablename__ = "used_challenges"
    nonce: Mapped[str] = mapped_column(String(32), primary_key=True)
    expires: Mapped[float] = mapped_column(Float, index=True)


class EndedSession(Base):
    """A session of the dashboard that was signed out of, kept until it would have ended by itself."""

    __tablename__ = "ended_sessions"
    nonce: Mapped[str] = mapped_column(String(32), primary_key=True)
    expires: Mapped[float] = mapped_column(Float, index=True)


class Round(Base):
    """One round; of buffered asynchronous training, one buffer.

    Attributes:
        number: counted from 0.
        state: ``open``, ``closing`` (no more updates), ``merging`` (a process holds the lease), ``merged``,
            ``failed`` (the merge gave no usable model), ``abandoned`` (too few updates by the deadline, or
            too few devices that may still send one).
        base: model version that devices start from (the newest, in asynchronous training).
        result: model version it made; None while it has none.
        plan: the device's plan.
        seed: of the strategy's draws.
        sets: common sets of values by name: {"sha256", "bytes"}.
        clip_norm: bound on updates of this round; None without clipping.
        selection: base64 key of the coin flips of Poisson sampling, or null.
        target, minimum: updates that close it, and that it needs at its deadline.
        most: devices that may be assigned; None for no limit.
        error: why it failed or was abandoned.
        summary: numbers of the merge (weights, norms, clipped share, appeal, seconds).
    """

    __tablename__ = "rounds"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    base: Mapped[int] = mapped_column(ForeignKey("versions.number"))
    result: Mapped[int | None] = mapped_column(Integer)
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int] = mapped_column(BigInteger)
    sets: Mapped[dict[str, Any]] = mapped_column(JSON)
    clip_norm: Mapped[float | None] = mapped_column(Float)
    selection: Mapped[str | None] = mapped_column(String(100))
    target: Mapped[int] = mapped_column(Integer)
    minimum: Mapped[int] = mapped_column(Integer)
    most: Mapped[int | None] = mapped_column(Integer)
    opened: Mapped[float] = mapped_column(Float)
    deadline: Mapped[float | None] = mapped_column(Float)
    closed: Mapped[float | None] = mapped_column(Float)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float] = mapped_column(Float, default=0.0)
    error: Mapped[str | None] = mapped_column(Text)
    summary: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class Assignment(Base):
    """One device in one round: what it is to do, and what came of it.

    Attributes:
        id: the task id that the device knows.
        began: when an upload began, where devices add the noise: from then on something may have been sent.
        state: ``assigned``, ``accepted`` (its update is stored), ``merged``, ``refused``, ``declined`` (by the
            device), ``expired``, ``discarded`` (accepted in a round that was abandoned or failed).
        base: model version that it started from.
        sets: sets of this device alone: {"name": {"sha256", "bytes"}}.
        key: idempotency key of the accepted update.
        digest: of its bytes, so that the same update sent again is known for the same.
        blob: where the update is stored; None once merged or discarded.
        offset: where the tensor bytes begin in it.
        examples, steps, reports, clipped: as the device reported them.
        norm: L2 norm of the update as received.
        weight, score: of the merge; the score says how far it lies from the others. Kept without the device's id
            once ``device`` is cleared.
        staleness: versions between ``base`` and the merge.
        reason: of ``refused`` and ``declined``: a problem code.
        evaluated: whether its evaluation report was counted.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("round", "device"),
        Index("assignments_by_round", "round", "state"),
        Index("assignments_by_device", "device", "state"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"))
    device: Mapped[str | None] = mapped_column(ForeignKey("devices.id"))
    state: Mapped[str] = mapped_column(String(16))
    base: Mapped[int] = mapped_column(Integer)
    sets: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    assigned: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)
    downloaded: Mapped[float | None] = mapped_column(Float)
    began: Mapped[float | None] = mapped_column(Float)
    finished: Mapped[float | None] = mapped_column(Float)
    key: Mapped[str | None] = mapped_column(String(100))
    digest: Mapped[str | None] = mapped_column(String(64))
    blob: Mapped[str | None] = mapped_column(String(200))
    offset: Mapped[int | None] = mapped_column(Integer)
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    examples: Mapped[int | None] = mapped_column(Integer)
    steps: Mapped[int | None] = mapped_column(Integer)
    reports: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    clipped: Mapped[bool | None] = mapped_column()
    norm: Mapped[float | None] = mapped_column(Float)
    weight: Mapped[float | None] = mapped_column(Float)
    score: Mapped[float | None] = mapped_column(Float)
    staleness: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str | None] = mapped_column(String(60))
    evaluated: Mapped[bool] = mapped_column(default=False)


class Version(Base):
    """A model version: what a merge made. Version 0 is the bundle's own values.

    Attributes:
        number: counted from 0; never used twice, also not after a roll-back.
        round: that made it; None for version 0 and for roll-backs.
        parent: version it was made from.
        state_blob: the strategy's server state (values, groups, sets, numbers).
        values_sha256, values_bytes: the shared values as a set, for download.
        privacy: the statement: epsilon, delta, assumptions. {"mechanism": "none"} where there is none.
        note: of a roll-back.
    """

    __tablename__ = "versions"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    round: Mapped[int | None] = mapped_column(Integer)
    parent: Mapped[int | None] = mapped_column(Integer)
    state_blob: Mapped[str] = mapped_column(String(200))
    values_sha256: Mapped[str] = mapped_column(String(64))
    values_bytes: Mapped[int] = mapped_column(BigInteger)
    privacy: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Float)
    note: Mapped[str] = mapped_column(String(500), default="")


class LedgerEntry(Base):
    """What a merge that was published cost: one entry of the privacy ledger (``pfl_mobile.privacy``)."""

    __tablename__ = "ledger"
    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    round: Mapped[int] = mapped_column(Integer, unique=True)
    event: Mapped[dict[str, Any]] = mapped_column(JSON)
    epsilon: Mapped[float] = mapped_column(Float)
    created: Mapped[float] = mapped_column(Float)


class EvaluationSum(Base):
    """Sums of evaluation reports: never one device's.

    Attributes:
        version: of the shared values that were measured.
        kind: ``global`` or ``personalized``.
        group: empty for all devices together.
        total: sum over devices of (metric * weight).
        weight: sum of weights (held-out labels).
        largest: weight of one device; 0 in sums from before it was kept.
        devices: how many reported.
        better, worse, adopted: devices by what personalization did; with ``personalized`` rows.
    """

    __tablename__ = "evaluation_sums"
    __table_args__ = (UniqueConstraint("version", "kind", "group", "metric"),)
    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    version: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16))
    group: Mapped[str] = mapped_column(String(100))
    metric: Mapped[str] = mapped_column(String(60))
    total: Mapped[float] = mapped_column(Float)
    weight: Mapped[float] = mapped_column(Float)
    largest: Mapped[float] = mapped_column(Float, default=0.0)
    devices: Mapped[int] = mapped_column(Integer)
    better: Mapped[int] = mapped_column(Integer, default=0)
    worse: Mapped[int] = mapped_column(Integer, default=0)
    adopted: Mapped[int] = mapped_column(Integer, default=0)


class Refusal(Base):
    """How often a problem was answered, by round (-1 outside rounds); without a device."""

    __tablename__ = "refusals"
    round: Mapped[int] = mapped_column(Integer, primary_key=True)
    code: Mapped[str] = mapped_column(String(60), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)


class AuditEntry(Base):
    """An admin action."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    actor: Mapped[str] = mapped_column(String(60))
    action: Mapped[str] = mapped_column(String(60))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
