"""Signing in to the dashboard: a cookie that the server signs, and tokens against forged forms.

The cookie holds when it ends and a random number, signed with a key made of the federation's secret and the admin
token. All processes know it; another admin token ends all sessions. Signing out stores the random number in the
database (``EndedSession``), so that no copy of the cookie works any more, in any process.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from pfl_server.identity import credentials

#: Seconds after which an admin signs in again.
SESSION_S = 8 * 3600.0
#: Seconds that a sign-in form is good for.
FORM_S = 3600.0


@dataclass(frozen=True)
class Signed:
    """What a valid cookie says.

    Attributes:
        nonce: random, of this session or form.
        ends: seconds since 1970.
        csrf: what forms of this session must carry.
    """

    nonce: str
    ends: float
    csrf: str


class Sessions:
    """Makes and checks cookies of one federation.

    Args:
        secret: the federation's key for sessions.
        admin_token: what an admin signs in with.
        clock: seconds since 1970.
    """

    def __init__(self, secret: bytes, admin_token: str, clock: Callable[[], float]) -> None:
        self._key = hmac.digest(secret, admin_token.encode(), "sha256")
        self._digest = credentials.sha256_of(admin_token)
        self._clock = clock

    def is_admin(self, token: str) -> bool:
        """Whether this is the admin token, in a time that does not tell how much of it is right."""
        return credentials.same(credentials.sha256_of(token), self._digest)

    def new(self, kind: str, seconds: float) -> str:
        """A new cookie of a kind (``session`` or ``form``) that ends after some seconds."""
        body = f"{int(self._clock() + seconds)}.{secrets.token_urlsafe(18)}"
        return f"{body}.{self._mac(kind, body)}"

    def read(self, kind: str, cookie: str | None) -> Signed | None:
        """What a cookie says; None when it is missing, forged, of another kind, or over. It may be signed out of."""
        body, _, mac = (cookie or "").rpartition(".")
        if not body or not cookie or not cookie.isascii() or not credentials.same(mac, self._mac(kind, body)):
            return None
        ends, _, nonce = body.partition(".")
        if float(ends) <= self._clock():
            return None
        return Signed(nonce, float(ends), self._mac(f"csrf-{kind}", nonce))

    def _mac(self, purpose: str, text: str) -> str:
        found = hmac.digest(self._key, f"{purpose}:{text}".encode(), "sha256")
        return base64.urlsafe_b64encode(found).decode().rstrip("=")
