"""Devices ask for work."""

from __future__ import annotations

from math import ceil
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from pfl_mobile.protocol.bodies import CheckedIn, CheckIn
from pfl_server.identity.devices import DeviceIdentity
from pfl_server.problems import DeviceRevoked, OtherBundle, Unauthorized
from pfl_server.rounds.check_in import check_in as answer
from pfl_server.services import Services, services
from pfl_server.web.answers import responses
from pfl_server.web.auth import device

router = APIRouter(prefix="/v1", tags=["rounds"])


@router.post(
    "/check-in",
    summary="Ask for a task",
    responses=responses(Unauthorized, DeviceRevoked, OtherBundle, body=True),
)
def check_in(
    body: CheckIn,
    response: Response,
    me: Annotated[DeviceIdentity, Depends(device)],
    services: Annotated[Services, Depends(services)],
) -> CheckedIn:
    """`task`: what to do, until it expires; who asks again before gets the same. `wait`: ask again after
    `retry_after_s`, which is also the header `Retry-After`. `done`: the federation trains no more.
    """
    found = answer(services, me, body)
    if found.retry_after_s is not None:
        response.headers["Retry-After"] = str(ceil(found.retry_after_s))
    return found
