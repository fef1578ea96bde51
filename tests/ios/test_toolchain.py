"""What gets Swift onto a machine without it: it leaves all or nothing, and says why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ios/toolchain.sh"


def _call(*arguments: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env=os.environ | {"PFL_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Programs that stand before those of the machine; apt reaches no mirror."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "apt-get").write_text("#!/bin/sh\necho 'cannot fetch' >&2\nexit 100\n")
    (folder / "apt-get").chmod(0o755)
    return folder


def test_it_is_in_the_cache(tmp_path: Path) -> None:
    assert _call("where", cache=tmp_path).stdout == f"{tmp_path}/swift\n"


def test_what_cannot_be_fetched_leaves_nothing(tmp_path: Path, tools: Path) -> None:
    cache = tmp_path / "cache"
    mirror = {"PFL_DEBIAN_MIRROR": "http://127.0.0.1:9/debian", "PATH": f"{tools}:{os.environ['PATH']}"}
    failed = _call(cache=cache, **mirror)
    assert failed.returncode != 0
    assert "cannot fetch" in failed.stderr or "keys" in failed.stderr
    assert not cache.exists() or not list(cache.iterdir())


def test_a_machine_without_a_mirror_is_told_how_to_name_one(tmp_path: Path, tools: Path) -> None:
    refused = _call(cache=tmp_path / "cache", PATH=f"{tools}:{os.environ['PATH']}")
    assert refused.returncode == 2
    assert "PFL_DEBIAN_MIRROR" in refused.stderr or "keys" in refused.stderr


def test_remove_takes_it_away_with_what_was_left_half_done(tmp_path: Path) -> None:
    for name in ("swift", "swift.partial.a1b2c3", "other"):
        (tmp_path / name / "usr").mkdir(parents=True)
    assert _call("remove", cache=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    assert _call("mkae", cache=tmp_path).returncode == 2
