"""The application: endpoints, the layers around them, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from pfl_mobile.errors import PflError
from pfl_server import dashboard
from pfl_server.counting.refusals import FLUSH_S
from pfl_server.uploads.path import UploadPath
from pfl_server.web.answers import PROBLEM_SCHEMA, add_handlers
from pfl_server.web.api import admin, check_in, enrolment, federation, health, sets, tasks, versions
from pfl_server.web.middleware import Observe, RequestGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Lifespan

    from pfl_server.services import Services

log = logging.getLogger("pfl_server")

#: The endpoints, in the order of the documentation.
ROUTERS = (
    federation.router,
    enrolment.router,
    check_in.router,
    sets.router,
    tasks.router,
    versions.router,
    admin.router,
    health.router,
)

_TEXT = """Federated training of on-device models: devices enrol, check in, train on their own data, and upload clipped
updates of the shared tensors, which are merged with privacy that is accounted for.

Errors are RFC 9457 problems (`application/problem+json`); their `code` is stable. `server/PROTOCOL.md` says what the
fields mean and in which order things happen."""


def create_app(services: Services, *, coordinate: bool = True) -> FastAPI:
    """The ASGI application on ``services``, which it closes when it ends.

    Args:
        services: opened.
        coordinate: whether this process may open, close and merge rounds.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with _beside(services, coordinate=coordinate):
            yield
        await run_in_threadpool(services.close)

    app = _documented(lifespan)
    app.state.services = services
    app.state.upload_path = UploadPath(services)
    add_handlers(app)
    dashboard.mount(app)
    # the one added last is outside
    app.add_middleware(RequestGuard, services=services)
    app.add_middleware(Observe, services=services)
    return app


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of the aggregator, without a server."""
    return _documented().openapi()


def _documented(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    app = FastAPI(
        title="pfl-mobile aggregator",
        version="1",
        description=_TEXT,
        lifespan=lifespan,
        openapi_tags=_TAGS,
        docs_url=None,  # the dashboard has that page: the framework's loads scripts of other sites
        redoc_url=None,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


_TAGS = [
    {"name": "federation", "description": "What is trained."},
    {"name": "enrolment", "description": "Devices join and leave."},
    {"name": "rounds", "description": "Check-in, tasks and uploads."},
    {"name": "values", "description": "Sets of tensors and model versions."},
    {"name": "admin", "description": "For the operator of the federation."},
    {"name": "operations", "description": "For the machines around the server."},
]


@contextlib.asynccontextmanager
async def _beside(services: Services, *, coordinate: bool) -> AsyncIterator[None]:
    """The coordinator, and the writing of what is counted, while the application runs."""
    coordinator = None
    if coordinate:
        from pfl_server.rounds.coordinator import Coordinator

        coordinator = Coordinator(services)
        coordinator.start()
    flushing = asyncio.create_task(_flush_for_ever(services))
    try:
        yield
    finally:
        flushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flushing
        if coordinator is not None:
            await run_in_threadpool(coordinator.stop, services.settings.shutdown_s)


async def _flush_for_ever(services: Services) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        try:
            await run_in_threadpool(services.refusals.flush)
        except PflError as error:  # counted again with the next flush
            log.error("refusals could not be counted: %s", error.message)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        schema.setdefault("components", {}).setdefault("schemas", {})["ProblemBody"] = PROBLEM_SCHEMA
        app.openapi_schema = schema
    return app.openapi_schema
