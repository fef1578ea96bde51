"""Credentials and tokens: what is kept of them, what is taken for one, where the admin's comes from."""

from __future__ import annotations

import pytest

from pfl_server.errors import SecretError
from pfl_server.identity import credentials
from pfl_server.identity.credentials import ADMIN_TOKEN, ADMIN_TOKEN_FILE, admin_token

GOOD = "pfl_admin_" + "0" * 64


def test_a_credential_names_its_device_and_its_secret_is_kept_as_a_digest():
    device = credentials.new_id()
    text, digest = credentials.new_credential(device)
    assert credentials.parse_credential(text) == (device, digest)
    assert digest not in text
    assert credentials.new_credential(device)[0] != text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "0",
        lambda text: text + "\n",
        lambda text: text.upper(),
        lambda text: text.replace("device", "admin"),
        lambda text: " " + text,
    ],
)
def test_what_is_no_credential_is_none(change):
    text, _ = credentials.new_credential(credentials.new_id())
    assert credentials.parse_credential(change(text)) is None


def test_keys_of_different_purposes_and_federations_differ():
    one, other = credentials.new_secrets(), credentials.new_secrets()
    keys = {credentials.key(s, p) for s in (one, other) for p in ("sessions", "challenges")}
    assert len(keys) == 4
    assert {len(k) for k in keys} == {32}
    assert credentials.key(one, "sessions") == credentials.key(dict(one), "sessions")


def test_the_admin_token_comes_from_the_environment_or_a_file(tmp_path):
    assert admin_token({}) is None
    assert admin_token({ADMIN_TOKEN: GOOD}) == GOOD
    (tmp_path / "token").write_text(GOOD + "\n")
    assert admin_token({ADMIN_TOKEN_FILE: str(tmp_path / "token")}) == GOOD
    assert admin_token({ADMIN_TOKEN: credentials.new_admin_token()})


@pytest.mark.parametrize(
    "found",
    [
        {ADMIN_TOKEN: ""},
        {ADMIN_TOKEN: "short"},
        {ADMIN_TOKEN: GOOD + " "},
        {ADMIN_TOKEN: GOOD + "\u00e9"},
        {ADMIN_TOKEN_FILE: "/no/such/file"},
        {ADMIN_TOKEN: GOOD, ADMIN_TOKEN_FILE: "/no/such/file"},
    ],
)
def test_an_admin_token_that_is_weak_or_unclear_is_refused_and_not_told(found):
    with pytest.raises(SecretError) as caught:
        admin_token(found)
    assert GOOD not in str(caught.value)
