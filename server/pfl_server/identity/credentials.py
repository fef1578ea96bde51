"""Keys, credentials and tokens: how they are made, told apart and compared.

Of what a client holds, the database keeps the SHA-256 only. Credentials and tokens are 256 random bits, so a plain
hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from typing import TYPE_CHECKING, Any

from pfl_mobile.files.reading import read_text
from pfl_server.errors import SecretError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Characters that an admin token must have at least.
MIN_ADMIN_TOKEN = 32
#: Where the admin token comes from: the token itself, or the path of a file with it.
ADMIN_TOKEN, ADMIN_TOKEN_FILE = "PFL_ADMIN_TOKEN", "PFL_ADMIN_TOKEN_FILE"

_CREDENTIAL = re.compile(r"pfl_device_([0-9a-f]{32})_([0-9a-f]{64})")
#: What logs must never hold; see `logs.py`.
SECRET_PATTERN = re.compile(r"pfl_(device|enrol|admin)_[0-9A-Za-z_-]+")


def new_secrets() -> dict[str, str]:
    """What ``Federation.secrets`` holds from the first start on: one master key, from which `key` derives others."""
    return {"master": base64.b64encode(secrets.token_bytes(32)).decode()}


def key(stored: Mapping[str, Any], purpose: str) -> bytes:
    """The 32-byte key of a federation for one purpose (``"challenges"``, ``"sessions"``, ``"selection"``).

    Args:
        stored: ``Federation.secrets``.
        purpose: keys of different purposes say nothing about each other (HMAC-SHA-256 of the master key).
    """
    return hmac.digest(base64.b64decode(stored["master"]), b"pfl-mobile:" + purpose.encode(), "sha256")


def new_id() -> str:
    """A random id of 32 hex digits."""
    return secrets.token_hex(16)


def new_credential(device: str) -> tuple[str, str]:
    """A device's credential, and the SHA-256 of its secret part, in hex."""
    secret = secrets.token_hex(32)
    return f"pfl_device_{device}_{secret}", sha256_of(secret)


def parse_credential(text: str) -> tuple[str, str] | None:
    """Device id and SHA-256 of the secret; None when ``text`` is no device's credential."""
    found = _CREDENTIAL.fullmatch(text)
    return (found[1], sha256_of(found[2])) if found else None


def new_enrolment_token() -> tuple[str, str]:
    """A token to enrol with, and its SHA-256 in hex."""
    token = "pfl_enrol_" + secrets.token_hex(32)
    return token, sha256_of(token)


def new_admin_token() -> str:
    """A token that `admin_token` accepts."""
    return "pfl_admin_" + secrets.token_hex(32)


def sha256_of(text: str) -> str:
    """SHA-256 of a text in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def admin_token(environment: Mapping[str, str] | None = None) -> str | None:
    """The admin token from the environment; None where none is set.

    Raises:
        SecretError: it is shorter than `MIN_ADMIN_TOKEN` or has spaces, its file cannot be read, or both are set.
    """
    found = os.environ if environment is None else environment
    token, file = found.get(ADMIN_TOKEN), found.get(ADMIN_TOKEN_FILE)
    if token is not None and file is not None:
        raise SecretError(f"{ADMIN_TOKEN} and {ADMIN_TOKEN_FILE} are both set", mend="set one of them")
    if file is not None:
        try:
            token = read_text(file).strip()
        except (OSError, ValueError) as error:
            raise SecretError(
                f"the file of {ADMIN_TOKEN_FILE} cannot be read: {error}",
                mend="check the path and its permissions",
            ) from error
    if token is None:
        return None
    if len(token) < MIN_ADMIN_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise SecretError(
            f"the admin token has {len(token)} characters; it needs at least {MIN_ADMIN_TOKEN}, without spaces",
            mend="make one with: openssl rand -hex 32",
        )
    return token
