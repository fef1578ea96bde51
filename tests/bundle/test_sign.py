from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pfl_mobile import errors
from pfl_mobile.bundle import generate_key, load_private_key, load_public_key, public_hex, sign, verify

if TYPE_CHECKING:
    from pathlib import Path

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def test_a_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "owner.pem"
    public = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public == public_hex(load_public_key(tmp_path / "owner.pem.pub"))
    assert public == public_hex(load_private_key(path).public_key())
    before = path.read_bytes()
    with pytest.raises(errors.KeyFileError, match="never overwritten"):
        generate_key(path)
    path.unlink()
    with pytest.raises(errors.KeyFileError, match=r"owner\.pem\.pub"):
        generate_key(path)
    assert not path.exists()
    assert before.startswith(b"-----BEGIN PRIVATE KEY")
    with pytest.raises(errors.UnwritableError):
        generate_key(tmp_path / "none" / "k")


def test_vector_of_rfc_8032() -> None:
    secret = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    record = json.loads(sign(b"\x72", secret))
    assert record["algorithm"] == "ed25519"
    assert record["public_key"] == public
    assert record["signature"].startswith("92a009a9f0d4cab8720e820b5f642540")
    assert verify(b"\x72", json.dumps(record).encode(), public.upper()) == public


def test_keys_that_are_none(tmp_path: Path, key: Path) -> None:
    other = tmp_path / "other.pem"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(elliptic.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    secret = tmp_path / "secret.pem"
    secret.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"pw"))
    )
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\x00\xfe")
    no_private: list[tuple[str | Path, str]] = [
        (other, "another algorithm"),
        (secret, "password"),
        (junk, "not text"),
        (f"{key}.pub", "needs the private one"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        ("-----BEGIN PRIVATE KEY-----\nabc", "not a private key"),
        ("", "No such file"),
        ("x\0", "not a path"),
    ]
    for source, words in no_private:
        with pytest.raises(errors.KeyFileError, match=words):
            load_private_key(source)
    elliptic_public = elliptic.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    no_public: list[tuple[str | Path, str]] = [
        (key, "is a private key"),
        (elliptic_public.decode(), "another algorithm"),
        (junk, "not text"),
        ("-----BEGIN PUBLIC KEY-----\nabc", "not a public key"),
    ]
    for public, words in no_public:
        with pytest.raises(errors.KeyFileError, match=words):
            load_public_key(public)


def test_a_mistyped_secret_is_not_shown() -> None:
    with pytest.raises(errors.KeyFileError, match="63 hex digits") as caught:
        load_private_key("ab" * 31 + "c")
    assert "abab" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "none"},
        {"algorithm": None},
        {"public_key": "00"},
        {"public_key": 3},
        {"signature": ""},
        {"signature": "zz" * 64},
        {"signature": None},
        {"extra": 1},
    ],
)
def test_malformed_signatures(key: Path, change: dict[str, object]) -> None:
    record = json.loads(sign(b"m", key))
    with pytest.raises(errors.SignatureError):
        verify(b"m", json.dumps({**record, **change}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 4000, b" " * 5000])
def test_signature_files_that_are_none(data: bytes) -> None:
    with pytest.raises(errors.SignatureError):
        verify(b"m", data)


def test_bundles_need_no_torch() -> None:
    code = "import sys, pfl_mobile.bundle; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
