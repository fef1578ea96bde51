"""What a device uploads: a canonical safetensors file, so that its bytes after the header are one flat vector.

    8 bytes             length N of the header, unsigned, little-endian; a multiple of 8
    N bytes             JSON, filled up with spaces:
                        {"__metadata__": {"format": "pfl-update", "head": "<UpdateHead as JSON>"},
                         "<name>": {"dtype": "F32", "shape": [...], "data_offsets": [from, to]}, ...}
    4 bytes a value     float32, little-endian: the tensors in the order of the task's layout, without gaps

The layout is sorted by the bytes of the tensors' UTF-8 names, which is the order that the safetensors libraries write
tensors of one type in. A copy's tensor is named ``copy:<copy>:<tensor>``. The aggregator parses the header alone, and
adds up the rest as it lies.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pfl_mobile.errors import TensorMismatchError, UpdateFileError, UpdateTensorsError
from pfl_mobile.files.tensors import check_finite
from pfl_mobile.plan.upload import UpdateLayout, update_shapes
from pfl_mobile.protocol.bodies import UPDATE_FORMAT, UpdateHead

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.select import TensorEntry

#: Bytes that a header may have beside its tensors' entries.
MAX_HEAD_BYTES = 64 << 10
#: Bytes of a tensor's entry beside its name and shape.
_ENTRY_BYTES = 160

_AGAIN = "write the update again: names, shapes, order and offsets as the task's layout says"


def canonical(shapes: Mapping[str, tuple[int, ...]]) -> UpdateLayout:
    """The layout of tensors in an update: sorted by the bytes of their UTF-8 names."""
    return UpdateLayout(
        {name: tuple(shapes[name]) for name in sorted(shapes, key=lambda name: name.encode())}
    )


def layout_of(plan: Plan, table: Sequence[TensorEntry]) -> UpdateLayout:
    """The layout of what a plan sends.

    Args:
        plan: says what is uploaded.
        table: the device tensors with their roles.

    Raises:
        UnknownNameError, ConfigError: an upload pattern matches nothing, or personal tensors only.
    """
    return canonical(update_shapes(plan, table))


def header_limit(layout: UpdateLayout) -> int:
    """The most bytes that the header of such an update may have."""
    # A byte of a name takes six in JSON where it is escaped; a size takes up to 20 digits and a comma.
    return MAX_HEAD_BYTES + sum(
        _ENTRY_BYTES + 6 * len(name.encode()) + 21 * len(shape) for name, shape in layout.shapes.items()
    )


def size_limit(layout: UpdateLayout) -> int:
    """The most bytes that such an update may have."""
    return 8 + header_limit(layout) + 4 * layout.size


def encode(head: UpdateHead, tensors: Mapping[str, np.ndarray], layout: UpdateLayout) -> bytes:
    """The bytes of an update: the same for the same content.

    Args:
        head: which task it belongs to, and what was done.
        tensors: float32, those of the layout.
        layout: of the task, in canonical order (`layout_of`).

    Raises:
        TensorMismatchError: a tensor is missing, unknown, or of another shape or dtype.
        NonFiniteError: a value is NaN or infinite.
        UpdateFileError: the layout is not in canonical order, or the head is too long.
    """
    if list(layout.shapes) != list(canonical(layout.shapes).shapes):
        raise UpdateFileError("the layout is not sorted by name", mend="take the task's own layout")
    for name in [*layout.shapes, *tensors]:
        shape, found = layout.shapes.get(name), tensors.get(name)
        if shape is None or found is None or found.shape != shape or found.dtype.name != "float32":
            what = "missing" if found is None else f"{found.dtype.name} {list(found.shape)}"
            asked = "is not asked for" if shape is None else f"is to be float32 {list(shape)}"
            raise TensorMismatchError(
                f"tensor {name!r} of the update is {what}; it {asked}", mend="send what the plan uploads"
            )
    check_finite(tensors, "the update")
    header: dict[str, Any] = {
        "__metadata__": {"format": UPDATE_FORMAT, "head": json.dumps(head.model_dump(mode="json"))}
    }
    for name, place, shape in layout.items():
        header[name] = _entry(place, shape)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of 8
    if len(text) > header_limit(layout):
        raise UpdateFileError(
            f"the header of the update has {len(text)} bytes, the most is {header_limit(layout)}",
            mend="send fewer reports",
        )
    flat = np.empty(layout.size, "<f4")
    layout.pack(tensors, flat)
    return b"".join([struct.pack("<Q", len(text)), text, flat.data])


def payload_offset(layout: UpdateLayout, total_length: int) -> int:
    """Where the values begin in an update of this length; as many bytes are needed by `parse_prefix`.

    Raises:
        UpdateTensorsError: no update of this layout has this length.
    """
    offset = total_length - 4 * layout.size
    if not 16 <= offset <= 8 + header_limit(layout):
        raise UpdateTensorsError(
            f"the update has {total_length} bytes; those of the task have {4 * layout.size} of values and a header",
            mend=_AGAIN,
        )
    return offset


def parse_prefix(
    data: bytes | bytearray | memoryview, layout: UpdateLayout, total_length: int
) -> tuple[UpdateHead, int]:
    """Parse the header of an update, and nothing of its values.

    Args:
        data: the beginning of the file, at least up to `payload_offset`.
        layout: of the task.
        total_length: bytes of the whole file.

    Returns:
        The head, and the offset of the values in bytes.

    Raises:
        UpdateTensorsError: other tensors, shapes, types or offsets than the layout's, or another length.
        UpdateFileError: not an update file.
    """
    offset = payload_offset(layout, total_length)
    if len(data) < offset:
        raise UpdateFileError(f"the update ends after {len(data)} bytes, inside its header", mend=_AGAIN)
    (length,) = struct.unpack_from("<Q", data)
    if length != offset - 8:
        raise UpdateTensorsError(
            f"the header of the update says {length} bytes, where {offset - 8} leave the layout's values",
            mend=_AGAIN,
        )
    if length % 8:
        raise UpdateFileError(f"the header has {length} bytes, not a multiple of 8", mend=_AGAIN)
    header = _json(bytes(data[8:offset]), "header")
    if data[8] != ord("{") or not isinstance(header, dict):
        raise UpdateFileError("the header of the update is not a JSON object", mend=_AGAIN)
    metadata = header.pop("__metadata__", None)
    _check_tensors(header, layout)
    return _head(metadata), offset


def _check_tensors(header: Mapping[str, Any], layout: UpdateLayout) -> None:
    for name in header:
        if name not in layout.shapes:
            raise UpdateTensorsError(f"the update has a tensor {name!a} that is not asked for", mend=_AGAIN)
    for name, place, shape in layout.items():
        entry = header.get(name)
        if entry is None:
            raise UpdateTensorsError(f"the update lacks the tensor {name!a}", mend=_AGAIN)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise UpdateFileError(f"the entry of tensor {name!a} is malformed", mend=_AGAIN)
        expected = _entry(place, shape)
        for key, value in expected.items():
            # Not equality alone: in Python true is equal to 1, and 1.0 too.
            if entry[key] != value or not _same_types(entry[key]):
                raise UpdateTensorsError(
                    f"tensor {name!a} of the update has another {key} than {value}", mend=_AGAIN
                )


def _entry(place: slice, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [4 * place.start, 4 * place.stop]}


def _same_types(value: Any) -> bool:
    return isinstance(value, str) or all(type(item) is int for item in value)


def _head(metadata: Any) -> UpdateHead:
    if not isinstance(metadata, dict) or metadata.keys() != {"format", "head"}:
        raise UpdateFileError("the metadata of the update is not its format and head", mend=_AGAIN)
    if metadata["format"] != UPDATE_FORMAT or not isinstance(metadata["head"], str):
        raise UpdateFileError(f"the file is not of the format {UPDATE_FORMAT!r}", mend=_AGAIN)
    raw = _json(metadata["head"].encode(errors="surrogatepass"), "head")
    try:
        return UpdateHead.model_validate(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "head"
        raise UpdateFileError(f"the head of the update: {where!a}: {first['msg']}", mend=_AGAIN) from error


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicate_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        # Not the error's own words, which may repeat a part of what was sent.
        kind = type(error).__name__
        raise UpdateFileError(f"the {what} of the update is not valid JSON ({kind})", mend=_AGAIN) from error


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal keys they take.
    found = Counter(key for key, _ in pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
