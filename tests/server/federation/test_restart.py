"""What a start says of what is other than at the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pfl_server.federation.restart import STARTED, as_started, other_than_before
from pfl_server.settings import LimitsConfig, ServerSettings


def settings(folder: Path, **changes: Any) -> ServerSettings:
    return ServerSettings(bundle=folder / "bundle", data=folder / "data", **changes)


def start(folder: Path, *, admin: bool = True, public_key: str | None = None, **changes: Any) -> list[str]:
    found = settings(folder, **changes)
    now = as_started(found, database="sqlite:///x", admin=admin, public_key=public_key)
    return other_than_before(found.data, now)


def test_the_first_start_and_the_same_again_say_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        assert start(tmp_path, enrolment="open") == []


def test_open_enrolment_that_was_forgotten_is_said_with_what_it_means(tmp_path: Path) -> None:
    start(tmp_path, enrolment="open")
    assert start(tmp_path) == [
        'enrolment was "open" at the last start and is "token" now (--open-enrolment): '
        "new devices need a token of an admin"
    ]
    assert start(tmp_path) == []  # once


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"enrolment": "open"}, "--open-enrolment"),
    ({"attestation": "a:b"}, {}, "--attestation"),
    ({"dashboard": "admin"}, {"dashboard": "public"}, "--dashboard"),
    ({"metrics": "public"}, {}, "--metrics"),
    ({"trust_proxy": ("10.0.0.1",)}, {}, "--trust-proxy"),
    ({"tls_cert": Path("a"), "tls_key": Path("b")}, {}, "--tls-cert"),
    ({"host": "0.0.0.0"}, {}, "--host"),
    ({"port": 1}, {}, "--port"),
    ({"processes": 2}, {}, "--processes"),
    ({"blobs": "s3://a/b"}, {}, "--blobs"),
    ({"limits": LimitsConfig(device_rate=1)}, {}, "--limits"),
    ({"public_key": "/k"}, {}, "--public-key"),
    ({"admin": True}, {"admin": False}, "PFL_ADMIN_TOKEN"),
]


@pytest.mark.parametrize(("first", "then", "option"), CHANGES)
def test_every_option_that_is_other_is_said(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], option: str
) -> None:
    start(tmp_path, **first)
    said = start(tmp_path, **then)
    assert any(option in line for line in said)
    assert any(option in line for line in start(tmp_path, **first))


def test_no_setting_that_a_client_notices_is_left_out(tmp_path: Path) -> None:
    """A new field of the settings is compared, or listed here as one that changes nothing."""
    # the key is compared as the file that the operator names; the first process notes the manifest for its workers
    quiet = {"name", "bundle", "data", "shutdown_s", "public_key", "manifest_sha256"}
    now = as_started(settings(tmp_path), database="", admin=False, public_key=None)
    assert set(ServerSettings.model_fields) - quiet <= set(now)
    assert "public key" in now


def test_no_secret_is_kept(tmp_path: Path) -> None:
    start(tmp_path, database="postgresql://user:hunter2@host/name", blobs="s3://b/p?secret=hunter2")
    text = (tmp_path / "data" / STARTED).read_text()
    assert "hunter2" not in text
    assert (tmp_path / "data" / STARTED).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_record_stops_no_start(tmp_path: Path, content: bytes) -> None:
    start(tmp_path)
    (tmp_path / "data" / STARTED).write_bytes(content)
    start(tmp_path)
    assert start(tmp_path) == []
