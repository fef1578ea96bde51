"""Who asks: a device by its credential, an admin by the admin token."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pfl_server.identity import credentials
from pfl_server.identity.devices import DeviceIdentity, identify
from pfl_server.problems import (
    AdminDisabled,
    AdminRequired,
    DeviceRevoked,
    unauthorized,
)
from pfl_server.services import Services, services

#: Name of an admin in the audit log.
ADMIN = "admin"

_device_scheme = HTTPBearer(
    scheme_name="device", auto_error=False, description="The credential that the device got when it enrolled."
)
_admin_scheme = HTTPBearer(
    scheme_name="admin", auto_error=False, description="The admin token of the server."
)
_DeviceBearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_device_scheme)]
#: The admin token, if one was sent.
AdminBearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_admin_scheme)]
_Services = Annotated[Services, Depends(services)]


def device(bearer: _DeviceBearer, services: _Services) -> DeviceIdentity:
    """Dependency of endpoints for devices; see `identify`."""
    if bearer is None:
        raise unauthorized()
    sent = f"Bearer {bearer.credentials}"
    try:
        found = identify(services.database, bearer.credentials)
    except DeviceRevoked:
        services.limits.seen_invalid(sent)
        raise
    services.limits.seen_valid(sent)
    return found


def is_admin(services: Services, token: str) -> bool:
    """Whether ``token`` is the admin token; False where none is set up."""
    expected = services.admin_token
    return expected is not None and credentials.same(expected, token)


def admin(bearer: AdminBearer, services: _Services) -> str:
    """Dependency of endpoints for admins: the actor's name for the audit log.

    Raises:
        AdminDisabled: the server was started without an admin token.
        Unauthorized: there is no token.
        AdminRequired: it is another.
    """
    if services.admin_token is None:
        raise AdminDisabled(
            "this server has no admin token",
            mend=f"start it with {credentials.ADMIN_TOKEN} or {credentials.ADMIN_TOKEN_FILE}",
        )
    if bearer is None:
        raise unauthorized("admin")
    if not is_admin(services, bearer.credentials):
        raise AdminRequired("this needs the admin token", mend="send it as Authorization: Bearer ...")
    services.limits.seen_valid(f"Bearer {bearer.credentials}")
    return ADMIN


def device_or_admin(bearer: _DeviceBearer, services: _Services) -> DeviceIdentity | None:
    """Dependency of endpoints for both: the device, or None for an admin."""
    if bearer is not None and is_admin(services, bearer.credentials):
        services.limits.seen_valid(f"Bearer {bearer.credentials}")
        return None
    return device(bearer, services)
