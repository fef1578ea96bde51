"""Named tensors as safetensors bytes: initial values, golden batches, updates, personal states.

The bytes are a function of the tensors and the metadata alone, so that a digest or a signature over them is
reproducible; the library alone leaves the order of the metadata to chance.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from pfl_mobile.errors import NonFiniteError, TensorFileError
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.reading import MOST_TENSOR_BYTES, parse_json, read_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

Tensors = dict[str, np.ndarray]
_DTYPES = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}
#: Dtypes that other tools write, by the format's names.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
}
_AGAIN = "write the file again from its source, or go back to an earlier copy"


def tensors_to_bytes(
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    finite: bool = False,
) -> bytes:
    """Serialize ``tensors`` (any shapes; also non-contiguous or big-endian ones).

    Args:
        tensors: by name. Dtypes: float16 to float64, int8 to int64, uint8, bool.
        metadata: short strings put into the header.
        finite: refuse NaN and infinity.

    Raises:
        NonFiniteError: ``finite`` and a value is not.
        TensorFileError: a dtype or name that the format cannot hold.
    """
    if finite:
        check_finite(tensors)
    flat: Tensors = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype.newbyteorder("=").name not in _DTYPES or name == "__metadata__":
            raise TensorFileError(
                f"tensor {name!r} of dtype {array.dtype} cannot be stored",
                mend=f"convert it to one of {', '.join(sorted(_DTYPES))}, and do not call it __metadata__",
            )
        # Little-endian and dense: the library takes the address and would ignore strides.
        flat[name] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    try:
        data = safetensors.numpy.save(flat, dict(metadata) if metadata else None)
    except UnicodeEncodeError as error:
        raise TensorFileError(
            f"a name or note among the tensors is no text: {error}",
            mend="use names without broken surrogates",
        ) from error
    return _with_sorted_metadata(data) if metadata else data


def tensors_from_bytes(data: bytes, *, finite: bool = False, what: str = "the data") -> Tensors:
    """The tensors in ``data``, as arrays of their own that may be written to.

    Args:
        data: a whole safetensors file.
        finite: refuse NaN and infinity.
        what: the name that errors give the data.

    Raises:
        TensorFileError: not a safetensors file, a damaged one, or one with a dtype that is not supported.
        NonFiniteError: ``finite`` and a value is not.
    """
    try:
        tensors: Tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TensorFileError(f"{what} is not a valid safetensors file: {error}", mend=_AGAIN) from error
    _split(data)  # the library takes one of two equal names, and other readers may take the other
    if finite:
        check_finite(tensors, what)
    return {name: np.array(tensor) for name, tensor in tensors.items()}


def floats_from_bytes(data: bytes, *, what: str = "the data") -> Tensors:
    """The tensors in ``data`` as float32, as other tools may have written them: bfloat16 too, which numpy lacks.

    Args:
        data: a whole safetensors file.
        what: the name that errors give the data.

    Raises:
        TensorFileError: not a safetensors file, a damaged one, or one with a dtype that is not supported.
    """
    try:
        deserialize: Any = safetensors.deserialize  # it has no types
        entries = deserialize(data)
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise TensorFileError(f"{what} is not a valid safetensors file: {error}", mend=_AGAIN) from error
    found: Tensors = {}
    for name, entry in sorted(entries, key=lambda item: item[0]):  # the library's order is left to chance
        if entry["dtype"] == "BF16":  # the upper half of a float32
            flat = (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] in _NUMPY:
            flat = np.frombuffer(entry["data"], _NUMPY[entry["dtype"]]).astype(np.float32)
        else:
            raise TensorFileError(
                f"tensor {name!r} of {what} has the dtype {entry['dtype']}",
                mend="save it as float32, float16 or bfloat16",
            )
        found[name] = flat.astype(np.float32, copy=False).reshape(entry["shape"])
    return found


def metadata_from_bytes(data: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty when it has none. Raises TensorFileError."""
    header, _ = _split(data)
    return {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    finite: bool = False,
    mode: int = 0o666,
) -> None:
    """Write ``tensors`` to ``path``; arguments and errors as `tensors_to_bytes` and `atomic_write`."""
    atomic_write(path, tensors_to_bytes(tensors, metadata=metadata, finite=finite), mode=mode)


def load_tensors(path: str | os.PathLike[str], *, finite: bool = False) -> Tensors:
    """Read the tensors at ``path``; arguments and errors as `tensors_from_bytes`."""
    return tensors_from_bytes(_read(path), finite=finite, what=str(path))


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of the file at ``path``; errors as `load_tensors`."""
    return metadata_from_bytes(_read(path))


def check_finite(tensors: Mapping[str, np.ndarray], what: str = "") -> None:
    """Refuse NaN and infinity in float tensors.

    Raises:
        NonFiniteError: naming the tensor and how many of its values are not finite.
    """
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype.kind != "f":
            continue
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            where = f" of {what}" if what else ""
            raise NonFiniteError(
                f"tensor {name!r}{where} has {bad} of {array.size} values NaN or infinite",
                mend="lower the learning rate or clip the gradients, and start from the last good values",
            )


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return read_bytes(path, MOST_TENSOR_BYTES)
    except OSError as error:
        raise TensorFileError(
            f"cannot read {path}: {error.strerror or error}", mend="check the path and its permissions"
        ) from error


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > len(data) - 8:
            raise ValueError("the header is longer than the file")
        header = parse_json(data[8 : 8 + length])
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
            raise ValueError("the header is not an object")
    except (struct.error, ValueError) as error:
        raise TensorFileError(f"not a valid safetensors file: {error}", mend=_AGAIN) from error
    return header, data[8 + length :]


def _with_sorted_metadata(data: bytes) -> bytes:
    header, body = _split(data)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensor bytes begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + body
