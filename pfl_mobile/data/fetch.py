"""Getting a dataset: from the cache, from a local file, or from where it is published."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pfl_mobile.data import cache, jsonl
from pfl_mobile.data.registry import Dataset, Progress, find, names, silent
from pfl_mobile.data.usertext import UserText
from pfl_mobile.errors import DataError, UnknownNameError, near


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", mend="check the path after --from") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", mend="give a readable file") from error


def get(name: str, from_file: str | Path | None = None, progress: Progress | None = None) -> UserText:
    """A registered dataset, parsed.

    Looks in the cache first, unless ``from_file`` is given. Calling it again after a crash is safe.

    Args:
        name: one of :func:`names`.
        from_file: the source file, already on this machine.
        progress: called with a line and a fraction, often.

    Raises:
        UnknownNameError: no dataset has this name.
        DataError: the file is missing, damaged, or another file than the pinned one.
        NetworkError: it could not be downloaded.
        MissingDependencyError: the tool that downloads it is not installed.
    """
    dataset = find(name)
    report = progress or silent
    if from_file is None:
        cached = cache.read(dataset)
        if cached is not None:
            report(f"{name}: in the cache", 1.0)
            return cached
        if dataset.obtain is None:
            raise DataError(f"{name} is not here and cannot be downloaded automatically", mend=dataset.where)
        with cache.workplace() as folder:
            report(f"{name}: downloading", None)
            return _store(dataset, dataset.obtain(folder, report), report)
    return _store(dataset, Path(from_file).expanduser(), report)


def load(source: str | Path, progress: Progress | None = None) -> UserText:
    """A dataset by name, or the messages of a JSONL file.

    A registered name wins over a file of that name (write ``./sotu`` for the file).

    Raises:
        UnknownNameError: it is neither a known name nor a file.
    """
    if str(source) in names():
        return get(str(source), progress=progress)
    path = Path(source).expanduser()
    if path.is_file():
        return jsonl.read(path)
    raise UnknownNameError(
        f"{str(source)!r} is neither a dataset nor a file here",
        mend=f"{near(str(source), names())} (a file of your own has JSONL lines with user and text)",
    )


def _store(dataset: Dataset, path: Path, progress: Progress) -> UserText:
    digest = sha256_of(path)
    if digest not in dataset.files:
        wanted = "; ".join(f"{sha} ({what})" for sha, what in dataset.files.items())
        raise DataError(
            f"{path} is not the file that {dataset.name} is read from: its sha256 is {digest}, not {wanted}",
            mend=f"the file may be damaged or another version; {dataset.where}",
        )
    progress(f"{dataset.name}: reading", 0.0)
    data = UserText.collect(dataset.name, dataset.parse(path, progress))
    cache.write(dataset, data)
    progress(f"{dataset.name}: {len(data.users)} users, {data.messages} messages", 1.0)
    return data
