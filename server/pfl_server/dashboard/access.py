"""Who may see the dashboard, and that a form was sent by the page it was made for."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from typing_extensions import override

from pfl_mobile.errors import PflError
from pfl_server.counting.rate_limits import TokenBuckets
from pfl_server.dashboard.html import page
from pfl_server.dashboard.sign_in import FORM_S, SESSION_S, Sessions, Signed
from pfl_server.identity import credentials
from pfl_server.problems import AdminDisabled, AdminRequired, NotFound, Problem
from pfl_server.reports import queries
from pfl_server.services import Services, services
from pfl_server.storage.models import EndedSession
from pfl_server.web.answers import problem_of

SESSION_COOKIE, FORM_COOKIE = "pfl_session", "pfl_form"
#: Seconds that the overview's count of devices is good for.
COUNTED_S = 15.0
#: Name of an admin who acts through the dashboard, in the audit log.
ACTOR = "admin (dashboard)"

On = Annotated[Services, Depends(services)]


@dataclass(frozen=True)
class View:
    """Who looks.

    Attributes:
        can_sign_in: whether there is an admin token to sign in with.
        signed: their session; None of others than admins.
    """

    can_sign_in: bool
    signed: Signed | None = None

    @property
    def admin(self) -> bool:
        """Whether they may act."""
        return self.signed is not None

    @property
    def csrf(self) -> str:
        """What their forms must carry; empty for others than admins."""
        return self.signed.csrf if self.signed else ""


class SignInGate:
    """What one process needs to let admins in; made when the first page is asked for.

    Attributes:
        sessions: None where no admin token is set.
        attempts: to sign in, of one address: five at once, then one every 12 seconds.
        attempts_of_all: of all addresses together, so that many of them do not help to guess.
    """

    def __init__(self, on: Services) -> None:
        self.sessions: Sessions | None = None
        if on.admin_token is not None:
            with on.database.read() as session:
                secret = credentials.key(queries.federation(session).secrets, "sessions")
            self.sessions = Sessions(secret, on.admin_token, on.clock)
        self._devices: tuple[float, queries.DeviceCounts] | None = None
        self.attempts = TokenBuckets(1 / 12, 5, 10_000)
        self.attempts_of_all = TokenBuckets(1.0, 30, 1)

    def devices(self, session: Session, now: float) -> queries.DeviceCounts:
        """Devices by state, at most ``COUNTED_S`` seconds old: counting millions for each look would be a load."""
        found = self._devices
        if found is None or not 0 <= now - found[0] < COUNTED_S:
            found = self._devices = (now, queries.devices(session, now))
        return found[1]


def gate(request: Request, on: On) -> SignInGate:
    """Dependency: the gate of this process.

    Raises:
        NotFound: the dashboard is switched off.
    """
    if _access(on) == "off":
        raise NotFound(
            "The dashboard is switched off.", mend="Start the server with an admin token to see it."
        )
    found: SignInGate | None = getattr(request.app.state, "dashboard_gate", None)
    if found is None:
        found = request.app.state.dashboard_gate = SignInGate(on)
    return found


Gated = Annotated[SignInGate, Depends(gate)]


class _SignInFirst(Exception):
    """The page is for admins: go to the form first."""


def viewer(request: Request, on: On, found: Gated) -> View:
    """Dependency of pages: who looks.

    Raises:
        AdminDisabled: it is open to this machine only, and the request came by another way.
    """
    signed = _signed(request, on, found)
    if signed is None and _access(on) == "admin":
        raise _SignInFirst
    if on.settings.dashboard is None and on.admin_token is None and not _from_this_machine(request):
        raise AdminDisabled(
            "Without an admin token the dashboard is shown to browsers on the server's machine only.",
            mend="Set an admin token (PFL_ADMIN_TOKEN), or choose `--dashboard public`.",
        )
    return View(found.sessions is not None, signed)


def admin_viewer(seen: Annotated[View, Depends(viewer)]) -> View:
    """Dependency of pages for admins.

    Raises:
        AdminDisabled: no admin token is set.
    """
    if seen.admin:
        return seen
    if seen.can_sign_in:
        raise _SignInFirst
    raise AdminDisabled(
        "This needs an admin, and the server has no admin token.",
        mend="Start it with PFL_ADMIN_TOKEN or PFL_ADMIN_TOKEN_FILE.",
    )


def acting(
    request: Request, seen: Annotated[View, Depends(admin_viewer)], csrf: Annotated[str, Form()] = ""
) -> View:
    """Dependency of actions: an admin who sent the form of a page made for this session.

    Raises:
        AdminRequired: the form comes from another page or session.
    """
    refuse_foreign(request)
    if not credentials.same(csrf, seen.csrf):
        raise AdminRequired(
            "The form does not belong to your session.", mend="Open the page again and repeat."
        )
    return seen


Viewer = Annotated[View, Depends(viewer)]
AdminViewer = Annotated[View, Depends(admin_viewer)]
Acting = Annotated[View, Depends(acting)]


def refuse_foreign(request: Request) -> None:
    """Refuse a form that a page of another site sent, as the browser tells.

    Raises:
        AdminRequired: it is.
    """
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("Host")
    if not ours or site not in ("same-origin", "none"):
        raise AdminRequired("The form was sent by another site.", mend="Use the forms of the dashboard.")


def sign_in_form(
    request: Request, found: SignInGate, then: str | None, *, wrong: bool = False, status: int = 200
) -> Response:
    """The sign-in form, with a cookie that ties it to this browser.

    Args:
        request: that is answered.
        found: the gate.
        then: page to go to after signing in.
        wrong: whether to say that the token was wrong.
        status: of the answer.

    Raises:
        AdminDisabled: no admin token is set.
    """
    if found.sessions is None:
        raise AdminDisabled(
            "The server has no admin token, so nobody can sign in.",
            mend="Start it with PFL_ADMIN_TOKEN or PFL_ADMIN_TOKEN_FILE.",
        )
    cookie = found.sessions.new("form", FORM_S)
    form = found.sessions.read("form", cookie)
    assert form is not None
    made = page(
        "sign_in.html",
        status,
        viewer=View(can_sign_in=True),
        path=request.url.path,
        csrf=form.csrf,
        next=safe_next(then),
        wrong=wrong,
    )
    set_cookie(made, request, FORM_COOKIE, cookie, FORM_S)
    return made


def set_cookie(response: Response, request: Request, name: str, value: str, seconds: float) -> None:
    """Set a cookie that scripts do not see, that other sites' requests do not carry, and that TLS keeps secret."""
    response.set_cookie(
        name,
        value,
        max_age=int(seconds),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def start_session(response: Response, request: Request, sessions: Sessions) -> None:
    """Let this browser act as an admin until the session ends."""
    set_cookie(response, request, SESSION_COOKIE, sessions.new("session", SESSION_S), SESSION_S)
    response.delete_cookie(FORM_COOKIE, path="/", httponly=True, samesite="strict")


def safe_next(address: str | None) -> str:
    """Where to go after signing in: a path of this dashboard, never another site."""
    if address and address.startswith("/") and address[1:2] not in ("/", "\\") and address.isprintable():
        return address
    return "/"


def answer(request: Request, seen: View, template: str, /, **values: Any) -> Response:
    """A page for this viewer."""
    return page(template, viewer=seen, path=request.url.path, csrf=seen.csrf, **values)


class HtmlRoute(APIRoute):
    """Answers problems as pages."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with errors turned into pages."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except _SignInFirst:
                return _to_sign_in(request)
            except (Problem, RequestValidationError, HTTPException, PflError) as error:
                return problem_page(request, problem_of(error))

        return handle


def problem_page(request: Request, problem: Problem) -> Response:
    """A problem as a page; it is counted as in the API."""
    request.app.state.services.refusals.count(problem.code)
    made = page(
        "problem.html", problem.status, viewer=View(can_sign_in=False), path=request.url.path, problem=problem
    )
    made.headers.update(problem.headers)
    return made


def _to_sign_in(request: Request) -> Response:
    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method != "GET" or there == "/live" or there.startswith("/live?"):
        there = "/"
    return RedirectResponse(f"/sign-in?next={quote(there, safe='')}", 303)


def _access(on: Services) -> str:
    return on.settings.access("dashboard", admin=on.admin_token is not None)


def _signed(request: Request, on: Services, found: SignInGate) -> Signed | None:
    if found.sessions is None:
        return None
    signed = found.sessions.read("session", request.cookies.get(SESSION_COOKIE))
    if signed is None:
        return None
    with on.database.read() as session:
        return None if session.get(EndedSession, signed.nonce) else signed


def _from_this_machine(request: Request) -> bool:
    """Whether a browser on this machine asks, by a name of this machine: no proxy, no rebound name."""
    if any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP")):
        return False
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    return all(_is_loopback(name) for name in (host, request.client.host if request.client else ""))


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
