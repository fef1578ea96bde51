"""Which device a credential belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from pfl_server.identity import credentials
from pfl_server.problems import DeviceRevoked, unauthorized
from pfl_server.storage.database import Database
from pfl_server.storage.models import EnrolledDevice

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


def identify(database: Database, credential: str) -> DeviceIdentity:
    """The active device that ``credential`` belongs to.

    Raises:
        Unauthorized: it is no device's credential, or its device has left.
        DeviceRevoked: an admin has excluded the device.
    """
    parsed = credentials.parse_credential(credential)
    if parsed is None:
        raise unauthorized()
    device, digest = parsed
    with database.read() as session:
        found = session.execute(  # a label, as `index` of a row is the method of tuples
            select(
                EnrolledDevice.index.label("place"),
                EnrolledDevice.group,
                EnrolledDevice.state,
                EnrolledDevice.secret_sha256,
            ).where(EnrolledDevice.id == device)
        ).one_or_none()
    matches = credentials.same(found.secret_sha256 if found else _NOBODY, digest)
    if found is None or not matches or found.state == "left":
        raise unauthorized()
    if found.state != "active":
        raise DeviceRevoked("this device was excluded from the federation", mend="stop taking part")
    return DeviceIdentity(device, found.place, found.group)
