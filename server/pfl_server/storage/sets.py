"""States of the strategy and sets of values in the store of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.errors import StateError
from pfl_mobile.files.tensors import tensors_to_bytes
from pfl_mobile.strategies import server_state_file as state_file
from pfl_mobile.strategies.state import Server, Values
from pfl_server.errors import BlobMissingError
from pfl_server.problems import Conflict

if TYPE_CHECKING:
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_server.storage.blobs import Blobs
    from pfl_server.storage.models import Version

#: What the privacy of coming rounds depends on, among the extra arrays of a state.
PRIVACY = "privacy."


def put_state(blobs: Blobs, number: int, server: Server, privacy: Mapping[str, np.ndarray]) -> str:
    """Store the state of a version; returns its key.

    Args:
        blobs: the store.
        number: of the version.
        server: values, groups, sets and numbers of the strategy.
        privacy: ``PrivateRounds.state()``; empty without noise of the aggregator.
    """
    data = state_file.encode(server, {PRIVACY + name: value for name, value in privacy.items()})
    key = f"states/{number}-{hashlib.sha256(data).hexdigest()[:16]}"
    blobs.put(key, data)
    return key


def get_state(
    blobs: Blobs, key: str, table: Sequence[DeviceTensorInfo], population: int
) -> tuple[Server, dict[str, np.ndarray]]:
    """The server's state under a key, and the privacy state that was saved with it.

    Raises:
        BlobMissingError: there is none.
        StateError: it is damaged.
    """
    server, extra = state_file.decode(blobs.get(key), table, population, key)
    return server, {n.removeprefix(PRIVACY): v for n, v in extra.items() if n.startswith(PRIVACY)}


def rolled_back_state(blobs: Blobs, old: Version, newest: Version, number: int) -> str:
    """Store the state of a version that goes back to an earlier one; returns its key.

    The strategy is as it was at ``old``. The noise goes on from ``newest``: it is a sequence over all rounds that
    were ever published, and to use a part of it twice would show what it hides.

    Args:
        blobs: the store.
        old: version to go back to.
        newest: latest version that there is.
        number: of the version to make.

    Raises:
        Conflict: one of the two states is missing or damaged.
    """
    server, _ = _needed(blobs, old, ", or choose another version")
    _, privacy = _needed(blobs, newest, ": no roll-back works without it")
    return put_state(blobs, number, server, privacy)


def _needed(blobs: Blobs, version: Version, then: str) -> tuple[Server, dict[str, np.ndarray]]:
    try:
        return get_state(blobs, version.state_blob, (), 0)
    except (BlobMissingError, StateError) as error:
        raise Conflict(
            f"the state of model version {version.number} cannot be used: {error.message}",
            mend=f"restore {version.state_blob} from a backup of the store of files{then}",
        ) from error


def put_set(blobs: Blobs, values: Values) -> dict[str, Any]:
    """Store a set of values under its content's digest, once: {"sha256", "bytes"}."""
    data = tensors_to_bytes(values)
    sha256 = hashlib.sha256(data).hexdigest()
    if blobs.size(set_key(sha256)) is None:
        blobs.put(set_key(sha256), data)
    return {"sha256": sha256, "bytes": len(data)}


def set_key(sha256: str) -> str:
    """The key of a set."""
    return f"sets/{sha256}"
