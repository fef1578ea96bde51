"""What a federation is, for who wants to take part."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends
from sqlalchemy import select

from pfl_mobile.protocol.bodies import BundleId, FederationInfo
from pfl_server.problems import Unavailable
from pfl_server.services import Services, services
from pfl_server.storage.models import Federation, Version
from pfl_server.web.answers import responses

router = APIRouter(prefix="/v1", tags=["federation"])


@router.get("/federation", summary="What this federation trains, and how to take part", responses=responses())
def federation(services: Annotated[Services, Depends(services)]) -> FederationInfo:
    """Which bundle is trained, how devices enrol, and what protects their updates. Needs no credential."""
    with services.database.read() as session:
        row = session.get(Federation, 1)
        if row is None:
            raise Unavailable(
                "there is no federation here yet", mend="ask again later", headers={"Retry-After": "5"}
            )
        privacy = session.scalar(select(Version.privacy).where(Version.number == row.version))
    return FederationInfo(
        server=services.settings.name,
        bundle=BundleId(name=row.bundle_name, version=row.bundle_version, fingerprint=row.fingerprint),
        enrolment=services.settings.enrolment,
        attestation=services.attestation.kinds if services.attestation else (),
        privacy=privacy or {},
        groups=services.runtime.config.groups,
        max_update_bytes=services.runtime.max_update_bytes,
        state=cast("Literal['running', 'paused', 'finished', 'spent']", row.state),
    )
