"""Engines run the programs of a bundle. One file for each; ``torch`` is the reference."""

from __future__ import annotations

from collections.abc import Callable

from ..bundle.read import Bundle
from ..bundle.versions import is_older
from ..errors import EngineUnavailableError
from . import arm64
from .base import Array, EngineSession, Session, check_inputs
from .isolated import IsolatedSession, memory_for, survive
from .registry import ENGINES, Engine, Loader, load_engine, readers, register, unasked

__all__ = [
    "ENGINES",
    "Array",
    "Engine",
    "EngineSession",
    "IsolatedSession",
    "Loader",
    "Session",
    "check_inputs",
    "load_engine",
    "open_isolated",
    "open_session",
    "register",
]


def open_session(
    bundle: Bundle, engine: str | None = None, *, threads: int | None = None, trusted: bool = False
) -> EngineSession:
    """Load the programs of a bundle into an engine.

    The programs of a bundle that was opened without a pinned key are first loaded and run in a child process, once
    for each bundle and version of the runtime: a damaged program can end the process it is loaded into.

    Args:
        bundle: an opened, verified bundle.
        engine: engine name; ``torch`` has to be named, because PyTorch's files are code: name it for bundles you
            trust. None takes the first of the others that the bundle has.
        threads: threads of the runtime, where it can be told.
        trusted: you know who made the bundle, for instance because this program did; nothing is tried first.

    Raises:
        EngineUnavailableError: no such engine, the bundle has no programs for it, or its package is missing or
            older than the programs need.
        EngineError: the runtime refuses the programs.
        ProgramDiedError: they ended the child process, or took too much time or memory.
    """
    name, files = _chosen(bundle, engine)
    loader = load_engine(name)
    _check_version(bundle, ENGINES.find(name))
    if not (trusted or bundle.pinned):
        survive(bundle, name, files)
    return loader(files, bundle.manifest.programs, threads)


def open_isolated(
    bundle: Bundle,
    engine: str | None = None,
    *,
    threads: int | None = None,
    arch: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> EngineSession:
    """As `open_session`, but the programs stay in a child process, whose end is an error here.

    Args:
        bundle, engine, threads: as in `open_session`.
        arch: ``arm64`` for the ARM64 build of the runtime, on one thread; None for this machine's.
        report: is told what takes time.
    """
    name, files = _chosen(bundle, engine)
    if arch is not None:
        arm64.check_architecture(arch)
        return arm64.open_arm64(name, files, bundle.manifest.programs, report)
    _check_version(bundle, ENGINES.find(name))
    memory = memory_for(bundle, name)
    return IsolatedSession(name, files, bundle.manifest.programs, threads, memory=memory)


def _check_version(bundle: Bundle, engine: Engine) -> None:
    """Refuse a runtime that is older than the programs need; the golden call decides about newer ones."""
    needs, have = bundle.manifest.engine(engine.reads).runtime, engine.version
    if needs is not None and have is not None and is_older(have, needs.at_least):
        package = engine.packages[0]
        raise EngineUnavailableError(
            f"bundle {bundle.manifest.name!r} needs {package} {needs.at_least} or later (it was verified with "
            f"{needs.verified}), here is {have}",
            mend=f"pip install '{package}>={needs.at_least}', or export the model with the version in use here",
        )


def _chosen(bundle: Bundle, engine: str | None) -> tuple[str, dict[str, str]]:
    """The engine that is meant, and its files by purpose."""
    have = bundle.manifest.engines
    if engine is None:
        engine = next((name for name in unasked(have)), None)
        if engine is None:
            raise EngineUnavailableError(
                f"bundle {bundle.manifest.name!r} has programs for {', '.join(have)} only",
                mend=f"name the engine ({' or '.join(map(repr, readers(next(iter(have)))))}) if you trust where the "
                "bundle came from",
            )
    reads = ENGINES.find(engine).reads  # before the bundle is asked: an unknown name is a mistake of the user
    return engine, {use: str(path.absolute()) for use, path in bundle.engine_files(reads).items()}
