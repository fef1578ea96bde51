"""Devices join and leave."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy import or_, select, update

from pfl_mobile.protocol.bodies import BundleId, Challenge, Enrolled, Enrolment
from pfl_server import places
from pfl_server.counting.rate_limits import network
from pfl_server.identity import credentials
from pfl_server.identity.attestation import check_verdict, new_challenge, use_challenge
from pfl_server.identity.devices import DeviceIdentity
from pfl_server.problems import (
    AttestationFailed,
    DeviceRevoked,
    EnrolmentRefused,
    OtherBundle,
    Unauthorized,
    Unavailable,
    UnknownGroup,
)
from pfl_server.services import Services, services
from pfl_server.storage.models import Assignment, EnrolledDevice, EnrolmentToken, Federation
from pfl_server.web.answers import responses
from pfl_server.web.auth import device

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

router = APIRouter(prefix="/v1", tags=["enrolment"])
_Services = Annotated[Services, Depends(services)]
#: States of an assignment in which nothing more happens to it.
_OVER = ("merged", "refused", "declined", "expired", "discarded")


@router.post(
    "/challenges",
    summary="A challenge to bind an attestation to",
    responses=responses(EnrolmentRefused, body=True),
)
def challenge(services: _Services) -> Challenge:
    """Where `attestation` of `GET /v1/federation` lists kinds: a challenge, good for one enrolment until it expires."""
    if services.attestation is None:
        raise EnrolmentRefused("this federation asks for no attestation", mend="enrol without one")
    text, expires = new_challenge(_challenge_key(services), services.clock())
    return Challenge(challenge=text, expires=expires)


@router.post(
    "/devices",
    status_code=201,
    summary="Enrol a device",
    responses=responses(EnrolmentRefused, AttestationFailed, OtherBundle, UnknownGroup, body=True),
)
def enrol(request: Request, body: Enrolment, services: _Services) -> Enrolled:
    """Take part: the answer holds the device's credential, which is told this once."""
    _check_group(services, body.group)
    if services.attestation is not None:
        if body.attestation is None:
            raise AttestationFailed(
                "an attestation is needed",
                mend=f"send one of the kind {' or '.join(services.attestation.kinds)}",
            )
        # before the verifier is asked, so that nobody makes it work with challenges that are not from here; the
        # transaction stays: a challenge is used up also when the verdict is refused
        with services.database.write() as session:
            use_challenge(session, _challenge_key(services), body.attestation.challenge, services.clock())
        check_verdict(services.attestation, body.attestation)
    with services.database.write() as session:
        federation = session.scalar(select(Federation).where(Federation.id == 1).with_for_update())
        if federation is None:
            raise Unavailable(
                "there is no federation here yet", mend="ask again later", headers={"Retry-After": "5"}
            )
        _check_bundle(federation, body.bundle)
        group, source = _take_token(session, services, body, request.client.host if request.client else None)
        new = credentials.new_id()
        credential, digest = credentials.new_credential(new)
        now = services.clock()
        session.add(
            EnrolledDevice(
                id=new,
                index=federation.next_index,
                secret_sha256=digest,
                state="active",
                group=group,
                attestation=body.attestation.kind if body.attestation and services.attestation else "",
                vouched=body.token is not None or services.attestation is not None,
                enrolled=now,
                seen=now,
                source=source,
            )
        )
        federation.next_index += 1
    return Enrolled(device=new, credential=credential)


@router.delete(
    "/devices/me",
    status_code=204,
    summary="Leave the federation",
    responses=responses(Unauthorized, DeviceRevoked),
)
def leave(me: Annotated[DeviceIdentity, Depends(device)], services: _Services) -> None:
    """The credential is good for nothing from now on, and what was kept of the device goes.

    An update that was accepted but not merged yet is still merged: it cannot be told from the others afterwards.
    """
    now = services.clock()
    with services.database.write() as session:
        session.execute(
            update(EnrolledDevice)
            .where(EnrolledDevice.id == me.id)
            .values(
                state="left",
                secret_sha256=_unknown(),
                group="",
                facts={},
                attestation="",
                enrolled=0.0,
                seen=0.0,
                source="",
                asked=0.0,
                invited=-1,
            )
        )
        mine = Assignment.device == me.id
        session.execute(
            update(Assignment)
            .where(mine, Assignment.state == "assigned")
            .values(state="declined", reason="left", finished=now)
        )
        session.execute(update(Assignment).where(mine, Assignment.state.in_(_OVER)).values(device=None))


def _challenge_key(services: Services) -> bytes:
    return credentials.key(services.secrets, "challenges")


def _unknown() -> str:
    """A digest that no secret has been hashed to."""
    return hashlib.sha256(credentials.new_id().encode()).hexdigest()


def _check_group(services: Services, group: str) -> None:
    known = services.runtime.config.groups
    if group and group not in known:
        raise UnknownGroup(
            "the federation has no such group",
            mend=f"use one of: {', '.join(known)}" if known else "send none",
        )


def _check_bundle(federation: Federation, bundle: BundleId) -> None:
    ours = BundleId(
        name=federation.bundle_name, version=federation.bundle_version, fingerprint=federation.fingerprint
    )
    if bundle != ours:
        raise OtherBundle(
            f"this federation trains {ours.name} {ours.version} with fingerprint {ours.fingerprint}",
            mend="get that bundle",
        )


def _take_token(
    session: Session, services: Services, body: Enrolment, address: str | None
) -> tuple[str, str]:
    """Use up one use of the token; the device's group, and the tag of where it comes from."""
    key = credentials.key(services.secrets, "sources")
    if body.token is None:
        if services.settings.enrolment == "open":
            return body.group, places.source(key, "address", network(address))
        raise EnrolmentRefused(
            "an enrolment token is needed", mend="ask the operator of the federation for one"
        )
    token = session.scalar(
        update(EnrolmentToken)
        .where(
            EnrolmentToken.sha256 == credentials.sha256_of(body.token),
            or_(EnrolmentToken.uses_left.is_(None), EnrolmentToken.uses_left > 0),
            or_(EnrolmentToken.expires.is_(None), EnrolmentToken.expires > services.clock()),
        )
        .values(uses_left=EnrolmentToken.uses_left - 1)  # NULL, no limit, stays NULL
        .returning(EnrolmentToken)
    )
    if token is None:
        raise EnrolmentRefused("the enrolment token is unknown, used up or expired", mend="ask for a new one")
    if token.group and body.group and token.group != body.group:
        raise EnrolmentRefused(
            "the enrolment token is for another group", mend=f"enrol as {token.group}, or as none"
        )
    return token.group or body.group, places.source(key, "token", token.id)
