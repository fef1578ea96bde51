"""Templates, and answers that browsers may trust: strict headers on every page."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pfl_server.reports import wording as words

_HERE = Path(__file__).parent
#: Files of the pages by name, with their media types.
STATIC = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}
#: Where the files are that are called ``swagger-ui...``.
_SWAGGER = resources.files("fastapi_offline")
#: Everything comes from this server, nothing is inline, no other site may frame a page or get a form.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


@cache
def _static(name: str) -> bytes:
    place = _SWAGGER if name.startswith("swagger-ui") else _HERE
    return (place / "static" / name).read_bytes()


@cache
def _address(name: str) -> str:
    return f"/static/{name}?v={hashlib.sha256(_static(name)).hexdigest()[:12]}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "count",
        "many",
        "share",
        "duration",
        "moment",
        "iso",
        "size",
        "figure",
        "metric_name",
        "reason",
    ):
        made.filters[name] = getattr(words, name)
    made.filters.update(epsilon=words.epsilon, left=words.epsilon_left, power=words.power)
    made.globals.update(
        static=_address,
        round_states=words.ROUND_STATES,
        device_states=words.DEVICE_STATES,
        actions=words.ACTIONS,
    )
    return made


_TEMPLATES = _environment()


def page(template: str, http_status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page from a template; every value is escaped."""
    text = _TEMPLATES.get_template(template).render(**values)
    return HTMLResponse(text, status_code=http_status, headers=HEADERS)


def docs_page() -> HTMLResponse:
    """The documentation of the API: Swagger UI, from this server alone; its style sheet holds its pictures."""
    found = page("docs.html")
    policy = HEADERS["Content-Security-Policy"]
    found.headers["Content-Security-Policy"] = policy.replace("img-src 'self'", "img-src 'self' data:")
    return found


def static_file(name: str) -> Response | None:
    """A style sheet, script or picture; None when there is none of this name."""
    if name not in STATIC:
        return None
    headers = HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_static(name), media_type=STATIC[name], headers=headers)
