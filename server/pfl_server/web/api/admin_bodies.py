"""Bodies of the admin endpoints. Times are seconds since 1970 (UTC), sizes bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field

from pfl_mobile.protocol.bodies import Body, Count, Hex64, Id
from pfl_server.reports.queries import DeviceCounts, Funnel, Reason
from pfl_server.reports.status import note_of
from pfl_server.rounds.admin_actions import NOTE_LENGTH
from pfl_server.storage.models import AuditEntry, EnrolledDevice, Round, Version

Note = Annotated[str, Field(max_length=NOTE_LENGTH, description="Why; kept in the audit log.")]
State = Literal["running", "paused", "finished", "spent"]
DeviceState = Literal["active", "revoked", "left"]
RoundState = Literal["open", "closing", "merging", "merged", "failed", "abandoned"]
Next = Annotated[
    Count | None, Field(description="Give it as `before` for the next page; null: this is the last.")
]


class NoteBody(Body):
    """Body of actions that take no more than a note."""

    note: Note = ""


class ReasonCount(Body):
    """How many, by problem code or reason of declining."""

    code: str | None
    count: Count


def reasons(found: Sequence[Reason]) -> tuple[ReasonCount, ...]:
    """Counts by reason."""
    return tuple(ReasonCount(code=r.code, count=r.count) for r in found)


class FunnelBody(Body):
    """What came of the devices of a round."""

    invited: Count = Field(description="Devices that got a task.")
    downloaded: Count = Field(description="Devices that fetched the model, or answered.")
    uploaded: Count = Field(description="Devices whose update was accepted.")
    merged: Count = Field(description="Devices whose update is in the new version.")
    working: Count = Field(description="Devices that have not answered yet.")
    expired: Count = Field(description="Devices that did not answer in time.")
    discarded: Count = Field(description="Accepted updates that were thrown away with their round.")
    refused: tuple[ReasonCount, ...]
    declined: tuple[ReasonCount, ...]

    @classmethod
    def of(cls, found: Funnel) -> Self:
        """From what was counted."""
        return cls(
            invited=found.invited,
            downloaded=found.downloaded,
            uploaded=found.uploaded,
            merged=found.merged,
            working=found.working,
            expired=found.states["expired"],
            discarded=found.states["discarded"],
            refused=reasons(found.refused),
            declined=reasons(found.declined),
        )


class RoundBody(Body):
    """One round of the list."""

    number: Count
    state: RoundState
    base: Count = Field(description="Model version that devices started from.")
    result: Count | None = Field(description="Model version it made.")
    opened: float
    deadline: float | None
    closed: float | None
    target: Count = Field(description="Updates that close it.")
    minimum: Count = Field(description="Updates it needs at its deadline.")
    clip_norm: float | None
    states: dict[str, Count] = Field(description="Number of devices by state of their task.")
    error: str | None = Field(description="Why it failed or was abandoned.")

    @classmethod
    def of(cls, found: Round, states: Mapping[str, int]) -> RoundBody:
        """From its row and the number of tasks by state."""
        return RoundBody(
            number=found.number,
            state=cast(RoundState, found.state),
            base=found.base,
            result=found.result,
            opened=found.opened,
            deadline=found.deadline,
            closed=found.closed,
            target=found.target,
            minimum=found.minimum,
            clip_norm=found.clip_norm,
            states=dict(states),
            error=found.error,
        )


class RoundsPage(Body):
    """Rounds, newest first."""

    rounds: tuple[RoundBody, ...]
    next: Next


class RoundDetail(RoundBody):
    """One round in full."""

    funnel: FunnelBody
    problems: tuple[ReasonCount, ...] = Field(description="Problems answered in this round, by code.")
    summary: dict[str, Any] = Field(
        description="Numbers of the merge; empty over fewer devices than are shown."
    )


class VersionBody(Body):
    """A model version."""

    number: Count
    round: Count | None = Field(description="That made it; null for version 0 and roll-backs.")
    parent: Count | None
    sha256: Hex64 = Field(description="Of the shared values; also the address `/v1/sets/{sha256}`.")
    bytes: Count
    privacy: dict[str, Any] = Field(description="The privacy statement, see PROTOCOL.md.")
    created: float
    note: str
    served: bool = Field(description="Whether devices get it now.")

    @classmethod
    def of(cls, found: Version, served: int) -> Self:
        """From its row and the number of the served version."""
        return cls(
            number=found.number,
            round=found.round,
            parent=found.parent,
            sha256=found.values_sha256,
            bytes=found.values_bytes,
            privacy=found.privacy,
            created=found.created,
            note=found.note,
            served=found.number == served,
        )


class VersionsPage(Body):
    """Model versions, newest first."""

    versions: tuple[VersionBody, ...]
    next: Next


class DevicesBody(Body):
    """How many devices there are; single ones are found by their id."""

    total: Count
    states: dict[str, Count]
    seen_last_hour: Count
    seen_last_day: Count
    seen_last_30_days: Count

    @classmethod
    def of(cls, found: DeviceCounts) -> Self:
        """From what was counted."""
        return cls(
            total=found.total,
            states=dict(found.states),
            seen_last_hour=found.hour,
            seen_last_day=found.day,
            seen_last_30_days=found.month,
        )


class DeviceBody(Body):
    """One device. Nothing says whose it is."""

    id: Id
    state: DeviceState
    group: str
    facts: dict[str, Any]
    attestation: str
    enrolled: float
    seen: float
    last_round: int = Field(description="Round that it was last merged in; -1: none.")

    @classmethod
    def of(cls, found: EnrolledDevice) -> Self:
        """From its row."""
        return cls(
            id=found.id,
            state=cast(DeviceState, found.state),
            group=found.group,
            facts=found.facts,
            attestation=found.attestation,
            enrolled=found.enrolled,
            seen=found.seen,
            last_round=found.last_round,
        )


class TokenRequest(Body):
    """Body of ``POST /v1/admin/tokens``."""

    note: Annotated[str, Field(max_length=200, description="What it is for.")] = ""
    group: Annotated[str, Field(max_length=100, description="Group of the devices that use it.")] = ""
    uses: (
        Annotated[int, Field(ge=1, le=2**31 - 1, description="Devices that may use it; null: any number.")]
        | None
    ) = None
    valid_s: (
        Annotated[
            float, Field(gt=0, le=3.2e9, allow_inf_nan=False, description="Seconds; null: until deleted.")
        ]
        | None
    ) = None


class TokenBody(Body):
    """An enrolment token; the token itself is not kept."""

    id: Id
    note: str
    group: str
    uses_left: Count | None
    expires: float | None
    created: float


class NewTokenBody(Body):
    """A new enrolment token, told this once."""

    id: Id
    token: str


class TokensPage(Body):
    """Enrolment tokens, newest first."""

    tokens: tuple[TokenBody, ...]
    next_offset: Count | None = Field(
        description="Give it as `offset` for the next page; null: this is the last."
    )


class AuditBody(Body):
    """An admin action."""

    id: Count
    at: float
    actor: str
    action: str
    detail: dict[str, Any]


class AuditPage(Body):
    """Admin actions, newest first."""

    entries: tuple[AuditBody, ...]
    next: Next


class LedgerBody(Body):
    """What one merged round cost."""

    round: Count
    epsilon: float = Field(description="Of all rounds up to this one together.")
    event: dict[str, Any]
    created: float


class PrivacyBody(Body):
    """The privacy budget and its ledger, newest round first."""

    spent: float | None = Field(description="Epsilon so far; null: nothing is guaranteed.")
    left: float | None = Field(description="Epsilon that is left; null without a budget.")
    budget: float | None
    delta: float | None
    statement: dict[str, Any]
    ledger: tuple[LedgerBody, ...]
    next: Next


class LedgerEvent(Body):
    """Releases of one kind in a row."""

    event: dict[str, Any] = Field(description="As dp-accounting describes it.")
    count: Annotated[int, Field(ge=1)]


class LedgerFile(Body):
    """All releases in order, as `pfl privacy account` reads them."""

    version: Literal[1]
    config: dict[str, Any] = Field(description="Privacy configuration of the federation.")
    entries: tuple[LedgerEvent, ...]


class PauseBody(Body):
    """Who paused the federation, when and why."""

    actor: str = Field(description="`aggregator` where it paused itself, else the admin's name.")
    at: float = Field(description="Seconds since 1970.")
    note: str = Field(description="The reason, with what mends it where the aggregator gave it.")

    @classmethod
    def of(cls, entry: AuditEntry) -> PauseBody:
        """Of an entry of the audit log."""
        return cls(actor=entry.actor, at=entry.at, note=note_of(entry))


class StatusBody(Body):
    """The federation now."""

    state: State
    summary: str = Field(description="The same in one sentence.")
    pause: PauseBody | None = Field(description="Null where it is not paused.")
    version: Count = Field(description="Model version that is served.")
    round: RoundBody | None = Field(description="Newest round; null before the first.")
    devices: DevicesBody
    spent: float | None
    budget: float | None
    problems: tuple[ReasonCount, ...] = Field(
        description="Problems answered in the last 50 rounds and outside rounds; `merge-failed` counts rounds of which "
        "no model came."
    )


class RollbackRequest(Body):
    """Body of ``POST /v1/admin/rollback``."""

    version: Count
    note: Note = ""


class RolledBack(Body):
    """Answer to a roll-back."""

    version: Count = Field(description="The new version's number.")


class StateBody(Body):
    """Answer to an action: the state afterwards."""

    state: State
