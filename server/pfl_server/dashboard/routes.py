"""The pages of the dashboard. Who may see them is decided in ``access.py``; what admins do, in ``forms.py``."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from pfl_server.dashboard import views
from pfl_server.dashboard.access import AdminViewer, Gated, HtmlRoute, On, View, Viewer, answer, sign_in_form
from pfl_server.dashboard.html import docs_page, static_file
from pfl_server.problems import NotFound
from pfl_server.reports import queries
from pfl_server.reports.budget import budget_of
from pfl_server.reports.status import status
from pfl_server.rounds.admin_actions import NewToken, is_kept
from pfl_server.storage.federation_row import ACTIVE
from pfl_server.web.downloads import tensors_response
from pfl_server.web.parameters import Number

router = APIRouter(route_class=HtmlRoute, include_in_schema=False)

Before = Annotated[int | None, Query(ge=0, le=2**31 - 1)]
_ID = re.compile(r"[0-9a-f]{32}")


@router.get("/")
def overview(request: Request, on: On, found: Gated, viewer: Viewer, metric: str | None = None) -> Response:
    """The state of the federation on one page."""
    return answer(request, viewer, "overview.html", **_live(on, found, metric))


@router.get("/live")
def live(request: Request, on: On, found: Gated, viewer: Viewer, metric: str | None = None) -> Response:
    """The part of the overview that changes, for the script that refreshes it."""
    return answer(request, viewer, "_live.html", **_live(on, found, metric))


def _live(on: On, gate: Gated, metric: str | None) -> dict[str, object]:
    now = on.clock()
    config = on.runtime.config
    with on.database.read() as session:
        found = status(session, config, now)
        newest = found.round.number if found.round else None
        seen = views.overview(session, config, metric, newest)
        devices = gate.devices(session, now)
        versions = queries.versions(session, limit=5)
    return {
        "now": now,
        "status": found,
        "seen": seen,
        "devices": devices,
        "device_rows": views.device_rows(devices),
        "funnel": views.funnel_rows(found.funnel, over=found.over),
        "lost_rows": views.lost_rows(found.funnel),
        "last_funnel": views.funnel_rows(seen.last.funnel, over=True) if seen.last else [],
        "last_lost": views.lost_rows(seen.last.funnel) if seen.last else [],
        "problems": views.problem_rows(found.problems),
        "outside": views.problem_rows(found.outside),
        "budget_bar": views.budget_bar(found.budget),
        "versions": versions,
        "min_devices": config.evaluation.min_devices,
    }


@router.get("/rounds")
def rounds(request: Request, on: On, viewer: Viewer, before: Before = None) -> Response:
    """The list of rounds."""
    with on.database.read() as session:
        rows = queries.rounds(session, before, queries.PAGE + 1)
    more = rows[queries.PAGE - 1].round.number if len(rows) > queries.PAGE else None
    return answer(
        request, viewer, "rounds.html", now=on.clock(), rows=rows[: queries.PAGE], next=more, before=before
    )


@router.get("/rounds/{number}")
def one_round(request: Request, on: On, viewer: Viewer, number: Number) -> Response:
    """One round: what came of its devices, and of its merge."""
    with on.database.read() as session:
        found = queries.round_of(session, number)
        if found is None:
            raise NotFound(f"There is no round {number}.", mend="The list of rounds has all there are.")
        funnel = queries.funnel(session, number)
        problems = queries.refusals_of(session, number)
    min_devices = on.runtime.config.evaluation.min_devices
    return answer(
        request,
        viewer,
        "round.html",
        now=on.clock(),
        round=found,
        over=found.state not in ACTIVE,
        funnel=funnel,
        rows=views.funnel_rows(funnel, over=found.state not in ACTIVE),
        lost_rows=views.lost_rows(funnel),
        problems=views.problem_rows(problems),
        summary=views.merge_rows(found.summary, raw=viewer.admin or on.settings.dashboard != "public")
        if funnel.merged >= min_devices
        else [],
        min_devices=min_devices,
    )


@router.get("/versions")
def versions(request: Request, on: On, viewer: Viewer, before: Before = None) -> Response:
    """The list of model versions."""
    with on.database.read() as session:
        rows = queries.versions(session, before, queries.PAGE + 1)
        served = queries.federation(session).version
        newest = queries.newest_version(session).number
    more = rows[queries.PAGE - 1].number if len(rows) > queries.PAGE else None
    kept = {row.number for row in rows if is_kept(on.runtime.config, row.number, newest)}
    return answer(
        request,
        viewer,
        "versions.html",
        now=on.clock(),
        rows=rows[: queries.PAGE],
        served=served,
        kept=kept,
        next=more,
        before=before,
    )


@router.get("/versions/{number}/tensors")
def tensors(on: On, _: AdminViewer, number: Number) -> Response:
    """Download the shared values of a version."""
    with on.database.read() as session:
        found = queries.version(session, number)
    if found is None:
        raise NotFound(f"There is no version {number}.", mend="The list of versions has all there are.")
    return tensors_response(on, found, None)


@router.get("/versions/{number}/roll-back")
def ask_roll_back(request: Request, on: On, viewer: AdminViewer, number: Number) -> Response:
    """What a roll-back does, and the form that does it."""
    with on.database.read() as session:
        found = queries.version(session, number)
        served = queries.federation(session).version
        newest = queries.newest_round(session)
    if found is None:
        raise NotFound(f"There is no version {number}.", mend="The list of versions has all there are.")
    unmerged = newest if newest and newest.state in ACTIVE else None
    return answer(
        request, viewer, "roll_back.html", now=on.clock(), version=found, served=served, round=unmerged
    )


@router.get("/privacy")
def privacy(request: Request, on: On, viewer: Viewer) -> Response:
    """The privacy budget, what it assumes, and the ledger."""
    with on.database.read() as session:
        budget = budget_of(queries.newest_version(session), on.runtime.config)
        entries = queries.ledger(session, limit=views.LEDGER_SHOWN)
    return answer(
        request,
        viewer,
        "privacy.html",
        now=on.clock(),
        budget=budget,
        budget_bar=views.budget_bar(budget),
        chart=views.epsilon_chart(entries, budget),
        entries=entries[: queries.PAGE],
    )


@router.get("/devices")
def devices(request: Request, on: On, gate: Gated, viewer: Viewer, device: str = "") -> Response:
    """Devices by state; for admins, one device by its id."""
    wanted = device.strip().lower() if viewer.admin else ""
    with on.database.read() as session:
        found = queries.devices(session, on.clock()) if viewer.admin else gate.devices(session, on.clock())
        one = queries.device(session, wanted) if _ID.fullmatch(wanted) else None
        tasks = queries.tasks_of(session, one.id) if one else []
    return answer(
        request,
        viewer,
        "devices.html",
        now=on.clock(),
        devices=found,
        rows=views.device_rows(found),
        wanted=wanted,
        device=one,
        tasks=tasks,
    )


@router.get("/tokens")
def tokens(
    request: Request, on: On, viewer: AdminViewer, offset: Annotated[int, Query(ge=0, le=10**6)] = 0
) -> Response:
    """Enrolment tokens."""
    return tokens_page(request, viewer, on, offset)


def tokens_page(
    request: Request, viewer: View, on: On, offset: int = 0, made: NewToken | None = None
) -> Response:
    """The page of enrolment tokens; ``made`` is one to show this once."""
    with on.database.read() as session:
        rows = queries.tokens(session, offset, queries.PAGE + 1)
    return answer(
        request,
        viewer,
        "tokens.html",
        now=on.clock(),
        rows=rows[: queries.PAGE],
        next=offset + queries.PAGE if len(rows) > queries.PAGE else None,
        groups=on.runtime.config.groups,
        enrolment=on.settings.enrolment,
        made=made,
    )


@router.get("/audit")
def audit(
    request: Request,
    on: On,
    viewer: AdminViewer,
    before: Annotated[int | None, Query(ge=0, le=2**53 - 1)] = None,
) -> Response:
    """What admins did."""
    with on.database.read() as session:
        rows = queries.audit(session, before, queries.PAGE + 1)
    more = rows[queries.PAGE - 1].id if len(rows) > queries.PAGE else None
    return answer(
        request, viewer, "audit.html", now=on.clock(), rows=rows[: queries.PAGE], next=more, before=before
    )


@router.get("/sign-in")
def ask_sign_in(request: Request, found: Gated, next: str = "/") -> Response:  # noqa: A002 (name of the parameter)
    """The sign-in form."""
    return sign_in_form(request, found, next)


@router.get("/docs")
def docs() -> Response:
    """The documentation of the API, for everybody, as the document itself is."""
    return docs_page()


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style sheet, script, icon."""
    found = static_file(name)
    if found is None:
        raise NotFound("There is no such file.", mend="Go back to the overview.")
    return found
