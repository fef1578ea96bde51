"""``pfl init``: a folder with a complete project, to change."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_mobile.cli.common import EXIT_CODES, Json, console, print_json
from pfl_mobile.errors import ConfigError, UnknownNameError, UnwritableError, near
from pfl_mobile.files.atomic import atomic_write, disk_errors

if TYPE_CHECKING:
    from pfl_recipes import Recipe

#: Template where none is named.
DEFAULT = "keyboard"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

_IGNORED = """\
__pycache__/
.pytest_cache/
runs/
*-bundle/
*.pflb
"""

_README = """\
# {name}

A study of personalization, begun from the recipe `{template}` of pfl-mobile: {title}.
`study.py` is all of it: the model, and a function that says on what data and how it is trained. Change both.

Data: `{data}`{where}

    pip install 'pfl-mobile[android,report]' pytest

    pytest                                                    # that it runs, on made-up users
    pfl train study.py:study --rounds 30 --out runs/first     # federated rounds, then every user's own model
    pfl recommend runs/first                                  # personalize or not, for whom and why
    pfl compare local fedavg_finetune fedper fedrep --data study.py:study --rounds 30
    pfl-export runs/first --target android                    # a bundle for phones from that run

`pfl-export study.py:study --target android` trains first. `pfl strategies` lists what `--strategy` takes.
"""

_TEST = '''\
"""That the study runs: on a few made-up users, so no data is needed. Their gains mean nothing."""

import numpy as np
import pfl_recipes
from pfl_mobile import Machine
from study import study


def test_a_round_trains_and_every_user_can_be_measured() -> None:
    people = pfl_recipes.find("{template}").made_up()
    small = study(people, cohort=4, machine=Machine(processes=0))
    before = {{name: value.numpy().copy() for name, value in small.model.values().items()}}
    with small.run(1, local_steps=2) as result:
        found = result.evaluate()
        changed = [name for name, value in result.values.items() if not np.array_equal(value, before[name])]
    assert len(found.users) == 4
    assert np.isfinite(found.shared).all()
    assert np.isfinite(found.personal).all()
    assert changed
'''


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init", epilog="Example:  pfl init my-study --template fraud.  " + EXIT_CODES)(init)


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Folder of the project, new or empty.")],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="T",
            help="keyboard, activity, glucose, maintenance, fraud, recommendation or driving.",
        ),
    ] = DEFAULT,
    as_json: Json = False,
) -> None:
    """Create a project that runs: a study, a test, and a README with the commands to train, compare and export.

    JSON: project, template, files, next (commands to run in the folder).
    """
    folder = Path(name).expanduser()
    recipe = _recipe(template)
    _check(folder)
    files = {
        "study.py": _study(recipe, folder.name),
        "test_study.py": _TEST.format(template=recipe.name),
        "README.md": _readme(recipe, folder.name),
        ".gitignore": _IGNORED,
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        atomic_write(folder / file, text.encode())
    commands = ["pytest", "pfl train study.py:study --rounds 30"]
    if as_json:
        print_json(
            {"project": str(folder), "template": recipe.name, "files": sorted(files), "next": commands}
        )
        return
    out = console()
    out.print(f"{folder}: {recipe.title}", markup=False)
    for file in files:
        out.print(f"  {file}", markup=False)
    out.print(f"next: cd {folder}; " + "; ".join(commands), markup=False)


def _recipe(template: str) -> Recipe:
    import pfl_recipes

    known = pfl_recipes.templates()
    if template not in known:
        raise UnknownNameError(f"there is no template {template!r}", mend=near(template, known))
    return pfl_recipes.find(template)


def _check(folder: Path) -> None:
    """Refuse a name that is none, and a place that holds something.

    Raises:
        ConfigError: the last part of the path has other characters than letters, digits, ``-`` and ``_``.
        UnwritableError: it is a file, or a folder that is not empty.
    """
    if not _NAME.fullmatch(folder.name):
        raise ConfigError(
            f"{folder.name!r} is not the name of a project",
            mend="begin with a letter; letters, digits, - and _ may follow, 64 in all",
        )
    with disk_errors(folder):
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UnwritableError(f"{folder} is a file", mend="give another name")
        if os.path.isdir(folder) and any(folder.iterdir()):
            raise UnwritableError(f"the folder {folder} is not empty", mend="give another name")


def _study(recipe: Recipe, name: str) -> str:
    """The recipe's study under the project's name."""
    source: str = (resources.files("pfl_recipes") / recipe.name / "study.py").read_text("utf-8")
    return source.replace(f'"name": "{recipe.name}"', f'"name": "{name}"')


def _readme(recipe: Recipe, name: str) -> str:
    from pfl_mobile import data

    entry = data.find(recipe.data)
    where = ", generated. Figures on it show what a method can do, no more."
    if isinstance(entry, data.PublishedDataset):
        how = "it is downloaded when it is needed" if entry.obtain else entry.where
        where = f" ({entry.licence}): {how}."
    return _README.format(name=name, template=recipe.name, title=recipe.title, data=recipe.data, where=where)
