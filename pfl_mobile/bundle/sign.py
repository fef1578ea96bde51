"""Ed25519 signatures over the exact bytes of ``manifest.json``.

The manifest has the digest of every other file, so its signature covers the whole bundle. Keys are PEM files
(as ``openssl genpkey -algorithm ed25519`` writes them) or 64 hex digits.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pfl_mobile.bundle.paths import MANIFEST, SIGNATURE
from pfl_mobile.errors import KeyFileError, SignatureError
from pfl_mobile.files.atomic import PRIVATE, atomic_write
from pfl_mobile.files.reading import decoded, parse_json, read_bytes

#: A key in memory, 64 hex digits, PEM text, or the path of a file with one of the two.
PrivateKey = Ed25519PrivateKey | str | os.PathLike[str]
PublicKey = Ed25519PublicKey | str | os.PathLike[str]

ALGORITHM = "ed25519"
MAX_SIGNATURE_BYTES = 4096
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw
_MAX_KEY_BYTES = 64 * 1024


def generate_key(path: str | os.PathLike[str]) -> str:
    """Make a signing key at ``path`` (PEM, mode 600) and its public half at ``path`` + ``.pub``.

    Returns:
        The public key in hex, to pin in an app.

    Raises:
        KeyFileError: one of the two files is there already; a key is never overwritten.
    """
    private, public = Path(path), Path(f"{os.fspath(path)}.pub")
    for file in (private, public):
        if os.path.lexists(file):
            raise KeyFileError(
                f"{file} is there already, and a key is never overwritten",
                mend="choose another path, or move the old key away",
            )
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    atomic_write(private, pem, mode=PRIVATE)
    atomic_write(
        public,
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        mode=0o644,
    )
    return public_hex(key.public_key())


def load_private_key(source: PrivateKey) -> Ed25519PrivateKey:
    """The signing key in ``source``; raises KeyFileError, which never shows the key."""
    if isinstance(source, Ed25519PrivateKey):
        return source
    text, what = _text(source, "signing key")
    if _HEX_KEY.fullmatch(text):
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except TypeError as error:
        raise KeyFileError(
            f"{what} is protected by a password",
            mend="remove the password with: openssl pkey -in KEY -out NEW",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        public = "PUBLIC KEY" in text
        raise KeyFileError(
            f"{what} is {'a public key; signing needs the private one' if public else 'not a private key'}",
            mend=_MEND,
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{what} is a key of another algorithm than Ed25519", mend=_MEND)
    return key


def load_public_key(source: PublicKey) -> Ed25519PublicKey:
    """The public key in ``source``; raises KeyFileError, also for a private key, which has no place here."""
    if isinstance(source, Ed25519PublicKey):
        return source
    text, what = _text(source, "public key")
    if _HEX_KEY.fullmatch(text):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    if "PRIVATE KEY" in text:
        raise KeyFileError(
            f"{what} is a private key; whoever checks a signature must not have it",
            mend="pass the public half: the file that ends in .pub",
        )
    try:
        key = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{what} is not a public key", mend=_MEND) from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{what} is a key of another algorithm than Ed25519", mend=_MEND)
    return key


def public_hex(key: Ed25519PublicKey) -> str:
    """The 32 bytes of a public key as 64 hex digits."""
    return key.public_bytes(*_RAW).hex()


def sign(manifest: bytes, key: PrivateKey) -> bytes:
    """The content of ``manifest.json.sig`` for the bytes of a manifest."""
    private = load_private_key(key)
    record = {
        "algorithm": ALGORITHM,
        "public_key": public_hex(private.public_key()),
        "signature": private.sign(manifest).hex(),
    }
    return json.dumps(record, indent=1).encode() + b"\n"


def verify(manifest: bytes, signature: bytes | None, public_key: PublicKey | None = None) -> str:
    """Check ``manifest`` against the content of its signature file.

    Args:
        manifest: exact bytes of ``manifest.json``.
        signature: exact bytes of ``manifest.json.sig``; None when there is none.
        public_key: the pinned key. Without one the check only shows that the manifest is unchanged since
            someone, whoever that is, signed it.

    Returns:
        The hex public key that made the signature.

    Raises:
        SignatureError: missing, malformed, by another key than the pinned one, or not of these bytes.
        KeyFileError: the pinned key cannot be read.
    """
    pinned = None if public_key is None else load_public_key(public_key)
    if signature is None:
        raise SignatureError(
            "the bundle is not signed",
            mend="export it with --sign KEY, or allow unsigned bundles if you trust where it came from",
        )
    named, value = _parse(signature)
    signer = pinned or Ed25519PublicKey.from_public_bytes(named)
    if named.hex() != public_hex(signer):
        raise SignatureError(
            f"the bundle is signed by another key: {named.hex()}, not {public_hex(signer)}",
            mend="obtain the bundle from its owner, or pin the owner's new key",
        )
    try:
        signer.verify(value, manifest)
    except InvalidSignature as error:
        raise SignatureError(
            f"{MANIFEST} is not what was signed",
            mend="obtain the bundle again; after an edit of the manifest, export and sign anew",
        ) from error
    return named.hex()


_MEND = "give an Ed25519 key as a PEM file or as 64 hex digits"


def _text(source: str | os.PathLike[str], what: str) -> tuple[str, str]:
    """The text of a key and the words that errors use for it; never the key itself."""
    if isinstance(source, str) and (_HEX_KEY.fullmatch(source.strip()) or "-----BEGIN" in source):
        return source.strip(), f"the {what}"
    if isinstance(source, str) and re.fullmatch(
        r"[0-9a-fA-F]{40,}", source.strip()
    ):  # never shown: it may be secret
        raise KeyFileError(f"the {what} has {len(source.strip())} hex digits, not 64", mend=_MEND)
    try:
        return decoded(read_bytes(source, _MAX_KEY_BYTES)).strip(), f"the {what} in {source}"
    except UnicodeDecodeError as error:
        raise KeyFileError(f"the {what} in {source} is not text", mend=_MEND) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        shown = str(source) if len(str(source)) <= 200 and "\n" not in str(source) else "the given text"
        raise KeyFileError(f"cannot read the {what} from {shown}: {why}", mend=_MEND) from error


def _parse(signature: bytes) -> tuple[bytes, bytes]:
    """Public key and signature in a signature file."""
    try:
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise ValueError("it is too long")
        record = parse_json(signature)
        if not isinstance(record, dict) or set(record) != {"algorithm", "public_key", "signature"}:
            raise ValueError("it needs exactly the fields algorithm, public_key and signature")
        if record["algorithm"] != ALGORITHM:
            raise ValueError(f"its algorithm is {record['algorithm']!r}, not {ALGORITHM!r}")
        if not (_HEX_KEY.fullmatch(record["public_key"]) and len(record["signature"]) == 128):
            raise ValueError("its key or signature has the wrong length")
        return bytes.fromhex(record["public_key"]), bytes.fromhex(record["signature"])
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"{SIGNATURE} is not a signature: {error}", mend="obtain the bundle again"
        ) from error
