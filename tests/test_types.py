"""What a type checker sees of the package: the code of README and of the templates, and names that do not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mypy import api

import pfl_recipes
from pfl_mobile import cli

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]

WRONG = """
from pfl_mobile import LoRA, Machine, Study, nonsense

LoRA("0", rnk=4)
Study(None, "synthetic", strategi="fedavg")
Study(None, "synthetic", machine=Machine(lane=1), cohort="20")
"""


def checked(files: Sequence[Path]) -> list[str]:
    """What mypy says of the files in strict mode, with the project's settings."""
    out, err, _ = api.run(
        [
            "--strict",
            "--allow-subclassing-any",  # PyTorch's modules, which are not followed
            "--config-file",
            str(ROOT / "pyproject.toml"),
            *map(str, files),
        ]
    )
    assert not err, err
    return [line for line in out.splitlines() if ": error: " in line]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Errors by file, of one run over everything."""
    folder = tmp_path_factory.mktemp("typed")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    # blocks without an import are fragments that explain
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        if "import" in block
    ]
    assert len(blocks) >= 3
    files = {f"printed_{i}": block for i, block in enumerate(blocks)} | {"wrong": WRONG}
    paths = []
    for name, text in files.items():
        paths.append(folder / f"{name}.py")
        paths[-1].write_text(text)
    for template in pfl_recipes.templates():
        project = folder / f"of_{template}"
        assert cli.main(["init", str(project), "--template", template]) == 0
        for path in sorted(project.glob("*.py")):  # modules of one name cannot be checked together
            paths.append(folder / f"{template}_{path.name}")
            paths[-1].write_text(
                path.read_text().replace("from study import", f"from {template}_study import")
            )
    errors: dict[str, list[str]] = {path.name: [] for path in paths}
    for line in checked(paths):
        errors[Path(line.split(":")[0]).name].append(line)
    return errors


@pytest.mark.slow
def test_code_of_readme_and_templates_has_no_type_errors(found: dict[str, list[str]]) -> None:
    assert len(found) > 8
    assert [line for name, lines in found.items() if name != "wrong.py" for line in lines] == []


@pytest.mark.slow
def test_names_that_do_not_exist_are_type_errors(found: dict[str, list[str]]) -> None:
    said = "\n".join(found["wrong.py"])
    assert len(found["wrong.py"]) == 5, said
    for name in ("nonsense", "rnk", "strategi", "lane", '"cohort"'):
        assert name in said
