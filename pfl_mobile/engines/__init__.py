"""Engines run the programs of a bundle: ``torch`` (reference), ``executorch``, ``onnxruntime``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from ..bundle.read import Bundle
from ..errors import EngineUnavailableError, near
from .base import Array, EngineSession, Loader, Session, check_inputs
from .isolated import IsolatedSession, memory_for, survive

#: Engine name -> (module with ``load``, packages it needs, extra of this distribution that brings them).
ENGINES = {
    "executorch": ("pfl_mobile.engines.executorch", ("executorch", "torch"), "android"),
    "onnxruntime": ("pfl_mobile.engines.onnxruntime", ("onnxruntime",), "onnx"),
    "torch": ("pfl_mobile.engines.torch", ("torch",), "torch"),
}

__all__ = [
    "ENGINES",
    "Array",
    "EngineSession",
    "IsolatedSession",
    "Session",
    "check_inputs",
    "load_engine",
    "open_isolated",
    "open_session",
    "unasked",
]


def unasked(have: Iterable[str]) -> list[str]:
    """Those of the engines ``have`` that may be used without being named, the preferred first.

    ``torch`` is not among them: its files can hold code, and opening an unknown bundle must not run any.
    """
    present = set(have)
    return [name for name in ENGINES if name in present and name != "torch"]


def load_engine(engine: str) -> Loader:
    """The loader of an engine.

    Raises:
        EngineUnavailableError: there is no such engine, or its package is missing.
    """
    if engine not in ENGINES:
        raise EngineUnavailableError(f"there is no engine {engine!r}", mend=near(engine, ENGINES))
    module, packages, extra = ENGINES[engine]
    try:
        loader: Loader = importlib.import_module(module).load
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise EngineUnavailableError(
            f"engine {engine!r} needs the package {error.name!r}",
            mend=f"pip install 'pfl-mobile[{extra}]'",
        ) from error
    return loader


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
        EngineUnavailableError: no such engine, the bundle has no programs for it, or its package is missing.
        EngineError: the runtime refuses the programs.
        ProgramDiedError: they ended the child process, or took too much time or memory.
    """
    name, files = _chosen(bundle, engine)
    loader = load_engine(name)
    if not (trusted or bundle.pinned):
        survive(bundle, name, files)
    return loader(files, bundle.manifest.programs, threads)


def open_isolated(
    bundle: Bundle, engine: str | None = None, *, threads: int | None = None
) -> IsolatedSession:
    """As `open_session`, but the programs stay in a child process, whose end is an error here."""
    name, files = _chosen(bundle, engine)
    memory = memory_for(bundle, name)
    return IsolatedSession(name, files, bundle.manifest.programs, threads, memory=memory)


def _chosen(bundle: Bundle, engine: str | None) -> tuple[str, dict[str, str]]:
    """The engine that is meant, and its files by purpose."""
    have = bundle.manifest.engines
    if engine is None:
        engine = next((name for name in unasked(have)), None)
        if engine is None:
            raise EngineUnavailableError(
                f"bundle {bundle.manifest.name!r} has programs for {', '.join(have)} only",
                mend=f"name the engine ({next(iter(have))!r}) if you trust where the bundle came from",
            )
    if engine not in ENGINES:
        raise EngineUnavailableError(f"there is no engine {engine!r}", mend=near(engine, ENGINES))
    return engine, {use: str(path.absolute()) for use, path in bundle.engine_files(engine).items()}
