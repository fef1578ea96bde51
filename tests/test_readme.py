"""The example in README.md is the code that runs here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pfl_exporters.cli import main
from pfl_mobile.data import synthetic


@pytest.mark.parametrize("name", ["my_model.py", "my_words.py"])
def test_the_quickest_path_works_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(_code(name))
    monkeypatch.chdir(tmp_path)
    status = main([f"{name}:build", "--target", "onnx", "--out", "my.pflb"])
    assert status == 0, capsys.readouterr().err
    assert (tmp_path / "my.pflb").stat().st_size > 0


def test_the_study_works_as_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # as printed, on fewer users with fewer rows
    for option, value in {"users": 16, "times": 1}.items():
        monkeypatch.setitem(synthetic.build.__kwdefaults__, option, value)
    found: dict[str, Any] = {}
    exec(_code("my_study.py"), found)  # a file of the repository
    result = found["result"]
    assert len(result.history) == 5
    assert len(found["found"].per_user()) == 16
    assert "personalize" in capsys.readouterr().out
    result.close()


def _code(name: str) -> str:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if name in block)
