"""The known datasets: a dataset is one file that registers itself by name.

It lies in this folder, or in another distribution that names it as an entry point of the group ``pfl_mobile.data``
(see :mod:`pfl_mobile.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pfl_mobile.registry import Registry, called_from

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.data.usertext import Message

#: Columns of a source file, each an array without objects.
Table = Mapping[str, np.ndarray]

#: ``progress(what, fraction)``: what is being done, and how much of it (None where nobody can tell).
Progress = Callable[[str, float | None], None]

Known = TypeVar("Known", bound="RegisteredDataset")


def silent(what: str, fraction: float | None = None) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, kw_only=True)
class RegisteredDataset:
    """What every known dataset has.

    Args:
        name: as users type it.
        summary: one line for listings.
        licence: what its owners allow.
    """

    name: str
    summary: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class PublishedDataset(RegisteredDataset):
    """A dataset that is read from a file which somebody publishes.

    Args:
        files: sha256 of each source file it can be read from, with a name for that file.
        obtain: downloads the source file into a folder and returns its path; None where only the user
            can get it.
        where: how a user gets the source file by hand.
        version: goes up when ``parse`` changes, so that older caches are not read.
    """

    files: Mapping[str, str]
    where: str
    obtain: Callable[[Path, Progress], Path] | None = None
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class Dataset(PublishedDataset):
    """Messages by user.

    Args:
        parse: reads a checked source file into ``(user, message)`` pairs; the user is None where nobody knows it.
        unique: a user's repeated messages are left out, where the source holds them more often than they were written
            or results with them would say little.
        test_users: how many users to hold out by default.
    """

    parse: Callable[[Path, Progress], Iterable[tuple[str | None, Message]]]
    unique: bool = False
    test_users: int = 40


@dataclass(frozen=True, kw_only=True)
class ArrayDataset(PublishedDataset):
    """Numbers by user, read from a file.

    Args:
        parse: reads a checked source file into a table: the columns of what the source has, unchanged.
        build: ``(table, **options)`` to the users; its keyword arguments are what ``population`` takes.
    """

    parse: Callable[[Path, Progress], Table]
    build: Callable[..., Population]


@dataclass(frozen=True, kw_only=True)
class Generator(RegisteredDataset):
    """Numbers by user, drawn at random from a seed.

    Args:
        build: ``(**options)`` to the users; its keyword arguments are what ``population`` takes.
    """

    licence: str = "generated"
    build: Callable[..., Population]


DATASETS: Registry[RegisteredDataset] = Registry("dataset", "pfl_mobile.data")


def register(dataset: Known) -> Known:
    """Make a dataset known by its name; called where it is defined."""
    DATASETS.add(dataset.name, dataset, home=called_from())
    return dataset


def names() -> list[str]:
    """All names: ours sorted, then those of other distributions."""
    return DATASETS.names()


def find(name: str) -> RegisteredDataset:
    """The dataset of this name.

    Raises:
        UnknownNameError: nothing is registered under it; the mend has near names.
    """
    return DATASETS.find(name)
