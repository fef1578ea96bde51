"""How strategies, datasets and the like become known by name: one scan for ours and for those of other packages.

A thing is one file that registers itself when it is imported. The first time that names are needed, every file of the
package that such things live in is imported. Other distributions add theirs through an entry point; its group is the
name of that package, its value the module to import::

    [project.entry-points."pfl_mobile.strategies"]
    mine = "my_package.my_strategy"
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import pkgutil
import sys
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

from pfl_mobile.errors import (
    ConfigError,
    MissingDependencyError,
    PflError,
    PluginError,
    UnknownNameError,
    install_hint,
    near,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind, by name. Threads may share it.

    Args:
        what: one of them, in words, for messages.
        package: whose files are imported to find them; also the group of the entry points of other distributions.
        unknown: error for a name that there is not.
    """

    def __init__(self, what: str, package: str, *, unknown: type[PflError] = UnknownNameError) -> None:
        self.what, self.package, self._unknown = what, package, unknown
        self._items: dict[str, tuple[T, str]] = {}  # and the module that each is from
        self._lock = threading.RLock()
        self._scanning = self._ours_loaded = self._others_loaded = False
        self._broken: PluginError | None = None

    def add(self, name: str, item: T, *, home: str) -> None:
        """Make something known.

        Args:
            name: as users type it.
            item: what it is.
            home: the module that it is from.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._items:
            homes = " and ".join(dict.fromkeys((self._items[name][1], home)))
            raise ConfigError(
                f"{self.what} {name!r} is registered twice, in {homes}", mend="give one of them another name"
            )
        self._items[name] = (item, home)

    def all(self) -> Mapping[str, T]:
        """Everything known: what is ours in order of name, then what other distributions add.

        Raises:
            ConfigError: two have one name.
            PluginError: another distribution's cannot be loaded.
        """
        self._scan(others=True)
        order = sorted(self._items, key=lambda name: (not _inside(self._items[name][1], self.package), name))
        return MappingProxyType({name: self._items[name][0] for name in order})

    def names(self) -> list[str]:
        """The names of `all`, in its order."""
        return list(self.all())

    def find(self, name: str) -> T:
        """What is called ``name``. What is ours is found however broken another distribution is.

        Raises:
            UnknownNameError: there is none, or what this registry raises instead; the mend has near names.
            PluginError: the name is not one of ours, and another distribution's cannot be loaded.
        """
        if name not in self:
            raise self._unknown(f"no {self.what} is called {name!r}", mend=near(name, self._items))
        return self._items[name][0]

    def __contains__(self, name: object) -> bool:
        """Whether something is called so (PluginError as in `find`)."""
        self._scan(others=False)
        if name not in self._items:
            self._scan(others=True)
        return name in self._items

    def _scan(self, *, others: bool) -> None:
        if self._ours_loaded and (self._others_loaded or not others):
            return
        with self._lock:
            if self._scanning:  # a file that is being imported asks for names: those that there are so far
                return
            self._scanning = True
            try:
                if not self._ours_loaded:
                    self._load_ours()
                    self._ours_loaded = True
                if others and not self._others_loaded:
                    self._load_others()
                    self._others_loaded = True
            finally:
                self._scanning = False

    def _load_ours(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")

    def _load_others(self) -> None:
        if self._broken is not None:  # what it registered before it failed is there: not to be tried again
            raise self._broken.with_traceback(None)
        from importlib.metadata import entry_points

        for entry in sorted(entry_points(group=self.package), key=lambda e: (_distribution(e), e.name)):
            try:
                self._load(entry)
            except PluginError as error:
                self._broken = error
                raise

    def _load(self, entry: EntryPoint) -> None:
        name = _distribution(entry)
        who = f"entry point {entry.name!r} ({entry.value}) of the distribution {name!r}"
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # a stranger's module raises what it likes
            why = error.message if isinstance(error, PflError) else f"{type(error).__name__}: {error}"
            raise PluginError(
                f"{who} in the group {self.package!r} cannot be loaded: {why}",
                mend=f"correct or update {name}, or remove it: pip uninstall {name}",
            ) from error
        top = entry.module.partition(".")[0]
        if not any(_inside(home, top) for _, home in self._items.values()):
            raise PluginError(
                f"{who} adds no {self.what}, which its group {self.package!r} is for",
                mend=f"let {entry.module} register one when it is imported, or give the entry point another group",
            )


def called_from() -> str:
    """The module that called the function that calls this one."""
    return str(sys._getframe(2).f_globals.get("__name__", "?"))


def import_needed(
    modules: Sequence[str], who: str, *, missing: type[PflError] = MissingDependencyError
) -> None:
    """Import the modules that a registered thing needs, just before it is used; that can take seconds.

    Args:
        modules: the first is of the package that users install for it.
        who: the thing in words, for the message.
        missing: the error for a package that is not installed.

    Raises:
        PflError: ``missing``: a package of these modules is not installed.
        ModuleNotFoundError: they are installed, and import what is not.
    """
    packages = [module.partition(".")[0] for module in modules]
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in packages:
                raise
            raise missing(
                f"{who} needs the package {error.name!r}", mend=install_hint(packages[0])
            ) from error


def version_of(module: str) -> str | None:
    """Version of the installed distribution that a module is of; None where it is of none."""
    package = module.partition(".")[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    # several distributions can bring one package, as those of ONNX Runtime do
    for name in importlib.metadata.packages_distributions().get(package, ()):
        return importlib.metadata.version(name)
    return None


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "?"


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
