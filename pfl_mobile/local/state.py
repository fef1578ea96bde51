"""The personal state on disk: numbered versions, one of them current, each swap atomic.

    DIRECTORY/CURRENT              the number of the adopted version; 0 or no file: the shipped values
    DIRECTORY/000007.safetensors   tensors; ``copy:<copy>:<tensor>`` for copies; the rest in the metadata
    DIRECTORY/checkpoint           training under way, see ``trainer.py``
    DIRECTORY/FORGOTTEN            words that must not be learned again, see ``blocked.py``
    DIRECTORY/user.json            whose state it is, where one program serves several users

A version is written and flushed before CURRENT names it, so a process killed at any moment leaves the last
good state. Every version carries a digest of all it holds. A damaged current version is never used: ``load``
falls back to the version before it and says so in ``Loaded.warnings``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import NewerFileError, PflError, StateError, TensorFileError
from pfl_mobile.files.atomic import (
    PRIVATE,
    atomic_write,
    disk_errors,
    held,
    private_folder,
    remove_stale,
    sync_folder,
)
from pfl_mobile.files.reading import MOST_TENSOR_BYTES, read_bytes, read_json
from pfl_mobile.files.sealed import damaged_head, seal, unseal
from pfl_mobile.plan.select import TensorEntry, copy_key
from pfl_mobile.text.blocked import BlockList

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

FORMAT = "pfl-personal-state"
SCHEMA_VERSION = 1
#: Of a version: every language holds the number, and no device saves as often.
_MOST_DIGITS = 9
#: Seconds to wait for another process that changes a state.
_WAIT_S = 2.0
#: What only a folder of personal states holds.
_NAMES = ("CURRENT", "[0-9]*.safetensors", "checkpoint", "user.json")


def note_user(folder: Path, user: str, refused: type[PflError]) -> None:
    """Refuse the folder of another user; note the user of one that has none.

    Args:
        folder: that is there.
        user: whose it must be.
        refused: raised where it is not.
    """
    path = folder / "user.json"
    try:
        found = read_json(path)["user"]
    except FileNotFoundError:
        atomic_write(path, (json.dumps({"user": user}, indent=1) + "\n").encode(), mode=PRIVATE)
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise refused(
            f"{path} is damaged: {error}",
            mend=f"remove it if the folder is {user!r}'s, else give another folder",
        ) from error
    if found != user:
        raise refused(
            f"{folder} holds the personal state of user {found!r}, not of {user!r}",
            mend="give another folder for each user",
        )


def _is_device(folder: Path) -> bool:
    """Whether a folder is that of a device (``device/store.py``), in which the personal state is a part."""
    return (folder / "queue").is_dir() and (folder / "personal").is_dir()


@dataclass(frozen=True)
class ModelId:
    """Which model a state belongs to.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        fingerprint: sha256 of the tensor table and of the frozen weights, see ``of``.
    """

    name: str
    version: str
    fingerprint: str

    @classmethod
    def of(
        cls, name: str, version: str, tensors: Iterable[TensorEntry], frozen_sha256: str | None = None
    ) -> ModelId:
        """The id of a bundle: the fingerprint is over lines ``name<TAB>role<TAB>update<TAB>dtype<TAB>2,3``,
        in order of name, each ended by a newline, in UTF-8; then ``frozen_sha256`` of the manifest where it has
        one, so that a state of other frozen weights is refused even when the version was not raised.
        """
        lines = sorted(
            "\t".join((t.name, t.role, t.update, t.dtype, ",".join(map(str, t.shape)))) + "\n"
            for t in tensors
        )
        return cls(
            name, version, hashlib.sha256(("".join(lines) + (frozen_sha256 or "")).encode()).hexdigest()
        )


@dataclass(frozen=True)
class PersonalState:
    """What personalization changed.

    Attributes:
        tensors: every device tensor by name.
        copies: copies of tensors that phases train, by copy and tensor (Ditto, APFL).
        words: the user's words in slot order.
        metrics: measured when the state was adopted.
    """

    tensors: Mapping[str, np.ndarray]
    copies: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StateWarning:
    """Something that ``load`` repaired and the app should tell or report.

    Attributes:
        version: the version that could not be used.
        message: what is wrong with it.
        used: the version used in its place; 0 = the shipped values.
    """

    version: int
    message: str
    used: int


@dataclass(frozen=True)
class Loaded:
    """The current state; ``state`` is None and ``version`` 0 while the shipped values serve."""

    state: PersonalState | None
    version: int
    warnings: tuple[StateWarning, ...] = ()


@dataclass(frozen=True)
class VersionInfo:
    """One saved version.

    Attributes:
        version: its number.
        parent: the version that was current when it was saved.
        created: seconds since 1970.
        metrics: measured at its adoption.
        current: whether it serves now.
        problem: why it cannot be used; None when it is good.
    """

    version: int
    parent: int
    created: float
    metrics: Mapping[str, float]
    current: bool
    problem: str | None = None


class PersonalStateStore:
    """The versions of one device's personal state; one thread at a time. Other processes are kept out by `hold`.

    Args:
        directory: made when missing.
        model: what the states must belong to.
        keep: how many versions stay; the current one and its parent always do.
        clock: seconds since 1970.
        user: whose state it is; a folder of another user is refused. None where every folder has the same user, as on
            a phone.

    Raises:
        StateError: the folder is another user's, or that of a device.
        UnwritableError: it cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: ModelId,
        *,
        keep: int = 5,
        clock: Callable[[], float] = time.time,
        user: str | None = None,
    ) -> None:
        """Open the directory."""
        self.directory = Path(directory)
        self.model = model
        self.keep = max(keep, 1)
        self._clock = clock
        self._holding = 0
        if _is_device(self.directory):
            raise StateError(
                f"{self.directory} is the folder of a device",
                mend=f"its personal state is in {self.directory / 'personal'}",
            )
        private_folder(self.directory, ours=_NAMES)
        if user is not None:
            above = self.directory.parent
            of_device = self.directory.name == "personal" and _is_device(above)
            owner = above if of_device else self.directory
            if self._numbers() and not (owner / "user.json").exists():
                warnings.warn(
                    f"{self.directory} does not say whose personal state it holds; from now on it is {user!r}'s",
                    UserWarning,
                    stacklevel=2,
                )
            note_user(owner, user, StateError)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from changing the state meanwhile; what changes it here does so by itself.

        Raises:
            StateError: another process is changing it, and does not end soon.
        """
        with contextlib.ExitStack() as stack:
            if not self._holding:
                with disk_errors(self.directory):
                    free = stack.enter_context(held(self.directory, _WAIT_S))
                if not free:
                    raise StateError(
                        f"the personal state in {self.directory} is in use by another process",
                        mend="wait until that has ended, or give another folder",
                    )
            self._holding += 1
            try:
                yield
            finally:
                self._holding -= 1

    @property
    def current(self) -> int:
        """Number of the adopted version; 0 = the shipped values."""
        try:
            text = read_bytes(self.directory / "CURRENT", 100).decode("ascii")
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged_pointer(error) from error
        if not (text.strip().isdecimal() and len(text.strip()) <= _MOST_DIGITS):
            raise self._damaged_pointer(repr(text[:20]))
        return int(text.strip())

    def save(self, state: PersonalState) -> int:
        """Write ``state`` as a new version and make it current; returns its number.

        Raises:
            StorageFullError: the disk is full; the last good state stays.
            NonFiniteError: a tensor is NaN or infinite; nothing is written.
        """
        with self.hold():
            self._prune(self.current)  # a process killed before it could prune leaves versions behind
            version = self.write(state)
            self._point_to(version)
            self._prune(version)
        return version

    def write(self, state: PersonalState) -> int:
        """Write ``state`` as a new version without making it current.

        Raises:
            StateError: it holds a word that was forgotten while this state was trained.
        """
        with self.hold():
            blocked = self.blocked
            if any(blocked.hides(word) for word in state.words):
                raise StateError(
                    "a word of this state was forgotten while it was trained; it is not saved",
                    mend="train again",
                )
            version = max([*self._numbers(), self.current]) + 1
            atomic_write(self._path(version), self._encode(state, self.current), mode=PRIVATE)
        return version

    def adopt(self, version: int) -> None:
        """Make a version current that ``write`` made.

        Raises:
            StateError: there is no such version; nothing changes.
        """
        with self.hold():
            if version not in self._numbers():
                raise StateError(f"there is no version {version} to adopt", mend="write it first")
            self._point_to(version)
            self._prune(version)

    def read(self, version: int) -> PersonalState:
        """A saved version, current or not.

        Raises:
            StateError: there is no such version, or it is damaged or of another model.
        """
        return self._read(version)[0]

    def load(self) -> Loaded:
        """The current state.

        Raises:
            StateError: it belongs to another model or a newer schema, or it and all before it are damaged.
        """
        version, problems = self.current, list[tuple[int, str]]()
        first = version
        while version:
            try:
                state, _ = self._read(version)
            except _DamagedError as error:
                problems.append((version, error.message))
                version = self._before(version)
                continue
            return Loaded(state, version, tuple(StateWarning(v, m, version) for v, m in problems))
        if problems:
            raise StateError(
                f"no usable personal state in {self.directory}: version {first}: {problems[0][1]}",
                mend="call reset() to go back to the shipped values, or restore the folder from a backup",
            )
        return Loaded(None, 0)

    def versions(self) -> list[VersionInfo]:
        """All saved versions, oldest first, damaged ones with their problem."""
        out: list[VersionInfo] = []
        try:
            current = self.current
        except StateError:  # load() reports it; the versions can still be listed
            current = -1
        for number in self._numbers():
            try:
                _, head = self._read(number)
                info = (int(head["parent"]), float(head["created"]), head["metrics"], number == current)
                out.append(VersionInfo(number, *info))
            except StateError as error:
                out.append(VersionInfo(number, 0, 0.0, {}, number == current, error.message))
        return out

    def revert(self, version: int | None = None) -> int:
        """Make an earlier version current; returns its number.

        Args:
            version: which; 0 for the shipped values; None for the one before the current.

        Raises:
            StateError: there is no such version, or it is damaged; nothing changes.
        """
        with self.hold():
            if version is None:
                if self.current == 0:
                    raise StateError(
                        "the shipped values serve; nothing is before them", mend="give a version"
                    )
                version = self._before(self.current)
            if version:
                if version not in self._numbers():
                    known = ", ".join(map(str, self._numbers())) or "none"
                    raise StateError(
                        f"there is no version {version}", mend=f"saved versions: {known}; 0 = shipped"
                    )
                self._read(version)
            self._point_to(version)
        return version

    def reset(self) -> None:
        """Go back to the shipped values; the versions stay and can be reverted to."""
        with self.hold():
            self._point_to(0)

    @property
    def blocked(self) -> BlockList:
        """Words that must not be learned again; empty and not saved while there are none.

        Raises:
            StateError: the list is damaged. It is never taken for empty.
        """
        path = self.directory / "FORGOTTEN"
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return BlockList()
        except OSError as error:
            raise StateError(
                f"cannot read {path}: {error.strerror or error}", mend="check that the file may be read"
            ) from error
        return BlockList.from_json(data, str(path))

    def block(self, words: Iterable[str]) -> None:
        """Never learn these words (pieces of the tokenizer) again; ``local.forget`` takes out what was learned."""
        with self.hold():
            blocked = self.blocked.plus(words)
            atomic_write(self.directory / "FORGOTTEN", blocked.to_json(), mode=PRIVATE)

    def rewrite(self, change: Callable[[PersonalState], PersonalState]) -> tuple[int, ...]:
        """Put ``change(state)`` in the place of every version, under the same number, parent and time.

        Nothing of what was there before stays: a checkpoint, versions that are damaged and leftovers of killed
        processes are removed. (The system may keep the bytes of removed files until it needs their place.)

        Returns:
            Numbers of the versions.

        Raises:
            StateError: a version is of another model or newer, or none that should serve can be used; nothing changes.
            StorageFullError: the disk is full; some versions may be as before. Call again once there is space.
        """
        with self.hold():
            return self._rewrite(change)

    def _rewrite(self, change: Callable[[PersonalState], PersonalState]) -> tuple[int, ...]:
        serves = self.load().version
        read: dict[int, tuple[PersonalState, dict[str, Any]]] = {}
        for number in self._numbers():
            try:
                read[number] = self._read(number)
            except _DamagedError:
                continue
        with disk_errors(self.directory):
            self.checkpoint_path().unlink(missing_ok=True)
        if serves != self.current:
            self._point_to(serves)
        for number, (state, head) in read.items():
            data = self._encode(change(state), int(head["parent"]), float(head["created"]))
            atomic_write(self._path(number), data, mode=PRIVATE)
        with disk_errors(self.directory):
            for number in self._numbers():
                if number not in read:
                    remove_stale(self._path(number))
                    self._path(number).unlink()
            for path in self.directory.glob(".*.tmp"):
                remove_stale(path.with_name(path.name[1:].rsplit(".", 2)[0]))
            sync_folder(self.directory)
        return tuple(read)

    def erase(self) -> None:
        """Delete every version, checkpoint and forgotten word: nothing personal is left."""
        with self.hold(), disk_errors(self.directory):
            # the pointer first, as nothing serves without it; no file is written, as the disk may be full
            (self.directory / "CURRENT").unlink(missing_ok=True)
            for path in self.directory.iterdir():
                if path.is_file():
                    path.unlink()
            sync_folder(self.directory)

    def carry_over(self, *, same_weights: bool, discard: bool = False) -> None:
        """Take over what an earlier version of the same bundle learned.

        Versions with the same fingerprint are rewritten under this model's id, each in one step, so that a process
        killed on the way goes on with the rest.

        Args:
            same_weights: whether an equal fingerprint says that the frozen weights are equal (the manifest has their
                digest); else the tensors may be the same by chance.
            discard: remove versions that do not fit, rather than leaving them to be refused; forgotten words stay.

        Raises:
            StorageFullError: the disk is full; call again once there is space.
        """
        with self.hold():
            gone = []
            for number in self._numbers():
                try:
                    found, state, head = self._parts_of(number)
                except StateError:  # load() reports it
                    continue
                if found == self.model:
                    continue
                if same_weights and found == replace(self.model, version=found.version):
                    data = self._encode(state, int(head["parent"]), float(head["created"]))
                    atomic_write(self._path(number), data, mode=PRIVATE)
                elif discard:
                    gone.append(number)
            if not gone:
                return
            if self.current in gone:
                self._point_to(0)
            with disk_errors(self.directory):
                self.checkpoint_path().unlink(missing_ok=True)
                for number in gone:
                    self._path(number).unlink()

    def checkpoint_path(self) -> Path:
        """Where training under way is kept."""
        return self.directory / "checkpoint"

    def _encode(self, state: PersonalState, parent: int, created: float | None = None) -> bytes:
        tensors = dict(state.tensors)
        for copy, values in state.copies.items():
            tensors.update({copy_key(copy, name): value for name, value in values.items()})
        head = {
            "schema_version": SCHEMA_VERSION,
            "model": [self.model.name, self.model.version, self.model.fingerprint],
            "parent": parent,
            "created": self._clock() if created is None else created,
            "words": list(state.words),
            "metrics": {name: value for name, value in state.metrics.items() if math.isfinite(value)},
        }
        return seal(tensors, json.dumps(head, sort_keys=True), form=FORMAT, finite=True)

    def _parts_of(self, version: int) -> tuple[ModelId, PersonalState, dict[str, Any]]:
        """Model, state and head of a version, of whatever model."""
        path = self._path(version)
        try:
            tensors, head = unseal(
                read_bytes(path, MOST_TENSOR_BYTES),
                form=FORMAT,
                schema_version=SCHEMA_VERSION,
                what=str(path),
            )
            with damaged_head(str(path)):
                return _parts(tensors, head)
        except NewerFileError as error:
            raise StateError(error.message, mend=error.mend) from error
        except (OSError, TensorFileError) as error:
            raise _DamagedError(str(getattr(error, "message", error))) from error

    def _read(self, version: int) -> tuple[PersonalState, dict[str, Any]]:
        model, state, head = self._parts_of(version)
        path = self._path(version)
        if model != self.model:
            other = " (its tensors differ)" if model.name == self.model.name else ""
            raise StateError(
                f"{path} belongs to model {model.name} {model.version}, not to {self.model.name} "
                f"{self.model.version}{other if model.version == self.model.version else ''}",
                mend="use the bundle it was trained with, or another folder for this one",
            )
        return state, head

    def _before(self, version: int) -> int:
        """The version to go back to: the parent, else the newest older one, else 0."""
        older = [n for n in self._numbers() if n < version]
        try:
            parent = int(self._read(version)[1]["parent"])
        except StateError:
            return max(older, default=0)
        return parent if parent == 0 or parent in older else max(older, default=0)

    def _numbers(self) -> list[int]:
        names = (p.name.removesuffix(".safetensors") for p in self.directory.glob("*.safetensors"))
        return sorted(int(n) for n in names if n.isdecimal())

    def _path(self, version: int) -> Path:
        return self.directory / f"{version:06d}.safetensors"

    def _point_to(self, version: int) -> None:
        atomic_write(self.directory / "CURRENT", f"{version}\n".encode(), mode=PRIVATE)

    def _prune(self, current: int) -> None:
        numbers = self._numbers()
        safe = {current, self._before(current) if current else 0} | set(numbers[-self.keep :])
        with disk_errors(self.directory):
            for number in numbers:
                if number not in safe:
                    self._path(number).unlink()

    def _damaged_pointer(self, why: object) -> StateError:
        return StateError(
            f"{self.directory / 'CURRENT'} is damaged: {why}",
            mend="call revert(VERSION) with one of versions(), or reset()",
        )


def _parts(
    tensors: dict[str, np.ndarray], head: dict[str, Any]
) -> tuple[ModelId, PersonalState, dict[str, Any]]:
    """Model, state and typed head of a version file; anything may be raised where a part is not as written."""
    name, version, fingerprint = head["model"]
    if not all(isinstance(part, str) for part in (name, version, fingerprint, *head["words"])):
        raise TypeError("a name or word is no text")
    if not isinstance(head["words"], list):
        raise TypeError("the words are no list")
    own = {n: v for n, v in tensors.items() if not n.startswith("copy:")}
    copies: dict[str, dict[str, np.ndarray]] = {}
    for key in tensors.keys() - own.keys():
        _, copy, tensor = key.split(":", 2)
        copies.setdefault(copy, {})[tensor] = tensors[key]
    metrics = {metric: float(value) for metric, value in head["metrics"].items()}
    typed = {**head, "parent": int(head["parent"]), "created": float(head["created"]), "metrics": metrics}
    return (
        ModelId(name, version, fingerprint),
        PersonalState(own, copies, tuple(head["words"]), metrics),
        typed,
    )


class _DamagedError(StateError):
    """A version file that does not hold what was written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, mend="revert to another version")

    @property
    @override
    def code(self) -> str:
        """That of every state that cannot be used: this class is nobody else's."""
        return StateError.__name__
