"""What a device keeps: credential, personal state, downloaded values, finished updates that wait to be sent.

    DIRECTORY/lock              held while a process uses the folder
    DIRECTORY/device.json       server, model, device id and credential; readable by the owner alone
    DIRECTORY/user.json         whose device it is, where one program serves several users
    DIRECTORY/personal/         the personal state, see ``local/state.py``
    DIRECTORY/sets/<sha256>     values as downloaded; ``.part`` while they arrive
    DIRECTORY/sent.json         what was sent under the device's own noise, see ``sent.py``
    DIRECTORY/queue/<task>.update, <task>.json     a finished update and what is to be done with it

Every file is replaced in one step, and an update is on the disk before its ``.json`` names it, so a process that is
killed at any moment leaves a folder to go on from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from pfl_mobile.device.sent import SentNoise
from pfl_mobile.errors import DeviceFolderError
from pfl_mobile.files.atomic import PRIVATE, atomic_write, disk_errors, open_private, private_folder
from pfl_mobile.files.reading import MOST_TENSOR_BYTES, read_bytes, read_json
from pfl_mobile.files.tensors import tensors_from_bytes
from pfl_mobile.local.state import ModelId, PersonalStateStore, note_user
from pfl_mobile.protocol.bodies import TaskPrivacy

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from pfl_mobile.protocol.bodies import Enrolled

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA_VERSION = 1
#: What only a device's folder holds.
_NAMES = ("lock", "device.json", "user.json", "sent.json", "personal", "queue")


@dataclass(frozen=True)
class Pending:
    """A finished task in the queue.

    Attributes:
        task: its id.
        round: its round.
        url: where the update goes.
        key: idempotency key of the upload.
        deadline: when it is of no use any more, by this device's clock.
        sha256, bytes: of the update.
        privacy: of the task, as JSON: what protects the update; for the policy of a later start.
        reports: names of the numbers that go along.
        evaluation: the report that goes after it, as JSON; None for none.
        adopts: version of the personal state that this task wrote and that is to serve; None for none.
        instead_of: the version that served before.
        copies: names of the copies whose change is sent; taken back where the update is not accepted.
        uploaded: whether the update is accepted, so that only the evaluation is left.
        server, device: of the membership that it was made for; it goes to no other. None in files of an earlier
            version.
    """

    task: str
    round: int
    url: str
    key: str
    deadline: float
    sha256: str
    bytes: int
    privacy: dict[str, Any]
    reports: tuple[str, ...]
    evaluation: dict[str, Any] | None = None
    adopts: int | None = None
    instead_of: int = 0
    copies: tuple[str, ...] = ()
    uploaded: bool = False
    server: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Membership:
    """A device's place in a federation.

    Attributes:
        server: address of the aggregator.
        device: its id there.
        credential: what it proves itself with.
    """

    server: str
    device: str
    credential: str


class DeviceFolder:
    """A device's folder, locked for this process. Close it, or use it in a ``with`` block.

    Args:
        directory: made when missing.
        model: what the device trains; a folder of another model is refused.
        user: whose device it is; a folder of another user is refused. None where every folder has the same user, as
            on a phone.

    Raises:
        DeviceFolderError: in use by another process, damaged, or of another model or user.
        UnwritableError: it cannot be written.
    """

    def __init__(self, directory: str | Path, model: ModelId, user: str | None = None) -> None:
        """Open and lock it."""
        self.directory, self.model = Path(directory), model
        private_folder(self.directory, ours=_NAMES)
        for folder in (self.sets, self.queue):
            private_folder(folder)
        with disk_errors(self.directory):
            self._lock = _lock(self.directory / "lock")
        try:
            self.membership = self._membership()
            if user is not None:
                note_user(self.directory, user, DeviceFolderError)
            self.sent = SentNoise(self.directory / "sent.json")
            self.personal = PersonalStateStore(self.directory / "personal", model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """The folder itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Unlock it."""
        self.close()

    def close(self) -> None:
        """Unlock it."""
        self._lock.close()

    @property
    def sets(self) -> Path:
        """Where downloaded values lie."""
        return self.directory / "sets"

    @property
    def queue(self) -> Path:
        """Where finished updates wait."""
        return self.directory / "queue"

    # -- the credential

    def join(self, server: str, enrolled: Enrolled) -> Membership:
        """Keep the credential; returns it."""
        self.membership = Membership(server, enrolled.device, enrolled.credential)
        model = [self.model.name, self.model.version, self.model.fingerprint]
        content = {"schema_version": SCHEMA_VERSION, "model": model, **asdict(self.membership)}
        atomic_write(self.directory / "device.json", _json(content), mode=PRIVATE)
        return self.membership

    def forget(self) -> None:
        """Remove the credential."""
        with disk_errors(self.directory):
            (self.directory / "device.json").unlink(missing_ok=True)
        self.membership = None

    def _membership(self) -> Membership | None:
        path = self.directory / "device.json"
        try:
            found = read_json(path)
            model, version = ModelId(*found.pop("model")), found.pop("schema_version")
            membership = Membership(**found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DeviceFolderError(
                f"{path} is damaged: {error}", mend="remove the file to enrol as a new device"
            ) from error
        if version != SCHEMA_VERSION:
            raise DeviceFolderError(
                f"{path} has schema {version}, this version reads {SCHEMA_VERSION}", mend="update pfl-mobile"
            )
        if model != self.model:
            raise DeviceFolderError(
                f"{self.directory} belongs to a device with model {model.name} {model.version}"
                + (" (its tensors differ)" if model.name == self.model.name else ""),
                mend="use its bundle, or another folder for this one",
            )
        return membership

    # -- downloaded values

    def set_path(self, sha256: str) -> Path:
        """Where the values with this digest lie, or will."""
        return self.sets / sha256

    def load_set(self, sha256: str) -> dict[str, np.ndarray] | None:
        """Downloaded values; None when they are not there. A damaged file is removed and counts as not there.

        Raises:
            NonFiniteError: a value is NaN or infinite.
            TensorFileError: what was sent is no safetensors file.
        """
        path = self.set_path(sha256)
        try:
            data = read_bytes(path, MOST_TENSOR_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink()
            return None
        return tensors_from_bytes(data, finite=True, what=f"set {sha256[:12]}...")

    def keep_sets(self, digests: Iterable[str]) -> None:
        """Remove all downloaded values but these."""
        kept = set(digests)
        with disk_errors(self.sets):
            for path in self.sets.iterdir():
                if path.name.removesuffix(".part") not in kept:
                    path.unlink()

    # -- the queue

    def put(self, pending: Pending, update: bytes) -> None:
        """Keep a finished update until it is sent; after this a crash does not lose it.

        Raises:
            StorageFullError: the disk is full; the queue is as it was.
        """
        atomic_write(self.update_path(pending.task), update, mode=PRIVATE)
        self.change(pending)

    def change(self, pending: Pending, **changes: Any) -> Pending:
        """Replace fields of what is in the queue; returns what is there then."""
        pending = replace(pending, **changes)
        content = {"schema_version": SCHEMA_VERSION, **asdict(pending)}
        atomic_write(self.queue / f"{pending.task}.json", _json(content), mode=PRIVATE)
        return pending

    def remove(self, task: str) -> None:
        """Forget a task; no error when it is not there."""
        with disk_errors(self.queue):
            (self.queue / f"{task}.json").unlink(missing_ok=True)
            self.update_path(task).unlink(missing_ok=True)

    def revert(self, version: int | None = None) -> int:
        """Make an earlier version of the personal state serve; returns its number.

        What a killed process was about to let serve no longer will.

        Args:
            version: which; 0 for the shipped values; None for the one before the current.

        Raises:
            StateError: there is no such version, or it is damaged.
        """
        self.adopt_nothing()
        return self.personal.revert(version)

    def adopt_nothing(self) -> None:
        """What serves now goes on to, whatever a killed process was about to let serve."""
        for pending in self.pending()[0]:
            if pending.adopts is not None:
                self.change(pending, adopts=None)

    def update_path(self, task: str) -> Path:
        """Where the update of a task lies."""
        return self.queue / f"{task}.update"

    def pending(self) -> tuple[list[Pending], list[str]]:
        """What waits to be sent, the oldest round first, and the tasks whose entries are damaged."""
        found, damaged = list[Pending](), list[str]()
        for path in self.queue.glob("*.json"):
            try:
                raw = read_json(path, finite=False)
                if raw.pop("schema_version") != SCHEMA_VERSION:
                    raise ValueError("another schema")
                entry = Pending(**{**raw, **{name: tuple(raw[name]) for name in ("copies", "reports")}})
                TaskPrivacy.model_validate(entry.privacy)
                if not entry.uploaded and not self._intact(entry):
                    raise ValueError("the update is damaged")
            except OSError as error:  # it may be there another time, so nothing is thrown away
                raise unreadable(path, error) from error
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged.append(path.stem)
                continue
            found.append(entry)
        known = {p.task for p in found} | set(damaged)
        for path in self.queue.glob("*.update"):  # of a process killed before it could write the entry
            if path.stem not in known:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        return sorted(found, key=lambda p: (p.round, p.task)), sorted(damaged)

    def _intact(self, entry: Pending) -> bool:
        try:
            data = read_bytes(self.update_path(entry.task), MOST_TENSOR_BYTES)
        except FileNotFoundError:
            return False
        return len(data) == entry.bytes and hashlib.sha256(data).hexdigest() == entry.sha256


def unreadable(path: Path, error: OSError) -> DeviceFolderError:
    """What is raised where a file of a device cannot be read."""
    return DeviceFolderError(
        f"{path} cannot be read: {error.strerror or error}",
        mend="check what is there and its permissions; if it is no file of this device, remove it",
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _lock(path: Path) -> IO[bytes]:
    """Take a lock that ends with the process.

    Raises:
        DeviceFolderError: another process has it.
    """
    file = open(path, "ab", opener=open_private)  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if sys.platform == "linux":  # the kind of lock that Java takes, which does not see flock's
                fcntl.fcntl(
                    file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                )
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        file.close()
        if not isinstance(error, BlockingIOError | PermissionError):
            raise
        raise DeviceFolderError(
            f"{path.parent} is in use by another process",
            mend="one process for each device: wait for the other, or give another folder",
        ) from error
    return file
