"""Attestation: the hook where the verdicts of Play Integrity, App Attest and the like are checked.

pfl-mobile has no verifier of its own: each needs its platform's keys and the app's identity. An operator writes a class
with `AttestationVerifier`'s members and names it with ``--attestation module:object``.

A challenge is a random nonce with its expiry, signed by a key of the federation, so that giving it out writes
nothing. It is good for one enrolment: the nonces that were answered are kept until they expire.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import importlib
import inspect
import logging
import secrets
import struct
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError

from pfl_mobile.errors import ConfigError, UserCodeError
from pfl_server.problems import AttestationFailed, Unavailable
from pfl_server.storage.models import UsedChallenge

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import Attestation

log = logging.getLogger("pfl_server")

#: Seconds that a challenge is good for.
CHALLENGE_S = 300.0
_NONCE, _SIGNATURE = 16, 32


@runtime_checkable
class AttestationVerifier(Protocol):
    """Checks verdicts of a platform.

    Attributes:
        kinds: the kinds that are accepted, for instance ``("play-integrity", "app-attest")``.
    """

    kinds: tuple[str, ...]

    def verify(self, kind: str, challenge: str, verdict: str) -> bool:
        """Whether ``verdict`` is genuine, for this app, and bound to ``challenge``.

        Called in a worker thread; may ask the platform's servers. An exception refuses the device and is logged.
        """
        ...


def load_verifier(name: str) -> AttestationVerifier:
    """The verifier that ``module:object`` names; a class or function there is called without arguments.

    Raises:
        ConfigError: the name has another form, or what it names is no verifier and makes none.
        UserCodeError: its module cannot be imported, or making it failed.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(f"{name!r} does not name a verifier", mend="use --attestation module:object")
    none = ConfigError(
        f"{name} is no attestation verifier",
        mend="give it `kinds` and `verify(kind, challenge, verdict)`; a class or function is called without arguments",
    )
    try:
        found: Any = getattr(importlib.import_module(module), attribute, None)
        make = isinstance(found, type) or (callable(found) and not hasattr(found, "verify"))
        if make and not _takes_nothing(found):
            raise none
        made = found() if make else found
    except ConfigError:
        raise
    except Exception as error:
        # the traceback that is shown with a cause helps with code that fails, not with a name that is wrong
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        raise UserCodeError(
            f"the attestation verifier {name} cannot be loaded: {type(error).__name__}: {error}",
            mend="correct the module, or put it on PYTHONPATH",
        ) from (None if absent else error)
    if not isinstance(made, AttestationVerifier) or not made.kinds:
        raise none
    return made


def _takes_nothing(found: Any) -> bool:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some built-in ones do not tell
        return False
    try:
        signature.bind()
    except TypeError:
        return False
    return True


def new_challenge(key: bytes, now: float) -> tuple[str, float]:
    """A challenge and when it expires, seconds since 1970."""
    expires = now + CHALLENGE_S
    content = secrets.token_bytes(_NONCE) + struct.pack(">d", expires)
    return base64.urlsafe_b64encode(content + hmac.digest(key, content, "sha256")).decode().rstrip(
        "="
    ), expires


def use_challenge(session: Session, key: bytes, challenge: str, now: float) -> None:
    """Check a challenge and mark it as used, in the transaction of ``session``.

    Raises:
        AttestationFailed: it is not from here, it has expired, or it was used before.
    """
    nonce, expires = _opened(key, challenge)
    if expires <= now:
        raise AttestationFailed("the challenge has expired", mend="ask for a new one")
    session.execute(delete(UsedChallenge).where(UsedChallenge.expires <= now))
    try:
        with session.begin_nested():
            session.execute(insert(UsedChallenge).values(nonce=nonce, expires=expires))
    except IntegrityError as error:
        raise AttestationFailed("the challenge was used before", mend="ask for a new one") from error


def check_verdict(verifier: AttestationVerifier, given: Attestation) -> None:
    """Have a verdict checked.

    Raises:
        AttestationFailed: its kind is not accepted, or the verifier refuses it.
        Unavailable: the verifier failed.
    """
    if given.kind not in verifier.kinds:
        raise AttestationFailed(
            "this kind of attestation is not accepted", mend=f"use {' or '.join(verifier.kinds)}"
        )
    try:
        accepted = verifier.verify(given.kind, given.challenge, given.verdict)
    except Exception as error:  # whatever the operator's code raises, the device is not let in
        log.exception("the attestation verifier failed")
        raise Unavailable(
            "the attestation cannot be checked now", mend="enrol again later", headers={"Retry-After": "60"}
        ) from error
    if accepted is not True:
        raise AttestationFailed("the verdict is not accepted", mend="attest again with a new challenge")


def _opened(key: bytes, challenge: str) -> tuple[str, float]:
    try:
        raw = base64.b64decode(challenge + "=" * (-len(challenge) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    content, signature = raw[:-_SIGNATURE], raw[-_SIGNATURE:]
    if len(content) != _NONCE + 8 or not hmac.compare_digest(hmac.digest(key, content, "sha256"), signature):
        raise AttestationFailed("the challenge is not from this federation", mend="ask for a new one")
    return content[:_NONCE].hex(), struct.unpack(">d", content[_NONCE:])[0]
