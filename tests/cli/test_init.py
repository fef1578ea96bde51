"""``pfl init``."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import pfl_recipes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]

FILES = [".gitignore", "README.md", "study.py", "test_study.py"]


@pytest.mark.parametrize("template", pfl_recipes.templates())
def test_every_template_is_a_project_with_commands(pfl: Run, tmp_path: Path, template: str) -> None:
    folder = tmp_path / "new" / "my_study"
    ran = pfl("init", folder, "--template", template, "--json")
    assert ran.code == 0
    assert ran.json["template"] == template
    assert ran.json["files"] == sorted(p.name for p in folder.iterdir()) == FILES
    study = (folder / "study.py").read_text()
    compile(study, "study.py", "exec")
    assert '"name": "my_study"' in study
    readme = (folder / "README.md").read_text()
    for command in ("train", "compare", "recommend"):
        assert f"pfl {command} " in readme
    assert "--target android" in readme
    assert "{" not in readme
    assert f'find("{template}")' in (folder / "test_study.py").read_text()


@pytest.mark.slow
def test_a_new_project_passes_its_own_test(pfl: Run, tmp_path: Path) -> None:
    assert pfl("init", tmp_path / "mine", "--template", "fraud").code == 0
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "mine",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_it_says_what_to_do_next(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("init", tmp_path / "mine", "--template", "driving")
    assert ran.code == 0
    assert "study.py" in ran.out
    assert "pfl train study.py:study" in ran.out


def test_an_empty_folder_is_taken(pfl: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert pfl("init", tmp_path / "mine").code == 0


@pytest.mark.parametrize("name", ["1st", "my study", "-x/..", "..", "a" * 65, "näme", "x.py"])
def test_a_bad_name_is_refused(pfl: Run, tmp_path: Path, name: str) -> None:
    ran = pfl("init", tmp_path / name, "--json")
    assert (ran.code, ran.error["type"]) == (2, "ConfigError")
    assert "letter" in ran.error["mend"]
    assert not list(tmp_path.iterdir())


def test_a_place_with_something_in_it_is_left_alone(pfl: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        ran = pfl("init", tmp_path / place, "--json")
        assert (ran.code, ran.error["type"]) == (2, "UnwritableError")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_template_names_near_ones(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("init", tmp_path / "mine", "--template", "keybord", "--json")
    assert (ran.code, ran.error["type"]) == (2, "UnknownNameError")
    assert "'keyboard'" in ran.error["mend"]
    assert not (tmp_path / "mine").exists()
