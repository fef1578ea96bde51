"""What a server keeps between rounds, as the bytes of one safetensors file.

Tensors are numbered; their names stand in the head, in order: they may hold anything, and where a strategy sums over
them their order counts. `pack` and `unpack` are the part that checkpoints of simulated rounds have too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pfl_mobile.errors import ConfigError, NewerFileError, StateError, TensorFileError
from pfl_mobile.files.sealed import damaged_head, seal, unseal
from pfl_mobile.strategies.state import Server

if TYPE_CHECKING:
    from pfl_mobile.modules.roles import DeviceTensorInfo

FORMAT = "pfl-server-state"
SCHEMA_VERSION = 1
_AGAIN = "restore it from a backup of the store of files"

Names = dict[str, list[list[Any]]]
Sets = dict[str, dict[str, np.ndarray]]


class Kept(Protocol):
    """What has the tensors of a server."""

    values: dict[str, np.ndarray]
    groups: Sets
    sets: Sets


def pack(server: Kept) -> tuple[dict[str, np.ndarray], Names]:
    """Values, groups and sets as numbered tensors, and the names that belong to them."""
    tensors: dict[str, np.ndarray] = {}
    names: Names = {}
    kinds: dict[str, Mapping[str, Mapping[str, np.ndarray]]] = {
        "values": {"": server.values},
        "groups": server.groups,
        "sets": server.sets,
    }
    for kind, found in kinds.items():
        names[kind] = []
        for i, (key, values) in enumerate(found.items()):
            names[kind].append([key, list(values)])
            tensors |= {f"{kind}.{i}.{j}": np.asarray(value) for j, value in enumerate(values.values())}
    return tensors, names


def unpack(tensors: Mapping[str, np.ndarray], names: Names) -> dict[str, Sets]:
    """Sets by kind (``values`` under the key ``""``), from what `pack` made."""
    return {
        kind: {
            key: {name: tensors[f"{kind}.{i}.{j}"] for j, name in enumerate(listed)}
            for i, (key, listed) in enumerate(found)
        }
        for kind, found in names.items()
    }


def plain_numbers(numbers: Mapping[str, Any], strategy: object) -> dict[str, Any]:
    """A server's numbers as JSON gives them back, so that one that was saved is the same as one that was not.

    Raises:
        ConfigError: the strategy keeps something else than numbers, texts, and lists and dicts of them.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(numbers, default=_plain))
    except TypeError as error:
        raise ConfigError(
            f"{type(strategy).__name__} keeps what is no number: {error}",
            mend="keep arrays in server.sets and numbers in server.numbers",
        ) from error
    return found


def encode(server: Server, extra: Mapping[str, np.ndarray] | None = None) -> bytes:
    """A server as bytes: the same for the same content.

    Args:
        server: its numbers are plain (`plain_numbers`).
        extra: further arrays to keep with it, by name.
    """
    tensors, names = pack(server)
    further = dict(extra or {})
    tensors |= {f"extra.{i}": value for i, value in enumerate(further.values())}
    head = {
        "schema_version": SCHEMA_VERSION,
        "round": server.round,
        "numbers": server.numbers,
        "names": names,
        "extra": list(further),
    }
    return seal(tensors, json.dumps(head), form=FORMAT)


def decode(
    data: bytes, table: Sequence[DeviceTensorInfo], population: int, what: str = "the server's state"
) -> tuple[Server, dict[str, np.ndarray]]:
    """A server from the bytes of `encode`, and what was kept with it.

    Args:
        data: the bytes.
        table: the device tensors.
        population: devices in all.
        what: named in errors.

    Raises:
        StateError: damaged, or of a newer version.
    """
    try:
        tensors, head = unseal(data, form=FORMAT, schema_version=SCHEMA_VERSION, what=what)
        with damaged_head(what):
            found = unpack(tensors, head["names"])
            extra = {name: tensors[f"extra.{i}"] for i, name in enumerate(head["extra"])}
            values, groups, sets = found["values"][""], found["groups"], found["sets"]
            numbers, number = dict(head["numbers"]), int(head["round"])
    except NewerFileError as error:
        raise StateError(error.message, mend=error.mend) from error
    except TensorFileError as error:
        raise StateError(error.message, mend=_AGAIN) from error
    return Server(table, population, values, groups, sets, numbers, number), extra


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept as a number")
