"""Tensors and a head of JSON in one safetensors file, with a digest of both: states and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.bundle.tensors import Tensors, metadata_from_bytes, tensors_from_bytes, tensors_to_bytes
from pfl_mobile.errors import NewerFileError, TensorFileError
from pfl_mobile.reading import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def seal(tensors: Mapping[str, np.ndarray], head: str, *, form: str | None, finite: bool = False) -> bytes:
    """The bytes of a file.

    Args:
        tensors: by name.
        head: JSON of an object; with a name of the format also ``schema_version``.
        form: name of the format.
        finite: refuse NaN and infinity.

    Raises:
        NonFiniteError, TensorFileError: as ``tensors_to_bytes``.
    """
    metadata = {"head": head, "sha256": digest(tensors, head)}
    if form is not None:
        metadata["format"] = form
    return tensors_to_bytes(tensors, metadata=metadata, finite=finite)


def unseal(
    data: bytes, *, form: str | None, schema_version: int = 0, what: str
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and head of a file.

    Args:
        data: the bytes.
        form: name of the format.
        schema_version: the newest that is understood.
        what: names the file in errors.

    Raises:
        NewerFileError: the file is of a newer schema.
        TensorFileError: it is damaged, or of another format.
    """
    tensors, metadata = tensors_from_bytes(data, what=what), metadata_from_bytes(data)
    text = metadata.get("head", "")
    if metadata.get("format") != form or metadata.get("sha256") != digest(tensors, text):
        raise TensorFileError(f"{what} does not match its digest", mend="restore it from a copy")
    try:
        head = parse_json(text, finite=False)
        version = head.get("schema_version", 0) if isinstance(head, dict) else None
        if type(version) is not int:
            raise ValueError("its head is no object with a schema_version")
    except ValueError as error:
        raise TensorFileError(
            f"the head of {what} is damaged: {error}", mend="restore it from a copy"
        ) from error
    if version > schema_version:
        raise NewerFileError(
            f"{what} has schema {head['schema_version']}, newer than {schema_version}",
            mend="update pfl-mobile",
        )
    return tensors, head


@contextlib.contextmanager
def damaged_head(what: str) -> Iterator[None]:
    """Turn what goes wrong where the parts of a head are taken as what they should be into `TensorFileError`.

    A digest that fits says that a file is whole, not that this program wrote it.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TensorFileError(
            f"the head of {what} is damaged: {type(error).__name__}: {error}", mend="restore it from a copy"
        ) from error


def digest(tensors: Mapping[str, np.ndarray], text: str = "") -> str:
    """sha256 over ``text``, then name, dtype, shape and little-endian bytes of each tensor in order of name.

    Each part is preceded by its length in bytes as 8 little-endian bytes.
    """
    sha = hashlib.sha256()

    def part(data: bytes) -> None:
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)

    part(text.encode())
    for name in sorted(tensors):
        value = np.asarray(tensors[name])
        part(name.encode())
        part(f"{value.dtype.name} {list(value.shape)}".encode())
        part(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.hexdigest()
