"""The known datasets: a dataset is one file that registers itself by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pfl_mobile.data.usertext import Message
from pfl_mobile.errors import ConfigError, UnknownNameError, near

#: ``progress(what, fraction)``: what is being done, and how much of it (None where nobody can tell).
Progress = Callable[[str, float | None], None]


def silent(what: str, fraction: float | None = None) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True)
class Dataset:
    """How one dataset is obtained and read.

    Args:
        name: as users type it.
        summary: one line for listings.
        licence: what its owners allow.
        files: sha256 of each source file it can be read from, with a name for that file.
        parse: reads a checked source file into ``(user, message)`` pairs.
        obtain: downloads the source file into a folder and returns its path; None where only the user
            can get it.
        where: how a user gets the source file by hand.
        test_users: how many users to hold out by default.
        version: goes up when ``parse`` changes, so that older caches are not read.
    """

    name: str
    summary: str
    licence: str
    files: Mapping[str, str]
    parse: Callable[[Path, Progress], Iterable[tuple[str, Message]]]
    where: str
    obtain: Callable[[Path, Progress], Path] | None = None
    test_users: int = 40
    version: int = 1


_DATASETS: dict[str, Dataset] = {}


def register(dataset: Dataset) -> Dataset:
    """Make a dataset known by its name."""
    if dataset.name in _DATASETS:
        raise ConfigError(f"dataset {dataset.name!r} is registered twice", mend="give it another name")
    _DATASETS[dataset.name] = dataset
    return dataset


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_DATASETS)


def find(name: str) -> Dataset:
    """The dataset of this name.

    Raises:
        UnknownNameError: nothing is registered under it.
    """
    if name not in _DATASETS:
        raise UnknownNameError(f"no dataset is called {name!r}", mend=near(name, _DATASETS))
    return _DATASETS[name]
