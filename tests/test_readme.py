"""What README and the pages it leads to print is the code that runs here, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pfl_exporters.cli import main
from pfl_mobile.data import synthetic

ROOT = Path(__file__).parents[1]


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


def test_links_between_pages_lead_somewhere() -> None:
    lost, links = [], 0
    for page in _pages():
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if ":" in link:  # an address
                continue
            links += 1
            file, _, heading = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (heading and heading not in _headings(target)):
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert lost == []
    assert links > 50


def _pages() -> list[Path]:
    """The pages of the repository, not those of what was installed into its folder."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def _headings(page: Path) -> set[str]:
    """Headings as a link names them: small letters, joined by dashes, no punctuation."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def _code(name: str) -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
    return next(block for block in blocks if block.startswith(f"# {name}\n"))
