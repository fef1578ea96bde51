"""Whether the server is alive and ready, and its metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from pfl_server.counting.metrics import CONTENT_TYPE
from pfl_server.problems import AdminDisabled, AdminRequired, Unauthorized
from pfl_server.services import Services, services
from pfl_server.storage.space import check_space
from pfl_server.web.answers import responses
from pfl_server.web.auth import AdminBearer, admin

router = APIRouter(tags=["operations"])
_Services = Annotated[Services, Depends(services)]
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


class Health(BaseModel):
    """``ok``."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Whether the process is alive", responses=responses())
async def alive() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", summary="Whether the server can serve", responses=responses())
def ready(services: _Services) -> Health:
    """Whether storage can be read and written, has the right tables and space left, and rounds go on.

    Of several processes, those answer that rounds fail which tried.
    """
    services.database.check()
    services.blobs.check()
    for folder in {services.blobs.scratch, services.settings.data}:
        if folder.exists():  # the data folder is not made where database and files lie elsewhere
            check_space(folder)
    services.trouble.check()
    return Health()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses=_TEXT | responses(Unauthorized, AdminRequired, AdminDisabled),
)
def metrics(services: _Services, bearer: AdminBearer) -> Response:
    """Of all processes of this server. Needs the admin token, unless the operator made them public."""
    access = services.settings.access("metrics", admin=services.admin_token is not None)
    if access == "off":
        raise AdminDisabled("this server shows no metrics", mend="start it with --metrics or an admin token")
    if access == "admin":
        admin(bearer, services)
    return Response(services.metrics.render(services.database), media_type=CONTENT_TYPE)
