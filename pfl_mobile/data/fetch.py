"""Getting a dataset: from the cache, from a local file, or from where it is published."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pfl_mobile.data import cache, jsonl
from pfl_mobile.data.populations import TextPopulation
from pfl_mobile.data.registry import (
    DATASETS,
    ArrayDataset,
    Dataset,
    Generator,
    Progress,
    PublishedDataset,
    RegisteredDataset,
    Table,
    find,
    names,
    silent,
)
from pfl_mobile.data.usertext import UserText
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, near

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population

Parsed = TypeVar("Parsed")


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
    """A registered dataset of messages, parsed.

    Looks in the cache first, unless ``from_file`` is given. Calling it again after a crash is safe.

    Args:
        name: one of :func:`names`.
        from_file: the source file, already on this machine.
        progress: called with a line and a fraction, often.

    Raises:
        UnknownNameError: no dataset has this name.
        ConfigError: the dataset has numbers, not messages (see :func:`population`).
        DataError: the file is missing, damaged, or another file than the pinned one.
        NetworkError: it could not be downloaded.
        MissingDependencyError: the tool that downloads it is not installed.
    """
    dataset = find(name)
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"{name} has numbers by user, not messages",
            mend=f"use pfl_mobile.data.population({name!r}) for its users",
        )
    report = progress or silent
    parse, unique = dataset.parse, dataset.unique
    return _cached(
        dataset,
        from_file,
        report,
        lambda: cache.read(dataset),
        lambda path: UserText.collect(name, parse(path, report), unique=unique),
        lambda data: cache.write(dataset, data),
        lambda data: "; ".join(
            filter(None, [f"{len(data.users)} users, {data.messages} messages", data.words_left_out()])
        ),
    )


def table(
    dataset: ArrayDataset, from_file: str | Path | None = None, progress: Progress | None = None
) -> Table:
    """What the source of a dataset of numbers holds, column by column; cache, files and errors as in :func:`get`."""
    report = progress or silent
    return _cached(
        dataset,
        from_file,
        report,
        lambda: cache.read_table(dataset),
        lambda path: dataset.parse(path, report),
        lambda data: cache.write_table(dataset, data),
        lambda data: f"{max(len(column) for column in data.values())} rows",
    )


def population(
    name: str, *, from_file: str | Path | None = None, progress: Progress | None = None, **options: Any
) -> Population:
    """The users of a registered dataset, for a study.

    Args:
        name: one of :func:`names`.
        from_file: the source file, already on this machine.
        progress: called with a line and a fraction, often.
        options: those of the dataset: the keyword arguments of its ``build`` function, or ``encoder``,
            ``fraction`` and ``groups`` of :class:`TextPopulation` where the dataset has messages.

    Raises:
        UnknownNameError: no dataset has this name, or the dataset no such option.
        ConfigError: an option is missing or has an impossible value, or a generated dataset is given a file.
        DataError, NetworkError, MissingDependencyError: as for :func:`get`.
    """
    entry = find(name)
    if isinstance(entry, Dataset):
        if "encoder" not in options:
            raise ConfigError(
                f"{name} has messages, so a model of numbers cannot take it; its users need the option 'encoder'",
                mend=f"take a study of messages: `pfl train keyboard --data {name}`, or a project of your own by "
                f"`pfl init NAME --template keyboard`; in Python data.population({name!r}, encoder=TextEncoder(...))",
            )
        _check_options(entry, TextPopulation, options, 1)
        return TextPopulation(get(name, from_file, progress), **options)
    if isinstance(entry, ArrayDataset):
        _check_options(entry, entry.build, options, 1)
        return entry.build(table(entry, from_file, progress), **options)
    assert isinstance(entry, Generator)
    _check_options(entry, entry.build, options, 0)
    if from_file is not None:
        raise ConfigError(f"{name} is generated, not read from {from_file}", mend="leave the file out")
    return entry.build(**options)


def _check_options(
    entry: RegisteredDataset, build: Callable[..., Any], options: Mapping[str, object], given: int
) -> None:
    """Refuse options that ``build`` does not have; ``given`` of its first parameters are not options."""
    known = list(inspect.signature(build).parameters.values())[given:]
    for option in options:
        if option not in {p.name for p in known}:
            raise UnknownNameError(
                f"{entry.name} has no option {option!r}", mend=near(option, (p.name for p in known))
            )
    missing = [p.name for p in known if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"{entry.name} needs the option {missing[0]!r}", mend=f"give {missing[0]}=...")


def load(source: str | Path, progress: Progress | None = None, *, unique: bool = False) -> UserText:
    """A dataset by name, or the messages of a JSONL file.

    A registered name wins over a file of that name (write ``./sotu`` for the file).

    Args:
        source: the name or the path.
        progress: called with a line and a fraction, often.
        unique: leave out a user's repeated messages of a file. A dataset says itself whether it needs that.

    Raises:
        UnknownNameError: it is neither a known name nor a file.
    """
    if str(source) in DATASETS:
        return get(str(source), progress=progress)
    path = Path(source).expanduser()
    if os.path.isfile(path):
        return jsonl.read(path, unique=unique)
    raise UnknownNameError(
        f"{str(source)!r} is neither a dataset nor a file here",
        mend=f"{near(str(source), names())} (a file of your own has JSONL lines with user and text)",
    )


def _cached(
    dataset: PublishedDataset,
    from_file: str | Path | None,
    report: Progress,
    read: Callable[[], Parsed | None],
    parse: Callable[[Path], Parsed],
    write: Callable[[Parsed], object],
    size: Callable[[Parsed], str],
) -> Parsed:
    """The parsed form from the cache, or from the file: given, else downloaded; then cached."""
    if from_file is not None:
        return _store(dataset, Path(from_file).expanduser(), report, parse, write, size)
    cached = read()
    if cached is not None:
        report(f"{dataset.name}: in the cache", 1.0)
        return cached
    if dataset.obtain is None:
        raise DataError(
            f"{dataset.name} is not here and cannot be downloaded automatically", mend=dataset.where
        )
    with cache.workplace() as folder:
        report(f"{dataset.name}: downloading", None)
        return _store(dataset, dataset.obtain(folder, report), report, parse, write, size)


def _store(
    dataset: PublishedDataset,
    path: Path,
    report: Progress,
    parse: Callable[[Path], Parsed],
    write: Callable[[Parsed], object],
    size: Callable[[Parsed], str],
) -> Parsed:
    digest = sha256_of(path)
    if digest not in dataset.files:
        wanted = "; ".join(f"{sha} ({what})" for sha, what in dataset.files.items())
        raise DataError(
            f"{path} is not the file that {dataset.name} is read from: its sha256 is {digest}, not {wanted}",
            mend=f"the file may be damaged or another version; {dataset.where}",
        )
    report(f"{dataset.name}: reading", 0.0)
    data = parse(path)
    write(data)
    report(f"{dataset.name}: {size(data)}", 1.0)
    return data
