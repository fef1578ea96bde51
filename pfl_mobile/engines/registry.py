"""The known engines: an engine is one file that registers itself by name.

It lies in this folder, or in another distribution that names it as an entry point of the group ``pfl_mobile.engines``
(see :mod:`pfl_mobile.registry`). The file imports its runtime inside functions: engines are listed where their
runtimes are not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..bundle.manifest import ProgramSpec
from ..errors import EngineUnavailableError
from ..registry import Registry, import_needed, version_of
from .base import EngineSession
from .schedule import scheduled

#: An engine's loader: files by purpose, signatures, number of threads (None: the runtime's choice).
Loader = Callable[[Mapping[str, str], Sequence[ProgramSpec], int | None], EngineSession]

L = TypeVar("L", bound=Loader)


@dataclass(frozen=True)
class Engine:
    """A runtime of programs.

    Attributes:
        name: as bundles and users write it.
        runtime: modules that it needs; the first is of the package that users install for it.
        loader: opens files of the engine.
        only_named: whether users have to name it: its files can hold code, or it is there for comparing only.
        files_of: the engine whose files it reads, where it has none of its own.
    """

    name: str
    runtime: tuple[str, ...]
    loader: Loader
    only_named: bool
    files_of: str | None = None

    @property
    def reads(self) -> str:
        """The engine under whose name a bundle has its files."""
        return self.files_of or self.name

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that the runtime is in."""
        return tuple(module.partition(".")[0] for module in self.runtime)

    @property
    def version(self) -> str | None:
        """Version of the runtime that is installed; None where nobody says."""
        return version_of(self.runtime[0])


#: All that there are, by name.
ENGINES: Registry[Engine] = Registry("engine", "pfl_mobile.engines", unknown=EngineUnavailableError)


def register(
    name: str, *, runtime: Sequence[str], only_named: bool = False, files_of: str | None = None
) -> Callable[[L], L]:
    """Make a loader known as an engine.

    Args:
        name: of the engine.
        runtime: modules that it needs, imported before it is used; the first is of the package that users install.
        only_named: whether users have to name it: its files can hold code, or it is there for comparing only.
        files_of: the engine whose files it reads, where it has none of its own.
    """

    def known(loader: L) -> L:
        ENGINES.add(name, Engine(name, tuple(runtime), loader, only_named, files_of), home=loader.__module__)
        return loader

    return known


def unasked(have: Iterable[str]) -> list[str]:
    """Those engines that may run a bundle without being named, the preferred first.

    ``torch`` is not among them: its files can hold code, and opening an unknown bundle must not run any.

    Args:
        have: engines that the bundle has files of.
    """
    present = set(have)
    return [e.name for e in ENGINES.all().values() if e.name in present and not e.only_named]


def comparing(have: Iterable[str]) -> list[str]:
    """Those engines that check a bundle's numbers without being named: with `unasked`, interpreters, which are slow.

    Args:
        have: engines that the bundle has files of.
    """
    present = set(have)
    return unasked(present) + [e.name for e in ENGINES.all().values() if e.files_of in present]


def readers(files_of: str) -> list[str]:
    """The engines that read files of one."""
    return [e.name for e in ENGINES.all().values() if e.reads == files_of]


def load_engine(name: str) -> Loader:
    """The loader of an engine, its runtime imported; it runs schedules too.

    Raises:
        EngineUnavailableError: there is no such engine, or its package is missing.
    """
    engine = ENGINES.find(name)
    import_needed(engine.runtime, f"engine {name!r}", missing=EngineUnavailableError)

    def load(files: Mapping[str, str], programs: Sequence[ProgramSpec], threads: int | None) -> EngineSession:
        return scheduled(files, programs, lambda parts, specs: engine.loader(parts, specs, threads))

    return load
