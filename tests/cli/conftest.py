"""Running commands inside the test's process, with a cache of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pfl_mobile import cli
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = self.json["error"]
        return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


@pytest.fixture
def pfl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``pfl`` with arguments (made strings)."""

    def run(*arguments: object) -> Ran:
        code = cli.main([str(a) for a in arguments])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    """A JSONL file with the messages of the tiny users."""
    path = tmp_path / "messages.jsonl"
    lines = [
        json.dumps({"user": u, "text": t, "time": i}) for u in tiny.USERS for i, t in enumerate(distinct(u))
    ]
    path.write_text("\n".join(lines))
    return path


def distinct(user: str) -> list[str]:
    """Messages of one user of which no two are equal, as a loaded dataset has them."""
    return [t + " ok" * (i // 12) for i, t in enumerate(tiny.texts(user, 30))]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that may be spoiled."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")
