"""What devices keep between rounds: one flat float32 row for each device that took part.

The rows are in one mapped file, so memory grows with the devices that took part, and most of it can be paged out.
A round writes the new state of a device into a free row; the old row is used again only after ``commit``, which
follows the checkpoint that names the new ones. So a process killed at any moment leaves the rows of the last
checkpoint as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.data.finite import finite
from pfl_mobile.errors import CheckpointError
from pfl_mobile.files.atomic import disk_errors
from pfl_mobile.plan.select import copy_key, select
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.simulation.shared import SharedFile

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.select import TensorEntry

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not told apart there
    fcntl = None  # type: ignore[assignment]

_ALIGN = 16  # values; rows begin at multiples of 64 bytes
_FIRST_ROWS = 16
_AGAIN = "put the whole folder of the run back, or start the run again in an empty folder"


def kept_shapes(plan: Plan, table: Sequence[TensorEntry]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a device must keep after the plan: tensors, then copies as ``copy_key``.

    Every trained tensor, whatever its role, that the plan does not begin by replacing with values from the
    server; and the copies in ``plan.keep``.
    """
    shapes = {t.name: tuple(t.shape) for t in table if t.update == "gradient"}
    replaced = _replaced(plan, table)
    kept = {name: shape for name, shape in sorted(shapes.items()) if name not in replaced}
    for copy, names in sorted(_copies(plan, table).items()):
        if plan.keep is None or copy in plan.keep:
            kept |= {copy_key(copy, name): shapes[name] for name in sorted(names)}
    return kept


def _replaced(plan: Plan, table: Sequence[TensorEntry]) -> set[str]:
    """Tensors that the plan overwrites before anything reads them."""
    names: set[str] = set()
    own = plan.made() | {"theta", "start"}
    for phase in plan.distinct_steps():
        if phase.takes_over is None or phase.takes_over in own:
            break
        names |= set(phase.tensors(table))
    return names


def _copies(plan: Plan, table: Sequence[TensorEntry]) -> dict[str, set[str]]:
    """The tensors of every copy that there may be."""
    found: dict[str, set[str]] = {}
    for copy, start in plan.copies.items():
        found.setdefault(copy, set()).update(select(start.group, table))
    for phase in plan.distinct_steps():
        if phase.makes_copy is not None:
            found.setdefault(phase.makes_copy, set()).update(phase.tensors(table))
    return found


class RowFormat:
    """How a state lies in a row. What a device does not have is NaN, which no state that it keeps contains.

    Args:
        shapes: as ``kept_shapes`` gives them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Lay the tensors out one after the other."""
        self.layout = UpdateLayout(shapes)
        self.size = self.layout.size
        self.stride = -(-self.size // _ALIGN) * _ALIGN
        self.parts: list[tuple[str | None, str, slice, tuple[int, ...]]] = []
        for key, place, shape in self.layout.items():
            _, copy, name = key.split(":", 2) if key.startswith("copy:") else ("", None, key)
            self.parts.append((copy, name, place, shape))

    def unpack(self, row: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Views on the tensors and copies that the row [size] holds."""
        tensors: dict[str, np.ndarray] = {}
        copies: dict[str, dict[str, np.ndarray]] = {}
        for copy, name, place, shape in self.parts:
            if place.start < place.stop and np.isnan(row[place.start]):
                continue
            value = row[place].reshape(shape)
            if copy is None:
                tensors[name] = value
            else:
                copies.setdefault(copy, {})[name] = value
        return tensors, copies

    def pack(
        self,
        row: np.ndarray,
        tensors: Mapping[str, np.ndarray],
        copies: Mapping[str, Mapping[str, np.ndarray]],
    ) -> str | None:
        """Write a state into the row [size]; the name of what is not finite, None when all is."""
        for copy, name, place, shape in self.parts:
            values = tensors if copy is None else copies.get(copy, {})
            if name not in values:
                row[place] = np.nan
                continue
            row[place].reshape(shape)[...] = values[name]
            if not finite(row[place]):
                return name if copy is None else f"{name} of the copy {copy}"
        return None


def row(number: int, stride: int, size: int, data: np.ndarray) -> np.ndarray:
    """Row ``number`` of the file's bytes, float32 [size]."""
    start = number * stride * 4
    return data[start : start + size * 4].view(np.float32)


class States:
    """The states of the devices that took part.

    Args:
        form: how a state lies in its row.
        path: file of the rows; None for memory without a name.
        wait: seconds to wait for processes of a killed run that still hold the file.

    Raises:
        CheckpointError: another run holds the file.
    """

    def __init__(self, form: RowFormat, path: Path | None = None, *, wait: float = 60.0) -> None:
        """Open the file; ``restore`` says which of its rows count."""
        self.form, self._path = form, path
        self._digests: dict[int, int] = {}
        self._untried: set[int] = set()
        if path is None:
            self.file = SharedFile()
        else:
            with disk_errors(path):
                self.file = SharedFile(path)
            _lock(self.file.fd, path, wait)
        self._current: dict[int, int] = {}
        self._free: list[int] = []
        self._superseded: list[int] = []
        self._fresh: set[int] = set()
        self._rows = 0

    def __len__(self) -> int:
        """How many devices have a state."""
        return len(self._current)

    def row(self, number: int) -> np.ndarray:
        """One row, float32 [size], writable."""
        return row(number, self.form.stride, self.form.size, self.file.bytes())

    def of(self, clients: Iterable[int]) -> list[int]:
        """The row of each device; -1 where it has none.

        Raises:
            CheckpointError: a row that is asked for the first time since ``restore`` is not what was saved.
        """
        rows = []
        for client in clients:
            number = self._current.get(client, -1)
            if client in self._untried:
                if self._digest(number) != self._digests[client]:
                    raise CheckpointError(
                        f"the state of device {client} in {self._path} does not match its digest", mend=_AGAIN
                    )
                self._untried.discard(client)
            rows.append(number)
        return rows

    def take(self, count: int) -> list[int]:
        """Free rows to write new states into; they count once ``adopt`` names them."""
        if self.form.size == 0:
            return [-1] * count
        missing = count - len(self._free)
        if missing > 0:
            first = self._rows
            self._rows = max(first + missing, _FIRST_ROWS)
            self.file.reserve(self._rows * self.form.stride * 4)
            self._rows = max(self._rows, self.file.size // (self.form.stride * 4))
            self._free = [*range(self._rows - 1, first - 1, -1), *self._free]
        return [self._free.pop() for _ in range(count)]

    def adopt(self, clients: Iterable[int], rows: Iterable[int]) -> None:
        """These rows are the devices' states now."""
        for client, number in zip(clients, rows, strict=True):
            if number < 0:
                continue
            old = self._current.get(client)
            if old in self._fresh:
                self._fresh.discard(old)
                self._free.append(old)
            elif old is not None:
                self._superseded.append(old)
            self._current[client] = number
            self._fresh.add(number)
            self._untried.discard(client)
            self._digests.pop(client, None)

    def give_back(self, rows: Iterable[int]) -> None:
        """Rows that were taken and not adopted."""
        self._free.extend(number for number in rows if number >= 0)

    def flush(self) -> None:
        """Put the rows onto the disk, so that a checkpoint may name them."""
        if self.form.size and self._fresh:
            with disk_errors("the file of the devices' states"):
                os.fsync(self.file.fd)

    def commit(self) -> None:
        """The present states are in a checkpoint: rows that they superseded may be used again."""
        self._free.extend(self._superseded)
        self._superseded.clear()
        self._fresh.clear()

    def mapping(self) -> tuple[np.ndarray, np.ndarray]:
        """Devices and their rows, int64 [m] each, for a checkpoint."""
        count = len(self._current)
        return np.fromiter(self._current, np.int64, count), np.fromiter(
            self._current.values(), np.int64, count
        )

    def digests(self) -> np.ndarray:
        """A digest of each row, in the order of ``mapping``, int64 [m]; only rows that are new are read."""
        for client, number in self._current.items():
            if client not in self._digests:
                self._digests[client] = self._digest(number)
        return np.fromiter((self._digests[client] for client in self._current), np.int64, len(self._current))

    def _digest(self, number: int) -> int:
        return int.from_bytes(hashlib.sha256(self.row(number).data).digest()[:8], "little", signed=True)

    def restore(self, devices: np.ndarray, rows: np.ndarray, digests: np.ndarray | None = None) -> None:
        """Go back to the states of a checkpoint; with ``digests`` each is tried when it is first asked for.

        Raises:
            CheckpointError: the file lacks rows.
        """
        self._rows = self.file.size // (self.form.stride * 4) if self.form.size else 0
        if len(rows) and int(rows.max()) >= self._rows:
            raise CheckpointError(
                f"the file of the devices' states has {self._rows} rows, the checkpoint names {int(rows.max()) + 1}",
                mend=_AGAIN,
            )
        self._current = dict(zip(devices.tolist(), rows.tolist(), strict=True))
        known = [] if digests is None else zip(devices.tolist(), digests.tolist(), strict=True)
        self._digests = dict(known)
        self._untried = set(self._digests)
        used = np.zeros(self._rows, bool)
        used[rows] = True
        self._free = np.flatnonzero(~used)[::-1].tolist()
        self._superseded, self._fresh = [], set()

    def close(self) -> None:
        """Let go of the file."""
        if fcntl is not None and self.file.fd >= 0:
            with contextlib.suppress(OSError):  # for workers too, which may have it open still but are idle
                fcntl.flock(self.file.fd, fcntl.LOCK_UN)
        self.file.close()

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.close()


def _lock(fd: int, path: Path, wait: float) -> None:
    """Hold the file as long as this process or a worker has it open."""
    if fcntl is None:
        return
    until = time.monotonic() + wait
    while True:
        try:
            # Workers inherit this lock with the descriptor: while one of a killed run still writes, we wait.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise CheckpointError(
                    f"another process is using {path.parent}",
                    mend="wait until it ends, or give another folder",
                ) from None
            time.sleep(0.05)
        except OSError:  # a file system without locks
            return
        else:
            return
