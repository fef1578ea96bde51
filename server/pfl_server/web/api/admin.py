"""The admin endpoints: look at the federation, steer it. They need ``Authorization: Bearer <admin token>``."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from pfl_mobile.protocol.bodies import SAFETENSORS
from pfl_server.federation.config import FederationConfig
from pfl_server.problems import AdminDisabled, AdminRequired, Conflict, NotFound, Problem, Unauthorized
from pfl_server.reports import queries
from pfl_server.reports.budget import budget_of
from pfl_server.reports.status import status as status_of
from pfl_server.rounds.admin_actions import Actions
from pfl_server.services import Services, services
from pfl_server.storage.models import Version
from pfl_server.web.answers import responses
from pfl_server.web.api import admin_bodies as bodies
from pfl_server.web.auth import admin
from pfl_server.web.downloads import tensors_response
from pfl_server.web.parameters import HexId, Number


def _problems(*kinds: type[Problem], body: bool = False) -> dict[int | str, dict[str, Any]]:
    return responses(Unauthorized, AdminRequired, AdminDisabled, *kinds, body=body)


router = APIRouter(prefix="/v1/admin", tags=["admin"], responses=_problems())

On = Annotated[Services, Depends(services)]
Actor = Annotated[str, Depends(admin)]
Before = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only smaller numbers; from `next`.")]
Limit = Annotated[int, Query(ge=1, le=200, description="Most entries of the page.")]


@router.get("/status", summary="The federation now")
def get_status(on: On, _: Actor) -> bodies.StatusBody:
    """State, newest round, devices, privacy budget and problems, for scripts and alarms."""
    with on.database.read() as session:
        now = on.clock()
        found = status_of(session, config_of(on), now)
        devices = queries.devices(session, now)
    return bodies.StatusBody(
        state=cast(bodies.State, found.federation.state),
        summary=found.sentence,
        pause=None if found.pause is None else bodies.PauseBody.of(found.pause),
        version=found.federation.version,
        round=None if found.round is None else bodies.RoundBody.of(found.round, found.funnel.states),
        devices=bodies.DevicesBody.of(devices),
        spent=found.budget.spent,
        budget=found.budget.budget,
        problems=bodies.reasons([*found.problems, *found.outside]),
    )


@router.get("/rounds", summary="Rounds, newest first")
def get_rounds(on: On, _: Actor, before: Before = None, limit: Limit = queries.PAGE) -> bodies.RoundsPage:
    """The rounds with the number of devices by state of their task."""
    with on.database.read() as session:
        rows = queries.rounds(session, before, limit + 1)
    page = rows[:limit]
    return bodies.RoundsPage(
        rounds=tuple(bodies.RoundBody.of(row.round, row.funnel.states) for row in page),
        next=page[-1].round.number if len(rows) > limit else None,
    )


@router.get("/rounds/{number}", summary="One round", responses=_problems(NotFound))
def get_round(on: On, _: Actor, number: Number) -> bodies.RoundDetail:
    """What came of the round's devices, why updates were refused, and the numbers of its merge."""
    with on.database.read() as session:
        found = queries.round_of(session, number)
        if found is None:
            raise NotFound(f"there is no round {number}", mend="GET /v1/admin/rounds lists them")
        funnel = queries.funnel(session, number)
        problems = queries.refusals_of(session, number)
    few = funnel.merged < config_of(on).evaluation.min_devices
    return bodies.RoundDetail(
        **bodies.RoundBody.of(found, funnel.states).model_dump(),
        funnel=bodies.FunnelBody.of(funnel),
        problems=bodies.reasons(problems),
        summary={} if few else found.summary,
    )


@router.post(
    "/rounds/{number}/abandon",
    summary="End a round without a merge",
    responses=_problems(NotFound, Conflict, body=True),
)
def abandon_round(on: On, actor: Actor, number: Number, body: bodies.NoteBody) -> bodies.StateBody:
    """Its updates are thrown away and its tasks are over. Nothing is published, so it costs no privacy, unless the
    devices add the noise themselves: then what they sent counts.
    """
    Actions(on, actor).abandon(number, body.note)
    return _done(on)


@router.get("/versions", summary="Model versions, newest first")
def get_versions(on: On, _: Actor, before: Before = None, limit: Limit = queries.PAGE) -> bodies.VersionsPage:
    """The versions with their privacy statements."""
    with on.database.read() as session:
        rows = queries.versions(session, before, limit + 1)
        served = queries.federation(session).version
    page = rows[:limit]
    return bodies.VersionsPage(
        versions=tuple(bodies.VersionBody.of(row, served) for row in page),
        next=page[-1].number if len(rows) > limit else None,
    )


@router.get("/versions/{number}", summary="One model version", responses=_problems(NotFound))
def get_version(on: On, _: Actor, number: Number) -> bodies.VersionBody:
    """The version with its privacy statement."""
    with on.database.read() as session:
        return bodies.VersionBody.of(
            _found(queries.version(session, number), number), queries.federation(session).version
        )


@router.get(
    "/versions/{number}/tensors",
    summary="Download a version's shared values",
    response_class=Response,
    responses={
        200: {"description": "A safetensors file.", "content": {SAFETENSORS: {}}},
        304: {"description": "`If-None-Match` names this content."},
        **_problems(NotFound),
    },
)
def get_tensors(on: On, _: Actor, request: Request, number: Number) -> Response:
    """The shared values as safetensors, with their SHA-256 as strong `ETag`.

    To resume a broken download, use `/v1/sets/{sha256}`, which takes `Range`.
    """
    with on.database.read() as session:
        found = _found(queries.version(session, number), number)
    return tensors_response(on, found, request.headers.get("If-None-Match"))


@router.get("/devices", summary="How many devices there are")
def get_devices(on: On, _: Actor) -> bodies.DevicesBody:
    """Devices by state, and those heard of lately. There is no list of devices: nobody needs to browse them."""
    with on.database.read() as session:
        return bodies.DevicesBody.of(queries.devices(session, on.clock()))


@router.get("/devices/{device_id}", summary="One device", responses=_problems(NotFound))
def get_device(on: On, _: Actor, device_id: HexId) -> bodies.DeviceBody:
    """A device by its id, as its owner's app shows it."""
    with on.database.read() as session:
        found = queries.device(session, device_id)
    if found is None:
        raise NotFound(f"there is no device {device_id}", mend="compare the id with the one the device shows")
    return bodies.DeviceBody.of(found)


@router.post(
    "/devices/{device_id}/revoke",
    summary="End a device's part",
    responses=_problems(NotFound, Conflict, body=True),
)
def revoke_device(on: On, actor: Actor, device_id: HexId, body: bodies.NoteBody) -> bodies.StateBody:
    """Its credential is refused from now on, and its update that is not merged yet is thrown away."""
    Actions(on, actor).revoke(device_id, body.note)
    return _done(on)


@router.get("/tokens", summary="Enrolment tokens, newest first")
def get_tokens(
    on: On,
    _: Actor,
    offset: Annotated[int, Query(ge=0, le=10**6, description="How many to leave out.")] = 0,
    limit: Limit = queries.PAGE,
) -> bodies.TokensPage:
    """Tokens with the uses they have left; a token itself is told once, when it is made."""
    with on.database.read() as session:
        rows = queries.tokens(session, offset, limit + 1)
    page = tuple(
        bodies.TokenBody(
            id=t.id, note=t.note, group=t.group, uses_left=t.uses_left, expires=t.expires, created=t.created
        )
        for t in rows[:limit]
    )
    return bodies.TokensPage(tokens=page, next_offset=offset + limit if len(rows) > limit else None)


@router.post("/tokens", summary="Make an enrolment token", status_code=201, responses=_problems(body=True))
def create_token(on: On, actor: Actor, body: bodies.TokenRequest, response: Response) -> bodies.NewTokenBody:
    """The answer holds the token, once; only its SHA-256 is kept."""
    made = Actions(on, actor).create_token(body.note, group=body.group, uses=body.uses, valid_s=body.valid_s)
    response.headers["Cache-Control"] = "no-store"
    return bodies.NewTokenBody(id=made.id, token=made.token)


@router.delete(
    "/tokens/{token_id}", summary="Delete an enrolment token", status_code=204, responses=_problems(NotFound)
)
def delete_token(on: On, actor: Actor, token_id: HexId) -> None:
    """No more devices enrol with it; those that did stay."""
    Actions(on, actor).delete_token(token_id)


@router.get("/audit", summary="Admin actions, newest first")
def get_audit(
    on: On,
    _: Actor,
    before: Annotated[
        int | None, Query(ge=0, le=2**53 - 1, description="Only smaller ids; from `next`.")
    ] = None,
    limit: Limit = queries.PAGE,
) -> bodies.AuditPage:
    """Who did what and when, also through the dashboard."""
    with on.database.read() as session:
        rows = queries.audit(session, before, limit + 1)
    page = tuple(
        bodies.AuditBody(id=e.id, at=e.at, actor=e.actor, action=e.action, detail=e.detail)
        for e in rows[:limit]
    )
    return bodies.AuditPage(entries=page, next=page[-1].id if len(rows) > limit else None)


@router.get("/privacy", summary="Privacy budget and ledger")
def get_privacy(on: On, _: Actor, before: Before = None, limit: Limit = queries.PAGE) -> bodies.PrivacyBody:
    """What the published models cost so far, with all assumptions, and the ledger, newest round first."""
    with on.database.read() as session:
        budget = budget_of(queries.newest_version(session), config_of(on))
        rows = queries.ledger(session, before, limit + 1)
    page = tuple(
        bodies.LedgerBody(round=e.round, epsilon=e.epsilon, event=e.event, created=e.created)
        for e in rows[:limit]
    )
    return bodies.PrivacyBody(
        spent=budget.spent,
        left=budget.left,
        budget=budget.budget,
        delta=budget.delta,
        statement=dict(budget.statement),
        ledger=page,
        next=page[-1].round if len(rows) > limit else None,
    )


@router.get("/privacy/ledger", summary="The whole privacy ledger", responses=_problems(Conflict))
def get_ledger(on: On, _: Actor) -> bodies.LedgerFile:
    """What `pfl privacy account` reads, to compute epsilon again from every release so far, or at another delta."""
    if not config_of(on).privacy.guarantees:
        raise Conflict(
            "the federation adds no noise, so it keeps no privacy ledger",
            mend="there is nothing to account for",
        )
    with on.database.read() as session:
        return bodies.LedgerFile.model_validate_json(on.runtime.ledger(session).to_json())


@router.post("/pause", summary="Give out no new tasks", responses=_problems(Conflict, body=True))
def pause(on: On, actor: Actor, body: bodies.NoteBody) -> bodies.StateBody:
    """No new rounds open and no device gets a task, until `resume`. A round that is open may still end."""
    Actions(on, actor).pause(body.note)
    return _done(on)


@router.post("/resume", summary="Go on", responses=_problems(Conflict, body=True))
def resume(on: On, actor: Actor, body: bodies.NoteBody) -> bodies.StateBody:
    """Go on after a pause, also one that the federation took by itself because rounds failed."""
    Actions(on, actor).resume(body.note)
    return _done(on)


@router.post(
    "/rollback", summary="Serve an earlier version again", responses=_problems(NotFound, Conflict, body=True)
)
def roll_back(on: On, actor: Actor, body: bodies.RollbackRequest) -> bodies.RolledBack:
    """Makes a new version with the tensors of an earlier one; an open round is abandoned.

    What was spent of the privacy budget stays spent.
    """
    return bodies.RolledBack(version=Actions(on, actor).roll_back(body.version, body.note))


def config_of(on: Services) -> FederationConfig:
    """The federation's settings."""
    return on.runtime.config


def _done(on: Services) -> bodies.StateBody:
    with on.database.read() as session:
        return bodies.StateBody(state=cast(bodies.State, queries.federation(session).state))


def _found(version: Version | None, number: int) -> Version:
    if version is None:
        raise NotFound(f"there is no version {number}", mend="GET /v1/admin/versions lists them")
    return version
