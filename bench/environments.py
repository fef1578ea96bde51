"""A virtual environment for each peer, made once and kept in the cache folder of ``pfl``."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pfl_mobile.files.cache_dir import cache_dir


class EnvironmentFailed(Exception):
    """A peer's environment could not be made; the message ends with what pip said last."""


def python_of(system: str, wanted: Sequence[str], say: Callable[[str], None]) -> Path:
    """The interpreter that runs ``system``: this one where it wants nothing of its own.

    Args:
        system: name of the peer.
        wanted: what pip is to install.
        say: told before minutes are spent.

    Raises:
        EnvironmentFailed: venv or pip failed; nothing half made is left.
    """
    if not wanted:
        return Path(sys.executable)
    key = hashlib.sha256("|".join([sys.version, *wanted]).encode()).hexdigest()[:10]
    folder = cache_dir() / "bench" / f"{system}-{key}"
    python = folder / "bin" / "python"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "complete").exists():
                say(f"make the environment of {system} (minutes, once): {', '.join(wanted)}")
                _make(folder, python, wanted)
    except OSError as error:
        raise EnvironmentFailed(f"{folder}: {error}") from error
    return python


def _make(folder: Path, python: Path, wanted: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *wanted],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            said = (done.stderr.strip() or done.stdout.strip())[-600:]
            raise EnvironmentFailed(f"{' '.join(step[:4])} ... failed: {said}")
    (folder / "complete").touch()
