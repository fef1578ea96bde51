"""Parsed datasets on disk, written so that a killed process leaves nothing half done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from pfl_mobile.data.registry import ArrayDataset, Dataset, PublishedDataset, Table
from pfl_mobile.data.usertext import Left, Message, UserText
from pfl_mobile.errors import DataError
from pfl_mobile.files.cache_dir import cache_dir

_STALE_SECONDS = 24 * 3600.0


def path_of(dataset: PublishedDataset) -> Path:
    """Where the parsed form of a dataset lies; another source file or parser has another name."""
    key = hashlib.sha256("|".join([str(dataset.version), *sorted(dataset.files)]).encode()).hexdigest()[:12]
    kind = "npz" if isinstance(dataset, ArrayDataset) else "jsonl"
    return cache_dir() / "data" / f"{dataset.name}-{key}.{kind}"


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A fresh folder inside the cache for downloads, removed at the end.

    Folders that killed processes left more than a day ago are removed as well.

    Raises:
        DataError: the cache folder cannot be written.
    """
    base = cache_dir() / "data"
    try:
        base.mkdir(parents=True, exist_ok=True)
        for old in base.glob(".partial-*"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=base))
    except OSError as error:
        raise _cannot_write(base, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(dataset: Dataset, data: UserText) -> Path:
    """Store parsed data; readers see either the old file, none, or all of the new one."""
    with _replacing(dataset) as out:
        left = None if data.left_out is None else [[*key, count] for key, count in data.left_out.items()]
        head = {"dataset": dataset.name, "messages": data.messages, "left_out": left}
        out.write((json.dumps(head) + "\n").encode())
        for user, messages in data.users.items():
            for m in messages:
                out.write((json.dumps([user, m.text, m.time], ensure_ascii=False) + "\n").encode())
    return path_of(dataset)


def write_table(dataset: ArrayDataset, table: Table) -> Path:
    """Store a parsed table, as ``write`` does."""
    with _replacing(dataset) as out:
        save: Callable[..., None] = np.savez  # newer numpy types an option of its own among the columns
        save(out, **table)
    return path_of(dataset)


@contextlib.contextmanager
def _replacing(dataset: PublishedDataset) -> Iterator[IO[bytes]]:
    """A new file that takes the place of the cached one when all of it is written."""
    target = path_of(dataset)
    with workplace() as folder:
        part = folder / "parsed"
        try:
            with part.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        except OSError as error:
            raise _cannot_write(target.parent, error) from error


def read(dataset: Dataset) -> UserText | None:
    """The parsed data, or None where it is not cached or the cached file is damaged."""
    try:
        with path_of(dataset).open(encoding="utf-8") as lines:
            head = json.loads(next(lines))
            grouped: dict[str, list[Message]] = {}
            for line in lines:
                user, text, moment = json.loads(line)
                grouped.setdefault(user, []).append(Message(text, moment))
        left = head.get("left_out")  # older versions did not count
        counted = None if left is None else {Left(reason, user): int(n) for reason, user, n in left}
    except (OSError, ValueError, StopIteration, AttributeError, TypeError):
        return None
    data = UserText(dataset.name, {u: tuple(m) for u, m in grouped.items()}, counted)
    complete = head.get("messages") == data.messages
    return data if complete else None


def read_table(dataset: ArrayDataset) -> dict[str, np.ndarray] | None:
    """The parsed table, or None where it is not cached or the cached file is damaged."""
    try:
        with np.load(path_of(dataset), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception:  # NumPy, zipfile and zlib share no base for a damaged file; it is made anew
        return None


def _cannot_write(folder: Path, error: OSError) -> DataError:
    mend = "set PFL_CACHE to a folder that can be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "free some space there (about 100 MB are enough), or set PFL_CACHE to a folder on another disk"
    return DataError(f"cannot write to the data cache {folder}: {error.strerror or error}", mend=mend)
