"""Problems as answers: what FastAPI, the endpoints and the layers around them do with an error."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from pfl_mobile.errors import StorageFullError, UnwritableError
from pfl_mobile.protocol.bodies import PROBLEM_JSON, ProblemBody
from pfl_server import problems
from pfl_server.errors import BlobError, DatabaseError
from pfl_server.problems import Problem, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

log = logging.getLogger("pfl_server")

#: Problems that every endpoint can answer with.
_EVERYWHERE = (problems.InvalidRequest, problems.RateLimited, problems.Unavailable, problems.Internal)
_WITH_BODY = (problems.BodyTooLarge, problems.BodyTooSlow, problems.BadRequest)
#: Failures of what lies behind the aggregator.
_STORAGE = (DatabaseError, BlobError, StorageFullError, UnwritableError)
#: Seconds after which a client may ask again when something behind the aggregator failed.
_RETRY_S = "5"
_SHOWN_ERRORS = 8


def responses(*kinds: type[Problem], body: bool = False) -> dict[int | str, dict[str, Any]]:
    """What ``responses=`` of an endpoint says about problems: those given, and those that every endpoint has.

    Args:
        kinds: problems of this endpoint.
        body: whether it takes a body.
    """
    by_status: dict[int, list[type[Problem]]] = {}
    for kind in (*kinds, *_EVERYWHERE, *(_WITH_BODY if body else ())):
        if kind not in by_status.setdefault(kind.status, []):
            by_status[kind.status].append(kind)
    found: dict[int | str, dict[str, Any]] = {}
    for status, several in sorted(by_status.items()):
        entry: dict[str, Any] = {
            "description": "; ".join(f"`{k.code}`: {k.title}" for k in several),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        if status in (429, 503):
            entry["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
        if status == 401:
            entry["headers"] = {
                "WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}
            }
        found[status] = entry
    return found


#: The schema that `responses` refers to; the app adds it to its OpenAPI document.
PROBLEM_SCHEMA = ProblemBody.model_json_schema() | {"additionalProperties": True}


def respond(request: Request, problem: Problem, instance: str | None = None) -> Response:
    """The answer with a problem; it is counted.

    A round number in ``request.state.round`` is what it is counted under.
    """
    number = getattr(request.state, "round", None)
    request.app.state.services.refusals.count(problem.code, number)
    content, headers = encode(problem, instance)
    return Response(content, problem.status, headers, media_type=PROBLEM_JSON)


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an error; what was not foreseen is logged under an id that the answer names."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, Problem):  # FastAPI wraps what reading the body raises
            return error.__cause__
        return _of_status(error.status_code, error.headers or {})
    if isinstance(error, _STORAGE):
        log.error("%s: %s", type(error).__name__, error.message)
        return problems.Unavailable(
            "storage behind the aggregator failed", mend="try again later", headers={"Retry-After": _RETRY_S}
        )
    number = secrets.token_hex(8)
    log.error("unforeseen error", extra={"error_id": number}, exc_info=error)
    return problems.Internal(
        "something went wrong in the aggregator",
        mend=f"try again later; its operator finds the cause in the logs under {number}",
        extra={"error_id": number},
    )


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the endpoints with a problem."""

    async def handle(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if isinstance(problem, problems.MethodNotAllowed):
            allowed = _allowed(app, request.url.path) or problem.headers.get("Allow", "")
            problem = problems.MethodNotAllowed(
                problem.detail, mend=f"use {allowed}", headers={"Allow": allowed}
            )
        return respond(request, problem)

    for kind in (Problem, RequestValidationError, HTTPException, *_STORAGE):
        app.add_exception_handler(kind, handle)


def _allowed(app: FastAPI, path: str) -> str:
    """The methods of an address: of all endpoints there, where the framework knows those of the first only."""
    for pattern, methods in app.openapi()["paths"].items():
        if compile_path(pattern)[0].match(path):
            return ", ".join(sorted(name.upper() for name in methods))
    return ""


def _invalid(error: RequestValidationError) -> Problem:
    """Where the request breaks the schema; its values are not repeated."""
    found = [
        {"where": ".".join(str(part) for part in e["loc"])[:200], "what": str(e["msg"])[:200]}
        for e in error.errors()[:_SHOWN_ERRORS]
    ]
    first = found[0] if found else {"where": "request", "what": "invalid"}
    return problems.InvalidRequest(
        f"{first['where']}: {first['what']}", mend="see /openapi.json", extra={"errors": found}
    )


def _of_status(status: int, headers: Mapping[str, str]) -> Problem:
    kept = {name.title(): value for name, value in headers.items()}
    if status == HTTPStatus.NOT_FOUND:
        return problems.NotFound("there is nothing at this address", mend="see /openapi.json", headers=kept)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return problems.MethodNotAllowed(
            "this address does not take that method", mend="use another", headers=kept
        )
    return problems.BadRequest("the request cannot be read", mend="send HTTP and JSON as in /openapi.json")
