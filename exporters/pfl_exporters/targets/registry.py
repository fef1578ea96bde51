"""The known targets: a target is one file that registers itself by name.

It lies in this folder, or in another distribution that names it as an entry point of the group
``pfl_exporters.targets`` (see :mod:`pfl_mobile.registry`). The file imports its tools inside functions: targets are
listed where their tools are not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pfl_exporters.lowering.quiet import lean, quiet
from pfl_mobile.errors import ConfigError
from pfl_mobile.registry import Registry, import_needed

if TYPE_CHECKING:
    from pfl_exporters.lowering.files import Lower
    from pfl_exporters.lowering.obstacles import Obstacle
    from pfl_mobile.programs.trace import TracedProgram
    from pfl_mobile.programs.weights import WeightFormat

L = TypeVar("L", bound="Lower")


@dataclass(frozen=True)
class Target:
    """A target and the engine that runs its files.

    Attributes:
        name: as users type it.
        engine: name of the engine.
        tools: modules that lowering needs; the first is of the package that users install.
        lower: writes the files; call :meth:`load` before.
        compared_by: the engine that runs the files on the machine that exports, where ``engine`` cannot.
        also: other engines that run on the target's systems.
        obstacles_in: module whose ``missing`` finds operators that the runtime lacks, at once, and whose ``trial``,
            where it has one, what the toolchain refuses, in seconds and without lowering the programs; None where
            nobody knows.
        mixed: whether the programs compute in fewer bits, so that their numbers are others.
        on_phones: whether it is for phones, and not for comparing with them only.
        weights: the kinds of stored weights that it takes (`pfl_mobile.programs.weights`).
    """

    name: str
    engine: str
    tools: tuple[str, ...]
    lower: Lower
    compared_by: str
    also: tuple[str, ...] = ()
    obstacles_in: str | None = None
    mixed: bool = False
    on_phones: bool = True
    weights: tuple[str, ...] = ("float32",)

    def missing(self, programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
        """The operators that the target's runtime or toolchain has not, looked up in what it says it has."""
        return self._found_by("missing", programs)

    def obstacles(self, programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
        """`missing`, and what the toolchain refuses when one use of each operator is translated."""
        return self._found_by("trial", programs)

    def _found_by(self, name: str, programs: Mapping[str, TracedProgram]) -> list[Obstacle]:
        if self.obstacles_in is None:
            return []
        module = importlib.import_module(self.obstacles_in)
        found: list[Obstacle] = getattr(module, name, module.missing)(programs)
        return found

    def load(self) -> None:
        """Import the tools, which takes seconds.

        Raises:
            MissingDependencyError: a package is not installed.
        """
        with quiet(), lean():
            import_needed(self.tools, f"target {self.name!r}")


#: All that there are, by name.
TARGETS: Registry[Target] = Registry("target", "pfl_exporters.targets")


def register(
    name: str,
    *,
    engine: str,
    tools: Sequence[str],
    compared_by: str | None = None,
    also: Sequence[str] = (),
    obstacles_in: str | None = None,
    mixed: bool = False,
    on_phones: bool = True,
    weights: Sequence[str] = ("float32",),
) -> Callable[[L], L]:
    """Make a function that writes the files of an engine known as a target.

    Args:
        name: of the target.
        engine: name of the engine that runs the files.
        tools: modules that it needs, imported before it is called; the first is of the package that users install.
        compared_by: the engine that runs the files on the machine that exports, where ``engine`` cannot.
        also: other engines that run on the target's systems.
        obstacles_in: module that finds what the target does not take (see `Target`).
        mixed: whether the programs compute in fewer bits.
        on_phones: whether it is for phones, and not for comparing with them only.
        weights: the kinds of stored weights that it takes.
    """

    def known(lower: L) -> L:
        made = Target(
            name,
            engine,
            tuple(tools),
            lower,
            compared_by or engine,
            tuple(also),
            obstacles_in,
            mixed,
            on_phones,
            tuple(weights),
        )
        TARGETS.add(name, made, home=lower.__module__)
        return lower

    return known


def resolve(names: Iterable[str]) -> list[Target]:
    """Targets by name; ``all`` is one for every engine.

    Raises:
        UnknownNameError: there is no such target.
        ConfigError: two make the files of one engine.
    """
    wanted: list[Target] = []
    for name in names:
        for target in TARGETS.all().values() if name == "all" else [TARGETS.find(name)]:
            same = next((t for t in wanted if t.engine == target.engine), None)
            if same is None:
                wanted.append(target)
            elif same != target and name != "all":
                raise ConfigError(
                    f"targets {same.name!r} and {target.name!r} both make the files of engine {target.engine!r}",
                    mend="choose one for each bundle",
                )
    return wanted


def check_weights(targets: Iterable[Target], weights: WeightFormat) -> None:
    """Each of the targets takes weights that are stored so.

    Raises:
        ConfigError: one does not; the message names those that do.
    """
    for target in targets:
        if weights.kind not in target.weights:
            others = [t.name for t in TARGETS.all().values() if weights.kind in t.weights]
            raise ConfigError(
                f"target {target.name!r} takes no weights of {weights.kind}",
                mend=f"store them as {' or '.join(target.weights)}, or export to {', '.join(others)}",
            )


def with_engines(targets: Sequence[Target], engines: Iterable[str]) -> list[Target]:
    """The targets, and those that make the files of other engines that run on the same systems.

    Args:
        targets: that were chosen.
        engines: names.

    Raises:
        EngineUnavailableError: there is no such engine.
        ConfigError: it runs on the systems of none of the targets.
    """
    wanted = list(targets)
    for engine in engines:
        made_by = target_of(engine)
        if any(target.engine == engine for target in wanted):
            continue
        if not any(engine in target.also for target in targets):
            mine = sorted({e for target in targets for e in (target.engine, *target.also)})
            raise ConfigError(
                f"engine {engine!r} does not run on the systems of {' and '.join(t.name for t in targets)}",
                mend=f"choose of {', '.join(mine)}, or name target {made_by.name!r}",
            )
        wanted.append(made_by)
    return wanted


def target_of(engine: str) -> Target:
    """The target that makes the files of an engine.

    Raises:
        EngineUnavailableError: there is no such engine.
        ConfigError: no target is for it.
    """
    from pfl_mobile.engines import ENGINES

    ENGINES.find(engine)  # an unknown name is another mistake than an engine without a target
    found = next((target for target in TARGETS.all().values() if target.engine == engine), None)
    if found is None:
        raise ConfigError(
            f"no target makes files for engine {engine!r}",
            mend=f"choose one of {', '.join(sorted({t.engine for t in TARGETS.all().values()}))}",
        )
    return found
