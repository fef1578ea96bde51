"""What commands print beside their results: plain notes, and nothing of the packages below that says nothing."""

from __future__ import annotations

import logging
import logging.handlers
import subprocess
import sys
import warnings

import pytest
import typer

from pfl_mobile.cli import common


def test_a_warning_of_ours_is_a_note_and_others_are_as_python_shows_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        warnings.warn_explicit("nothing was [given]", UserWarning, common.__file__, 1)
        warnings.warn_explicit("of a user", UserWarning, "/home/ann/study.py", 7)

    shown = warnings.showwarning
    assert common.run(app, "pfl", []) == 0
    assert warnings.showwarning is shown
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "note: nothing was [given]"
    assert second == "/home/ann/study.py:7: UserWarning: of a user"


def test_only_the_line_about_torchao_is_dropped() -> None:
    common.run(typer.Typer(callback=lambda: None), "pfl", ["--help"])
    log, seen = logging.getLogger("torch.utils._pytree"), logging.handlers.BufferingHandler(10)
    log.addHandler(seen)  # PyTorch, once imported, hands nothing up to the root
    try:
        log.warning("%s is an Enum subclass and is now natively supported", "<enum 'KernelPreference'>")
        log.warning("%s is an Enum subclass and is now natively supported", "<enum 'Mine'>")
    finally:
        log.removeHandler(seen)
    assert [record.args for record in seen.buffer] == [("<enum 'Mine'>",)]


def test_importing_says_nothing() -> None:
    call = [sys.executable, "-c", "import pfl_mobile.study, pfl_mobile.modules"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stderr == ""
