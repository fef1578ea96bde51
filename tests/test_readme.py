"""The example in README.md is the code that runs here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pfl_exporters.cli import main


def test_the_quickest_path_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "my_model.py" in block)
    (tmp_path / "my_model.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    status = main(["my_model.py:build", "--target", "onnx", "--out", "activity.pflb"])
    assert status == 0, capsys.readouterr().err
    assert (tmp_path / "activity.pflb").stat().st_size > 0
