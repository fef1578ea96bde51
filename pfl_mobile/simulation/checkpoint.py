"""A run of rounds on disk, so that a killed one goes on with the same bits.

    FOLDER/checkpoint      server values, groups and sets; rows of the devices' states and a digest of each; digests of
                           the users' data; settings; a digest of all
    FOLDER/states          the rows, see ``states.py``
    FOLDER/history.jsonl   one line a round

The checkpoint is replaced in one step and says how much of the history belongs to it. What is resumed has the data,
the settings and the files of the run that was stopped, or is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.errors import (
    CheckpointError,
    ConfigError,
    NewerFileError,
    OtherSettingsError,
    TensorFileError,
)
from pfl_mobile.files.atomic import PRIVATE, atomic_write, disk_errors, open_private, private_folder
from pfl_mobile.files.describe import differences
from pfl_mobile.files.reading import MOST_TENSOR_BYTES, parse_json, read_bytes
from pfl_mobile.files.sealed import damaged_head, seal, unseal
from pfl_mobile.privacy import checked_privacy
from pfl_mobile.simulation.states import RowFormat, States
from pfl_mobile.simulation.used_data import UsedData
from pfl_mobile.strategies.server_state_file import pack, unpack

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.strategies.state import Server

FORMAT = "pfl-rounds"
SCHEMA_VERSION = 2
#: Names in the folder of a run.
FILES = ("checkpoint", "states", "history.jsonl")
_AGAIN = "put the folder's files back from a copy, or start the run again in an empty folder"


@dataclass
class Checkpoint:
    """What a run needs to go on, beside the rows of the states.

    Attributes:
        settings: everything that decides the results.
        lanes: clients trained at once; results depend on it in the last bits.
        round: rounds merged.
        stopped: whether the run asked to stop early.
        values, groups, sets, numbers: of the server.
        devices, rows, digests: devices with a state, the row of each and a digest of what is in it, int64.
        data: what is known of the users' data, as ``UsedData.table``.
        history: bytes of the history that belong to it.
        history_digest: of those bytes.
    """

    settings: dict[str, Any]
    lanes: int | None
    round: int
    stopped: bool
    values: dict[str, np.ndarray]
    groups: dict[str, dict[str, np.ndarray]]
    sets: dict[str, dict[str, np.ndarray]]
    numbers: dict[str, Any]
    devices: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    data: np.ndarray
    history: int
    history_digest: str

    def put_into(self, server: Server) -> None:
        """Make the server what it was."""
        server.values, server.groups, server.sets = self.values, self.groups, self.sets
        server.numbers, server.round = self.numbers, self.round


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write it in one step; errors as ``atomic_write``."""
    tensors = {
        "states.devices": checkpoint.devices,
        "states.rows": checkpoint.rows,
        "states.digests": checkpoint.digests,
        "data": checkpoint.data,
    }
    packed, names = pack(checkpoint)
    tensors |= packed
    head = {
        "schema_version": SCHEMA_VERSION,
        "settings": checkpoint.settings,
        "lanes": checkpoint.lanes,
        "round": checkpoint.round,
        "stopped": checkpoint.stopped,
        "numbers": checkpoint.numbers,
        "names": names,
        "history": checkpoint.history,
        "history_digest": checkpoint.history_digest,
    }
    atomic_write(path, seal(tensors, json.dumps(head), form=FORMAT), mode=PRIVATE)


def load(path: Path) -> Checkpoint | None:
    """The checkpoint; None when there is no file.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        data = read_bytes(path, MOST_TENSOR_BYTES)
        tensors, head = unseal(data, form=FORMAT, schema_version=SCHEMA_VERSION, what=str(path))
        with damaged_head(str(path)):
            return _parts(tensors, head)
    except FileNotFoundError:
        return None
    except NewerFileError as error:
        raise CheckpointError(error.message, mend=error.mend) from error
    except TensorFileError as error:
        raise CheckpointError(error.message, mend=_AGAIN) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", mend=_AGAIN) from error


def _parts(tensors: dict[str, np.ndarray], head: dict[str, Any]) -> Checkpoint:
    """The parts of a file; anything but CheckpointError means that one is not as written."""
    if head["schema_version"] < SCHEMA_VERSION:
        raise CheckpointError(
            "the checkpoint is of an older version, which did not note the data of the run",
            mend="start the run again in an empty folder, or finish it with the version that began it",
        )
    for name, kind in (
        ("settings", dict),
        ("lanes", (int, type(None))),
        ("round", int),
        ("stopped", bool),
        ("numbers", dict),
        ("history", int),
        ("history_digest", str),
    ):
        if not isinstance(head[name], kind):
            raise TypeError(f"{name} is {head[name]!r}")
    found = unpack(tensors, head["names"])
    return Checkpoint(
        head["settings"],
        head["lanes"],
        head["round"],
        head["stopped"],
        found["values"][""],
        found["groups"],
        found["sets"],
        head["numbers"],
        tensors["states.devices"],
        tensors["states.rows"],
        tensors["states.digests"],
        tensors["data"],
        head["history"],
        head["history_digest"],
    )


def check_settings(checkpoint: Checkpoint, settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of other settings.

    Raises:
        OtherSettingsError: naming the settings that differ.
        ConfigError: its privacy is invalid.
    """
    before = dict(checkpoint.settings)
    if before.get("privacy") is not None:  # of whichever version
        what = f"the privacy of the checkpoint in {folder}"
        before["privacy"] = checked_privacy(before["privacy"], what).model_dump(mode="json")
    differing = list(differences(before, json.loads(json.dumps(settings))))
    if differing:
        # Whatever is named says more than that the result is another program.
        named = [d for d in differing if d[0] != "program"] or differing
        said = dict.fromkeys(_said(*difference) for difference in named)
        some = "; ".join(list(said)[:3])
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise OtherSettingsError(
            f"the checkpoint in {folder} is of a run with other settings: {some}{more}",
            mend="give the old settings, or another folder",
        )


#: What a digest among the settings is of, by the end of its path.
_DIGESTS = {
    "model.backbone": "the model has other frozen weights",
    "model.values": "the model has other initial weights",
    "program": "the model or the task computes something else, though it is called the same",
}


def _said(path: str, old: Any, new: Any) -> str:
    if path in _DIGESTS:
        return _DIGESTS[path]
    owner, _, last = path.rpartition(".")
    if last == "code" and old and new:
        return f"the code of {owner} is another"
    if last == "sha256":
        return f"{owner} has other values"
    return f"{path} was {old!r} and is {new!r}"


class History:
    """A file with one line of JSON a round.

    Args:
        path: the file; None keeps nothing.
        size: bytes that count; what follows is of rounds that a killed run did not finish.
        digest: of the bytes that count.

    Raises:
        CheckpointError: the file is shorter, or damaged.
    """

    def __init__(self, path: Path | None, size: int = 0, digest: str = "") -> None:
        """Cut the file to what counts."""
        self.size = size
        self._sha = hashlib.sha256()
        self._file = None
        self.lines: list[dict[str, Any]] = []
        if path is None:
            return
        with disk_errors(path):
            try:
                self._file = open(path, "a+b", buffering=0, opener=open_private)  # noqa: SIM115 - open as long as the run
                self._file.seek(0)
                data = self._file.read(size)
            except (
                FileNotFoundError,
                NotADirectoryError,
                IsADirectoryError,
                io.UnsupportedOperation,
            ) as error:
                raise CheckpointError(f"{path} cannot be opened: {error}", mend=_AGAIN) from error
            if len(data) < size:
                raise CheckpointError(f"{path} is shorter than it was", mend=_AGAIN)
            self._sha.update(data)
            if size and self.digest != digest:
                raise CheckpointError(f"{path} is damaged: it does not match its digest", mend=_AGAIN)
            self._file.truncate(size)
        try:
            self.lines = [parse_json(line, finite=False) for line in data.splitlines()]
            if not all(isinstance(line, dict) for line in self.lines):
                raise ValueError("a line is no object")
        except ValueError as error:
            self._file.close()
            raise CheckpointError(f"{path} is damaged: {error}", mend=_AGAIN) from error

    @property
    def digest(self) -> str:
        """Of all lines."""
        return self._sha.hexdigest()

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is None:
            return
        data = json.dumps(line).encode() + b"\n"
        with disk_errors(self._file.name):
            self._file.write(data)
        self._sha.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """Put it onto the disk."""
        if self._file is not None:
            with disk_errors(self._file.name):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class RunFolder:
    """The folder of a run.

    Args:
        folder: made when missing; None keeps nothing but the states, without a name.
        form: of the devices' states.
        settings: that decide the results.
        resume: go on with the run that is there.
        population: whose rows decide them too.

    Attributes:
        states: of the devices.
        history: the rounds so far.
        found: the checkpoint to go on from; None for none.
        data: what is known of the users' rows; None without a folder.

    Raises:
        ConfigError: there is a run, and ``resume`` is not set.
        OtherSettingsError, CheckpointError: as above.
    """

    def __init__(
        self,
        folder: Path | None,
        form: RowFormat,
        settings: Mapping[str, Any],
        resume: bool,
        population: Population,
    ) -> None:
        """Open it."""
        self.folder, self.settings = folder, dict(settings)
        self.data = None if folder is None else UsedData(population, folder)
        self.found: Checkpoint | None = None
        if folder is None:
            self.states, self.history = States(form), History(None)
            return
        private_folder(folder, ours=FILES)
        # First of all, as this waits for what is left of a killed run.
        self.states = States(form, folder / "states")
        try:
            self.found = found = load(folder / "checkpoint")
            if found is not None:
                if not resume:
                    raise ConfigError(
                        f"{folder} holds a run of {found.round} rounds",
                        mend="go on with it (resume=True, on the command line --resume), or give another folder",
                    )
                check_settings(found, settings, folder)
                assert self.data is not None
                self.data.resume(found.data)
                self.states.restore(found.devices, found.rows, found.digests)
            told = (found.history, found.history_digest) if found else ()
            self.history = History(folder / "history.jsonl", *told)
        except BaseException:
            self.states.close()
            raise

    def save(self, server: Server, *, lanes: int | None, stopped: bool) -> None:
        """Write a checkpoint; rows that only the one before it named may be used again."""
        if self.folder is not None:
            assert self.data is not None
            self.history.flush()
            self.states.flush()
            devices, rows = self.states.mapping()
            point = Checkpoint(
                self.settings,
                lanes,
                server.round,
                stopped,
                server.values,
                server.groups,
                server.sets,
                server.numbers,
                devices,
                rows,
                self.states.digests(),
                self.data.table(),
                self.history.size,
                self.history.digest,
            )
            save(self.folder / "checkpoint", point)
        self.states.commit()

    def close(self) -> None:
        """Let go of it."""
        self.states.close()
        self.history.close()
