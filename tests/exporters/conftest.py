"""What tests of exports share: the command, and a target's files in the engine that runs them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pfl_exporters import cli
from pfl_exporters.targets import resolve
from pfl_exporters.verify import open_lowered, program_specs
from tests.cli.conftest import Ran

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pfl_mobile.engines.base import EngineSession
    from pfl_mobile.programs.trace import TracedProgram


@pytest.fixture
def pfl_export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run ``pfl-export`` with arguments (made strings)."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Ran:
        code = cli.main([str(a) for a in arguments])
        return Ran(code, *capsys.readouterr())

    return run


def opened(target: str, programs: Mapping[str, TracedProgram], folder: Path) -> EngineSession:
    """Programs lowered for a target, in a folder of its name, in the engine that runs them."""
    (found,) = resolve([target])
    found.load()
    (folder / target).mkdir()
    lowered = found.lower(programs, folder / target, lambda _: None)
    return open_lowered(found, lowered, program_specs(programs))
