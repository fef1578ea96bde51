"""The model as it is now, for apps that want the newest shared values alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from pfl_mobile.protocol.bodies import Download, LatestVersion
from pfl_server.problems import DeviceRevoked, Unauthorized
from pfl_server.services import Services, services
from pfl_server.storage.models import Federation, Version
from pfl_server.web.answers import responses
from pfl_server.web.auth import device_or_admin

router = APIRouter(prefix="/v1", tags=["values"])


@router.get(
    "/versions/latest",
    summary="The version that is served",
    responses=responses(Unauthorized, DeviceRevoked),
    dependencies=[Depends(device_or_admin)],
)
def latest(services: Annotated[Services, Depends(services)]) -> LatestVersion:
    """Its number, the shared values as a set to download, and what protects those who trained it."""
    with services.database.read() as session:
        found = session.get_one(Version, session.get_one(Federation, 1).version)
    digest = found.values_sha256
    return LatestVersion(
        version=found.number,
        round=found.round,
        sets={"global": Download(sha256=digest, bytes=found.values_bytes, url=f"/v1/sets/{digest}")},
        privacy=found.privacy,
        created=found.created,
    )
