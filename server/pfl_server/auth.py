"""Who asks: a device by its credential, an admin by the admin token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select

from pfl_server import credentials
from pfl_server.problems import AdminDisabled, AdminRequired, DeviceRevoked, Problem, Unauthorized
from pfl_server.services import Services, services
from pfl_server.storage.models import Device

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
#: The admin token, if one was sent.
AdminBearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_admin_scheme)]
_Services = Annotated[Services, Depends(services)]
#: Compared with for devices that are not there, so that these take as long.
_NOBODY = "0" * 64


@dataclass(frozen=True)
class DeviceIdentity:
    """A device whose credential was checked.

    Attributes:
        id: 32 hex digits.
        index: place in the population.
        group: name; empty for none.
    """

    id: str
    index: int
    group: str


def identify(services: Services, credential: str) -> DeviceIdentity:
    """The active device that ``credential`` belongs to.

    Raises:
        Unauthorized: it is no device's credential, or its device has left.
        DeviceRevoked: an admin has excluded the device.
    """
    parsed = credentials.parse_credential(credential)
    if parsed is None:
        raise _unauthorized()
    device, digest = parsed
    with services.database.read() as session:
        found = session.execute(  # a label, as `index` of a row is the method of tuples
            select(Device.index.label("place"), Device.group, Device.state, Device.secret_sha256).where(
                Device.id == device
            )
        ).one_or_none()
    matches = credentials.same(found.secret_sha256 if found else _NOBODY, digest)
    if found is None or not matches or found.state == "left":
        raise _unauthorized()
    if found.state != "active":
        services.limits.seen_invalid(f"Bearer {credential}")
        raise DeviceRevoked("this device was excluded from the federation", mend="stop taking part")
    services.limits.seen_valid(f"Bearer {credential}")
    return DeviceIdentity(device, found.place, found.group)


def device(bearer: _DeviceBearer, services: _Services) -> DeviceIdentity:
    """Dependency of endpoints for devices; see `identify`."""
    if bearer is None:
        raise _unauthorized()
    return identify(services, bearer.credentials)


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
        raise _unauthorized("admin")
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


def _unauthorized(whose: str = "device") -> Problem:
    return Unauthorized(
        f"there is no valid {whose} credential with the request",
        mend="enrol, and send the credential as Authorization: Bearer ..."
        if whose == "device"
        else "send the admin token as Authorization: Bearer ...",
        headers={"WWW-Authenticate": "Bearer"},
    )
