"""Engines run the programs of a bundle: ``torch`` (reference), ``executorch``, ``onnxruntime``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from ..bundle.read import Bundle
from ..errors import EngineUnavailableError, near
from .base import Array, EngineSession, Session, check_inputs

#: Engine name -> (module with ``load``, packages it needs, extra of this distribution that brings them).
ENGINES = {
    "executorch": ("pfl_mobile.engines.executorch", ("executorch", "torch"), "android"),
    "onnxruntime": ("pfl_mobile.engines.onnxruntime", ("onnxruntime",), "onnx"),
    "torch": ("pfl_mobile.engines.torch", ("torch",), "torch"),
}

__all__ = ["ENGINES", "Array", "EngineSession", "Session", "check_inputs", "open_session", "unasked"]


def unasked(have: Iterable[str]) -> list[str]:
    """Those of the engines ``have`` that may be used without being named, the preferred first.

    ``torch`` is not among them: its files can hold code, and opening an unknown bundle must not run any.
    """
    present = set(have)
    return [name for name in ENGINES if name in present and name != "torch"]


def open_session(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> EngineSession:
    """Load the programs of a bundle into an engine.

    Args:
        bundle: an opened, verified bundle.
        engine: engine name; ``torch`` has to be named, because PyTorch's files are code: name it for bundles you
            trust. None takes the first of the others that the bundle has.
        threads: threads of the runtime, where it can be told.

    Raises:
        EngineUnavailableError: no such engine, the bundle has no programs for it, or its package is missing.
        EngineError: the runtime refuses the programs.
    """
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
    entry = bundle.manifest.engine(engine)
    module, packages, extra = ENGINES[engine]
    try:
        loader = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise EngineUnavailableError(
            f"engine {engine!r} needs the package {error.name!r}",
            mend=f"pip install 'pfl-mobile[{extra}]'",
        ) from error
    files = {purpose: str(bundle.path(path)) for purpose, path in entry.files.items()}
    session: EngineSession = loader.load(files, bundle.manifest.programs, threads)
    return session
