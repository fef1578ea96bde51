"""What admins do on the dashboard: each form is one of ``rounds.admin_actions``, then back to a page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pfl_server.counting.rate_limits import network
from pfl_server.dashboard.access import (
    ACTOR,
    FORM_COOKIE,
    SESSION_COOKIE,
    Acting,
    Gated,
    HtmlRoute,
    On,
    refuse_foreign,
    safe_next,
    sign_in_form,
    start_session,
)
from pfl_server.dashboard.routes import tokens_page
from pfl_server.identity import credentials
from pfl_server.problems import AdminRequired, InvalidRequest, RateLimited
from pfl_server.rounds.admin_actions import NOTE_LENGTH, Actions
from pfl_server.web.parameters import HexId, Number

router = APIRouter(route_class=HtmlRoute, include_in_schema=False)

Note = Annotated[str, Form(max_length=NOTE_LENGTH)]
Sure = Annotated[bool, Form()]
_DAY_S = 86400.0


@router.post("/sign-in")
def sign_in(
    request: Request,
    on: On,
    found: Gated,
    token: Annotated[str, Form(max_length=1000)] = "",
    csrf: Annotated[str, Form(max_length=200)] = "",
    next: Annotated[str, Form(max_length=500)] = "/",  # noqa: A002 (name of the field)
) -> Response:
    """Check the admin token and start a session."""
    if found.sessions is None:
        return sign_in_form(request, found, next)
    refuse_foreign(request)
    form = found.sessions.read("form", request.cookies.get(FORM_COOKIE))
    if form is None or not credentials.same(csrf, form.csrf):
        raise AdminRequired(
            "The sign-in form is too old.", mend="Open it again; your browser must allow cookies."
        )
    wait = found.attempts.take(network(request.client.host if request.client else None), on.clock())
    wait = wait or found.attempts_of_all.take("", on.clock())
    if wait:
        raise RateLimited(
            "Too many attempts to sign in.",
            mend=f"Try again in {int(wait) + 1} seconds.",
            headers={"Retry-After": str(int(wait) + 1)},
        )
    if not found.sessions.is_admin(token):
        on.refusals.count(AdminRequired.code)
        return sign_in_form(request, found, next, wrong=True, status=403)
    Actions(on, ACTOR).signed_in()
    done = RedirectResponse(safe_next(next), 303)
    start_session(done, request, found.sessions)
    return done


@router.post("/sign-out")
def sign_out(on: On, seen: Acting) -> Response:
    """End the session, also of copies of its cookie."""
    assert seen.signed is not None  # or they could not act
    Actions(on, ACTOR).signed_out(seen.signed.nonce, seen.signed.ends)
    done = RedirectResponse("/", 303)
    done.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return done


@router.post("/pause")
def pause(on: On, _: Acting, note: Note = "") -> Response:
    """Give out no new tasks."""
    Actions(on, ACTOR).pause(note)
    return RedirectResponse("/", 303)


@router.post("/resume")
def resume(on: On, _: Acting, note: Note = "") -> Response:
    """Go on."""
    Actions(on, ACTOR).resume(note)
    return RedirectResponse("/", 303)


@router.post("/rounds/{number}/abandon")
def abandon(on: On, _: Acting, number: Number, note: Note = "", sure: Sure = False) -> Response:
    """End a round without a merge."""
    _need(sure)
    Actions(on, ACTOR).abandon(number, note)
    return RedirectResponse(f"/rounds/{number}", 303)


@router.post("/versions/{number}/roll-back")
def roll_back(on: On, _: Acting, number: Number, note: Note = "", sure: Sure = False) -> Response:
    """Serve an earlier version again."""
    _need(sure)
    Actions(on, ACTOR).roll_back(number, note)
    return RedirectResponse("/versions", 303)


@router.post("/devices/{device_id}/revoke")
def revoke(on: On, _: Acting, device_id: HexId, note: Note = "", sure: Sure = False) -> Response:
    """End a device's part."""
    _need(sure)
    Actions(on, ACTOR).revoke(device_id, note)
    return RedirectResponse(f"/devices?device={device_id}", 303)


@router.post("/tokens")
def create_token(
    request: Request,
    on: On,
    seen: Acting,
    note: Annotated[str, Form(max_length=200)] = "",
    group: Annotated[str, Form(max_length=100)] = "",
    uses: Annotated[str, Form(max_length=10)] = "",
    days: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Make an enrolment token and show it this once."""
    count = _whole(uses, "uses", 2**31 - 1)
    valid = _whole(days, "days", 36_500)
    made = Actions(on, ACTOR).create_token(
        note, group=group, uses=count, valid_s=None if valid is None else valid * _DAY_S
    )
    return tokens_page(request, seen, on, made=made)


@router.post("/tokens/{token_id}/delete")
def delete_token(on: On, _: Acting, token_id: HexId) -> Response:
    """Let no more devices enrol with a token."""
    Actions(on, ACTOR).delete_token(token_id)
    return RedirectResponse("/tokens", 303)


def _need(sure: bool) -> None:
    if not sure:
        raise InvalidRequest("The box that says you are sure is not ticked.", mend="Go back and tick it.")


def _whole(text: str, name: str, most: int) -> int | None:
    """A whole number of a field that may stay empty."""
    if not text.strip():
        return None
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}.", mend="Or leave it empty.")
    return int(text)
