"""Who asks: an admin by the token alone, a device by its credential, and both are remembered for the limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fastapi.security import HTTPAuthorizationCredentials

from pfl_server import problems
from pfl_server.web import auth
from tests.server.basics import ADMIN_TOKEN


class Limits:
    def __init__(self):
        self.valid, self.invalid = [], []

    def seen_valid(self, header):
        self.valid.append(header)

    def seen_invalid(self, header):
        self.invalid.append(header)


def services(token=ADMIN_TOKEN):
    return SimpleNamespace(admin_token=token, limits=Limits(), database=None)


def bearer(text):
    return HTTPAuthorizationCredentials(scheme="Bearer", credentials=text)


def known(monkeypatch, outcome):
    def identify(database, credential):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, credential

    monkeypatch.setattr(auth, "identify", identify)


def test_the_admin_token_is_an_admins_and_no_part_of_it():
    found = services()
    assert auth.admin(bearer(ADMIN_TOKEN), found) == auth.ADMIN
    assert found.limits.valid == [f"Bearer {ADMIN_TOKEN}"]
    for wrong in ("", ADMIN_TOKEN[:-1], ADMIN_TOKEN + "0", ADMIN_TOKEN.upper()):
        with pytest.raises(problems.AdminRequired):
            auth.admin(bearer(wrong), found)
    with pytest.raises(problems.Problem) as caught:
        auth.admin(None, found)
    assert caught.value.status == 401
    assert len(found.limits.valid) == 1


def test_without_an_admin_token_nobody_is_admin():
    for sent in (None, bearer(""), bearer("None"), bearer(ADMIN_TOKEN)):
        with pytest.raises(problems.AdminDisabled):
            auth.admin(sent, services(None))
    assert not auth.is_admin(services(None), "")


def test_a_device_is_known_by_its_credential(monkeypatch):
    known(monkeypatch, "me")
    found = services()
    assert auth.device(bearer("pfl_device_x"), found) == ("me", "pfl_device_x")
    assert found.limits.valid == ["Bearer pfl_device_x"]
    with pytest.raises(problems.Problem) as caught:
        auth.device(None, found)
    assert caught.value.status == 401


def test_a_revoked_credential_counts_as_no_devices_any_more(monkeypatch):
    known(monkeypatch, problems.DeviceRevoked("gone", mend="stop"))
    found = services()
    with pytest.raises(problems.DeviceRevoked):
        auth.device(bearer("pfl_device_x"), found)
    assert (found.limits.valid, found.limits.invalid) == ([], ["Bearer pfl_device_x"])


def test_an_unknown_credential_is_not_remembered_as_valid(monkeypatch):
    known(monkeypatch, problems.unauthorized())
    found = services()
    with pytest.raises(problems.Problem):
        auth.device(bearer("pfl_device_x"), found)
    assert found.limits.valid == []


def test_where_both_may_ask_an_admin_is_no_device(monkeypatch):
    known(monkeypatch, "me")
    assert auth.device_or_admin(bearer(ADMIN_TOKEN), services()) is None
    assert auth.device_or_admin(bearer("pfl_device_x"), services()) == ("me", "pfl_device_x")
    assert auth.device_or_admin(bearer(ADMIN_TOKEN), services(None)) == ("me", ADMIN_TOKEN)
